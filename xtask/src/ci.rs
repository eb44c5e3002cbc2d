//! `cargo xtask ci`: format, lints, tests and two other kernels. Every step runs even when one before
//! it failed; each says what it is and how long it took.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::process::{cargo, find, openly, quietly, say};
use crate::{setup, test, vm};

/// A step's name and what it does.
type Step = (&'static str, fn() -> Result<()>);

const STEPS: [Step; 6] = [
    ("set-up", prepare),
    ("format", format),
    ("lints", lints),
    ("lints of the kernel program", kernel_lints),
    ("tests", || test::run(&test::Args::default())),
    ("other kernels", vm::in_ci),
];

/// The command.
pub(crate) fn run() -> Result<()> {
    let mut failed = Vec::new();
    let mut times = Vec::new();
    for (name, step) in STEPS {
        say(&format!("── {name}"));
        let start = Instant::now();
        let result = step();
        let seconds = start.elapsed().as_secs_f64();
        let outcome = if result.is_ok() { "passed" } else { "failed" };
        times.push(format!("{seconds:7.1} s  {outcome}  {name}"));
        if let Err(error) = result {
            eprintln!("error: {error:#}");
            failed.push(name);
        }
    }
    for line in times {
        say(&line);
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn prepare() -> Result<()> {
    for (component, program) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if quietly(cargo().args([program, "--version"])).is_err() && find("rustup").is_some() {
            say(&format!("rustup component add {component}"));
            quietly(std::process::Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    setup::ebpf()
}

fn format() -> Result<()> {
    openly(cargo().args(["fmt", "--all", "--check"]))?;
    // Apart from the workspace.
    let fuzz = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/Cargo.toml");
    openly(cargo().args(["fmt", "--check", "--manifest-path", fuzz]))
}

fn lints() -> Result<()> {
    let mut command = cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--"]);
    openly(command.args(["-D", "warnings"]))
}

/// The kernel program for the host: it is never linked, but its code can be looked at.
fn kernel_lints() -> Result<()> {
    let mut command = cargo();
    command
        .args(["clippy", "--package=profiler-ebpf", "--features=kernel"])
        .args(["--bins", "--", "-D", "warnings"])
        // A program without std has no unwinding; and aya-ebpf wants its inline assembly.
        .env("CARGO_PROFILE_DEV_PANIC", "abort")
        .env("RUSTC_BOOTSTRAP", "aya_ebpf");
    openly(&mut command)
}
