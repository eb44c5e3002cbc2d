//! Builds the eBPF object of `profiler-ebpf` and leaves it as `pyebpf-kernel` in `OUT_DIR`, for the
//! loader to embed. The compiler and the linker are those that `cargo xtask setup` has chosen.
//! A cargo of our own rather than aya-build: that one prints its progress as warnings at every build.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use toolchain::{Toolchain, cache_folder, record_in};

const OBJECT: &str = "pyebpf-kernel";

/// Little-endian, as every machine that pyebpf supports.
const TARGET: &str = "bpfel-unknown-none";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // By hand: cargo shows it whole, and a returned error would bring a backtrace along.
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let object = folder("OUT_DIR")?.join(OBJECT);
    println!("cargo::rerun-if-env-changed=AYA_BUILD_SKIP");
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|value| value == "1" || value == "true") {
        // For documentation and lints where no eBPF compiler is: the program links, but cannot load.
        println!(
            "cargo::warning=AYA_BUILD_SKIP is set: pyebpf is built without its kernel program"
        );
        return fs::write(&object, []).with_context(|| format!("writing {}", object.display()));
    }

    let root = folder("CARGO_MANIFEST_DIR")?.join("..");
    for input in ["profiler-ebpf", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../xtask/src/toolchain.rs");

    let record = record_in(&cache_folder()?);
    let toolchain = match Toolchain::load(&record) {
        Ok(toolchain) => {
            println!("cargo::rerun-if-changed={}", record.display());
            toolchain
        }
        Err(unusable) => match Toolchain::usual() {
            Ok(toolchain) => toolchain,
            Err(missing) => {
                println!(
                    "cargo::error=the eBPF program cannot be built ({unusable:#}; {missing:#}): \
                     run `cargo xtask setup`"
                );
                return Ok(());
            }
        },
    };
    for tool in [&toolchain.rustc, &toolchain.linker] {
        println!("cargo::rerun-if-changed={}", tool.display());
    }
    build(&toolchain, &root, &object)
}

/// Runs cargo for the object: silent on success, the compiler's words whole on failure.
fn build(toolchain: &Toolchain, root: &Path, object: &Path) -> Result<()> {
    let target_folder = folder("OUT_DIR")?.join("ebpf");
    let mut command = match &toolchain.cargo {
        Some(cargo) => Command::new(cargo),
        None => Command::new(env::var_os("CARGO").context("CARGO is not set")?),
    };
    command
        .current_dir(root)
        .args(["build", "--quiet", "--release", "--package=profiler-ebpf"])
        .args(["--bin", OBJECT, "--features=kernel", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_folder);
    if toolchain.build_std {
        command.arg("-Zbuild-std=core");
    }
    environment(toolchain, &mut command)?;

    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{said}");
        bail!("the eBPF program did not build: {}", output.status);
    }
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        println!("cargo::warning={line}");
    }

    let built = target_folder.join(TARGET).join("release").join(OBJECT);
    fs::copy(&built, object)
        .with_context(|| format!("copying {} to {}", built.display(), object.display()))?;
    Ok(())
}

fn environment(toolchain: &Toolchain, command: &mut Command) -> Result<()> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH")?;
    let flags = [
        // Whose registers a context holds: aya-ebpf's bindings differ by it.
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        // Type information: the verifier refuses the callback of `bpf_loop` without it.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    let mut path = OsString::from(toolchain.linker.parent().unwrap_or(Path::new("/")));
    if let Some(rest) = env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    command
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("PATH", path)
        // Under clippy this names clippy-driver, which belongs to the other compiler.
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    if !toolchain.build_std {
        // aya-ebpf needs inline assembly for the BPF target, which is unstable; only that crate may.
        command.env("RUSTC_BOOTSTRAP", "aya_ebpf");
    }
    if let Some(folders) = &toolchain.library_path {
        command.env("LD_LIBRARY_PATH", folders);
    }
    Ok(())
}

fn folder(variable: &str) -> Result<PathBuf> {
    let value = env::var_os(variable).with_context(|| format!("{variable} is not set by cargo"))?;
    Ok(PathBuf::from(value))
}
