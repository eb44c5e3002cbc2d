//! `cargo xtask setup`: finds or installs a compiler and a linker for the eBPF program and records
//! the choice for `profiler/build.rs`. Silent when nothing is missing. It never touches an existing
//! Rust installation.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::Apt;
use crate::process::{cargo, quietly, say};
use crate::testbed;
use crate::toolchain::{Toolchain, cache_folder, llvm_major, record_in};

/// Built against the LLVM of whichever compiler is used, so the version alone does not name it.
const BPF_LINKER: &str = "0.13.0";

/// Debian's compiler for web browsers: newer than `rustc`, and with a `core` for the BPF target.
const COMPILER: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// Debian's packages that cannot be installed beside `rustc-web`.
const RIVALS: [&str; 2] = ["rustc", "rustup"];

const BY_HAND: &str = "set up the usual tools of Rust eBPF, then run again:\n    \
    rustup toolchain install nightly --component rust-src\n    \
    cargo install bpf-linker";

/// What to set up.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only what the tests need beyond the build: other Pythons, readers of the output formats.
    #[arg(long)]
    tests: bool,
}

/// The command: the eBPF tools, or with `--tests` what the tests need.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.tests {
        testbed::prepare()?.report();
        return Ok(());
    }
    ebpf()
}

/// Makes sure that `profiler/build.rs` will find an eBPF compiler and linker.
pub(crate) fn ebpf() -> Result<()> {
    let cache = cache()?;
    let _turn = turn(&cache)?;
    let record = record_in(&cache);
    if Toolchain::load(&record).is_ok() {
        return Ok(());
    }
    let toolchain = match Toolchain::usual() {
        Ok(toolchain) => {
            say("building the eBPF program with the nightly toolchain and bpf-linker on PATH");
            toolchain
        }
        Err(missing) if Apt::is_here() => {
            say(&format!(
                "{missing:#}: setting up Debian's eBPF compiler instead"
            ));
            debian(&cache)?
        }
        Err(missing) => bail!("the eBPF program cannot be built here ({missing:#}): {BY_HAND}"),
    };
    toolchain.verify()?;
    replace(&record, &render(&toolchain))
}

/// The cache folder, made where it was not.
pub(crate) fn cache() -> Result<PathBuf> {
    let cache = cache_folder()?;
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot make the cache folder {}", cache.display()))?;
    Ok(cache)
}

/// Holds the cache folder against another set-up until it is dropped.
pub(crate) fn turn(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn debian(cache: &Path) -> Result<Toolchain> {
    let mut apt = Apt::default();
    let installed = COMPILER.iter().all(|package| Apt::has(package));
    if !installed && !COMPILER.iter().all(|package| apt.offers(package)) {
        let names = COMPILER.join(" and ");
        bail!("the package sources of this machine have no {names}: {BY_HAND}");
    }
    let rival = RIVALS.into_iter().find(|package| Apt::has(package));
    let (rustc, library_path) = match rival {
        Some(rival) if !installed => {
            say(&format!(
                "{rival} is installed, which excludes rustc-web: unpacking instead"
            ));
            unpacked(cache, &mut apt)?
        }
        _ => {
            apt.install(&COMPILER, "to compile the eBPF program")?;
            (PathBuf::from("/usr/bin/rustc"), None)
        }
    };
    let llvm = llvm_major(&rustc, library_path.as_ref())?;
    let linker = bpf_linker(cache, &mut apt, llvm)?;
    Ok(Toolchain {
        rustc,
        cargo: None,
        linker,
        library_path,
        build_std: false,
        llvm,
    })
}

/// Unpacks the compiler into the cache folder; gives it and its library path.
fn unpacked(cache: &Path, apt: &mut Apt) -> Result<(PathBuf, Option<OsString>)> {
    let folder = cache.join("rustc-web");
    let packages = apt.closure(&COMPILER, "libstd-rust-web")?;
    let mut llvm = None;
    for package in &packages {
        llvm = llvm.or(apt
            .needs(package)?
            .into_iter()
            .find(|name| name.starts_with("libllvm")));
    }
    // Its LLVM excludes nobody's Rust and is needed for the linker anyway.
    let llvm = llvm.context("none of rustc-web's libraries depends on an LLVM")?;
    apt.install(&[&llvm], "the code generator of the eBPF compiler")?;

    let new = cache.join("rustc-web.new");
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
    }
    fs::create_dir_all(&new).with_context(|| format!("cannot make {}", new.display()))?;
    let mut download = Command::new("apt-get");
    download.args(["--quiet", "download"]).args(&packages);
    quietly(download.current_dir(&new))?;
    for entry in fs::read_dir(&new)? {
        let archive = entry?.path();
        if archive
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            quietly(
                Command::new("dpkg")
                    .arg("--extract")
                    .arg(&archive)
                    .arg(&new),
            )?;
            fs::remove_file(&archive)?;
        }
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::rename(&new, &folder).with_context(|| format!("cannot make {}", folder.display()))?;

    let libraries = folder.join("usr/lib");
    let by_architecture = libraries.join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let path = std::env::join_paths([by_architecture, libraries])
        .with_context(|| format!("{} has a colon in its name", folder.display()))?;
    Ok((folder.join("usr/bin/rustc"), Some(path)))
}

/// Builds `bpf-linker` against this LLVM unless the cache folder has it.
fn bpf_linker(cache: &Path, apt: &mut Apt, llvm: u32) -> Result<PathBuf> {
    let root = cache.join(format!("bpf-linker-{BPF_LINKER}-llvm{llvm}"));
    let linker = root.join("bin/bpf-linker");
    if quietly(Command::new(&linker).arg("--version")).is_ok() {
        return Ok(linker);
    }
    let package = format!("llvm-{llvm}-dev");
    apt.install(
        &[&package],
        "to build bpf-linker against the compiler's LLVM",
    )?;
    say(&format!(
        "building bpf-linker {BPF_LINKER} against LLVM {llvm} (two minutes or so)"
    ));
    let mut install = cargo();
    install
        .args(["install", "bpf-linker", "--locked", "--force", "--version"])
        .args([BPF_LINKER, "--no-default-features", "--features"])
        .arg(format!("llvm-{llvm}"))
        .arg("--root")
        .arg(&root)
        // Without it the build looks for LLVM where Debian does not keep it.
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
        // Away from this workspace's configuration.
        .current_dir(cache);
    quietly(&mut install).with_context(|| {
        format!("bpf-linker {BPF_LINKER} did not build against LLVM {llvm}: {BY_HAND}")
    })?;
    Ok(linker)
}

fn render(toolchain: &Toolchain) -> String {
    let mut text = String::from(
        "# Written by `cargo xtask setup`, read by profiler/build.rs. Remove it to choose anew.\n",
    );
    let mut field = |name: &str, value: &str| {
        text.push_str(&format!("{name} = {value}\n"));
    };
    field("rustc", &toolchain.rustc.to_string_lossy());
    if let Some(cargo) = &toolchain.cargo {
        field("cargo", &cargo.to_string_lossy());
    }
    field("linker", &toolchain.linker.to_string_lossy());
    if let Some(path) = &toolchain.library_path {
        field("library-path", &path.to_string_lossy());
    }
    field("build-std", if toolchain.build_std { "yes" } else { "no" });
    field("llvm", &toolchain.llvm.to_string());
    text
}

/// Writes the whole file or nothing.
fn replace(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("the record has no folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write in {}", folder.display()))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.persist(path).map(drop).map_err(|error| error.error))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with programs that say what `rustc -vV` says of its LLVM.
    fn tools(llvm: u32) -> (tempfile::TempDir, Toolchain) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tool = |name: &str| {
            let path = folder.path().join(name);
            // By a process of its own: a file that we hold open for writing cannot be run while
            // another test's fork has it too.
            let script = r##"{ echo '#!/bin/sh'; echo "echo LLVM version: $1.1.8"; } > "$0"
                chmod +x "$0""##;
            let mut shell = Command::new("sh");
            quietly(shell.args(["-c", script]).arg(&path).arg(llvm.to_string())).expect("written");
            path
        };
        let toolchain = Toolchain {
            rustc: tool("rustc"),
            cargo: Some(tool("cargo")),
            linker: tool("bpf-linker"),
            library_path: Some("/a:/b".into()),
            build_std: true,
            llvm: 22,
        };
        (folder, toolchain)
    }

    /// Writes the record, as set-up does, and reads it, as the build does.
    fn recorded(folder: &tempfile::TempDir, toolchain: &Toolchain) -> Result<Toolchain> {
        let record = record_in(folder.path());
        replace(&record, &render(toolchain))?;
        Toolchain::load(&record)
    }

    #[test]
    fn the_build_reads_what_setup_chose() {
        let (folder, mut toolchain) = tools(22);
        let read = recorded(&folder, &toolchain).expect("it is whole");
        assert_eq!(read, toolchain);
        (toolchain.cargo, toolchain.library_path, toolchain.build_std) = (None, None, false);
        let read = recorded(&folder, &toolchain).expect("it is whole");
        assert_eq!(read, toolchain);
    }

    #[test]
    fn a_compiler_that_moved_to_another_llvm_is_stale() {
        let (folder, toolchain) = tools(23);
        let error = recorded(&folder, &toolchain).expect_err("bpf-linker has LLVM 22");
        let message = error.to_string();
        assert!(
            message.ends_with("has LLVM 23 now and had 22 when bpf-linker was chosen"),
            "{message}"
        );
    }

    #[test]
    fn a_linker_that_is_gone_is_named() {
        let (folder, toolchain) = tools(22);
        fs::remove_file(&toolchain.linker).expect("removed");
        let error = recorded(&folder, &toolchain).expect_err("the linker is gone");
        assert!(error.to_string().ends_with("bpf-linker is gone"), "{error}");
    }

    #[test]
    fn a_malformed_record_says_what_is_wrong() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let record = record_in(folder.path());
        let error_for = |text: &str| {
            fs::write(&record, text).expect("written");
            format!("{:#}", Toolchain::load(&record).expect_err("malformed"))
        };
        assert!(error_for("llvm = 22\n").ends_with("there is no `rustc = …`"));
        let text = "rustc = /r\nlinker = /l\nllvm = new\n";
        assert!(error_for(text).contains("llvm = new is no number"));
    }
}
