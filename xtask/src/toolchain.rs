//! The small file by which `cargo xtask setup` tells `profiler/build.rs` which compiler and which
//! linker make the eBPF object. Both include this module; it only reads and describes.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

/// What a build of the eBPF object needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// The compiler, an absolute path; it knows the target `bpfel-unknown-none`.
    pub(crate) rustc: PathBuf,
    /// The cargo to drive it with; `None` means the one that is running.
    pub(crate) cargo: Option<PathBuf>,
    /// `bpf-linker`, an absolute path, built against the compiler's LLVM.
    pub(crate) linker: PathBuf,
    /// `LD_LIBRARY_PATH` for a compiler that was unpacked instead of installed.
    pub(crate) library_path: Option<OsString>,
    /// The compiler has no ready-made `core` for the target: build it from `rust-src`.
    pub(crate) build_std: bool,
    /// Major version of the compiler's LLVM when this was written; another one now means stale.
    pub(crate) llvm: u32,
}

/// The cache folder of this project: `$XDG_CACHE_HOME/pyebpf`, else `~/.cache/pyebpf`.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    // A relative XDG_CACHE_HOME is to be ignored (XDG Base Directory Specification 0.8).
    let xdg = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let base = match xdg {
        Some(path) => path,
        None => {
            let home = env::var_os("HOME").filter(|home| !home.is_empty());
            let home = home.context("HOME is not set: set it, or XDG_CACHE_HOME, to a folder")?;
            Path::new(&home).join(".cache")
        }
    };
    Ok(base.join("pyebpf"))
}

/// Where in the cache folder the choice is recorded.
pub(crate) fn record_in(cache: &Path) -> PathBuf {
    cache.join("ebpf-toolchain")
}

impl Toolchain {
    /// Reads the record; says why when it cannot be used, be it absent, malformed or stale.
    pub(crate) fn load(record: &Path) -> Result<Self> {
        let text = fs::read_to_string(record)
            .with_context(|| format!("no record of an eBPF toolchain at {}", record.display()))?;
        let toolchain = Self::parse(&text).with_context(|| format!("in {}", record.display()))?;
        toolchain.verify()?;
        Ok(toolchain)
    }

    /// The usual set-up: a nightly of rustup with `rust-src`, and `bpf-linker` on `PATH`.
    pub(crate) fn usual() -> Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let linker = env::split_paths(&path)
            .map(|folder| folder.join("bpf-linker"))
            .find(|file| file.is_absolute() && file.is_file())
            .context("no bpf-linker on PATH")?;
        let rustc = rustup_which("rustc")?;
        let cargo = rustup_which("cargo")?;
        let sysroot = rustc
            .ancestors()
            .nth(2)
            .with_context(|| format!("{} has no folder above its own", rustc.display()))?;
        if !sysroot
            .join("lib/rustlib/src/rust/library/core/src")
            .is_dir()
        {
            bail!("the nightly toolchain has no rust-src component");
        }
        let llvm = llvm_major(&rustc, None)?;
        Ok(Self {
            rustc,
            cargo: Some(cargo),
            linker,
            library_path: None,
            build_std: true,
            llvm,
        })
    }

    /// Checks that the files are there and that the compiler still has the LLVM it had.
    pub(crate) fn verify(&self) -> Result<()> {
        let files = [Some(&self.rustc), Some(&self.linker), self.cargo.as_ref()];
        for file in files.into_iter().flatten() {
            if !file.is_file() {
                bail!("{} is gone", file.display());
            }
        }
        let now = llvm_major(&self.rustc, self.library_path.as_ref())?;
        if now != self.llvm {
            let (rustc, was) = (self.rustc.display(), self.llvm);
            bail!("{rustc} has LLVM {now} now and had {was} when bpf-linker was chosen");
        }
        Ok(())
    }

    fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim())
                .filter(|value| !value.is_empty())
        };
        let needed = |name: &str| field(name).ok_or_else(|| anyhow!("there is no `{name} = …`"));
        let llvm = needed("llvm")?;
        Ok(Self {
            rustc: needed("rustc")?.into(),
            cargo: field("cargo").map(PathBuf::from),
            linker: needed("linker")?.into(),
            library_path: field("library-path").map(OsString::from),
            build_std: field("build-std") == Some("yes"),
            llvm: llvm
                .parse()
                .with_context(|| format!("llvm = {llvm} is no number"))?,
        })
    }
}

/// The major version of the LLVM inside `rustc`, as `rustc -vV` prints it.
pub(crate) fn llvm_major(rustc: &Path, library_path: Option<&OsString>) -> Result<u32> {
    let mut command = Command::new(rustc);
    command.arg("-vV");
    if let Some(folders) = library_path {
        command.env("LD_LIBRARY_PATH", folders);
    }
    let output = command
        .output()
        .with_context(|| format!("cannot run {} -vV", rustc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|version| version.split('.').next())
        .and_then(|major| major.trim().parse().ok())
        .with_context(|| format!("{} -vV names no LLVM version", rustc.display()))
}

fn rustup_which(program: &str) -> Result<PathBuf> {
    let output = Command::new("rustup")
        .args(["which", "--toolchain", "nightly", program])
        // Asking must not download a toolchain.
        .env("RUSTUP_AUTO_INSTALL", "0")
        .output()
        .context("cannot run rustup")?;
    if !output.status.success() {
        bail!("rustup has no nightly toolchain");
    }
    Ok(PathBuf::from(
        String::from_utf8_lossy(&output.stdout).trim(),
    ))
}
