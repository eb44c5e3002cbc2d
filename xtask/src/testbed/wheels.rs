//! A virtual environment with wheels of C, C++, Rust and Fortran, `wheels` in the cache folder: their
//! native stacks are compared with what others find, and their unwind tables measured.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::greenlets::pyenv;
use crate::process::{quietly, say};

/// What is installed, with what it needs.
const PACKAGES: [&str; 8] = [
    "cryptography",
    "grpcio",
    "numpy",
    "orjson",
    "polars",
    "pyarrow",
    "pydantic-core",
    "scipy",
];

/// Installs them where they are not; `tables`: and torch, which without what it needs is a file to read.
pub(super) fn prepare(cache: &Path, tables: bool) -> Result<()> {
    let folder = cache.join("wheels");
    let python = folder.join("bin/python");
    if !python.is_file() {
        let system = (11..=13).rev().find_map(pyenv);
        let mut venv = Command::new(system.unwrap_or_else(|| "python3".into()));
        quietly(venv.args(["-m", "venv"]).arg(&folder))?;
    }
    install(&python, &[], &PACKAGES)?;
    if tables {
        install(&python, &["--no-deps"], &["torch"])?;
    }
    Ok(())
}

/// Asks nobody where all is there.
fn install(python: &Path, options: &[&str], packages: &[&str]) -> Result<()> {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "show", "--quiet"]).args(packages);
    if quietly(&mut pip).is_ok() {
        return Ok(());
    }
    say(&format!("installing {}", packages.join(", ")));
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:"]);
    quietly(pip.args(options).args(packages))
}
