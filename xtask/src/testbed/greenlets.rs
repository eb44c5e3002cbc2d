//! greenlet for the Pythons of pyenv, `greenlet/3.N` in the cache folder: tests look at its stacks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::apt::Apt;
use crate::process::{quietly, say};

/// The minor versions that it is made for.
const MINORS: std::ops::RangeInclusive<u32> = 8..=13;

/// Installs it where it is not; fails, with the reasons, when it can't be had for some of them.
pub(super) fn prepare(cache: &Path, _apt: &mut Apt) -> Result<()> {
    let mut failures = Vec::new();
    for minor in MINORS {
        let folder = cache.join(format!("greenlet/3.{minor}"));
        let Some(python) = pyenv(minor) else {
            continue;
        };
        if folder.join("greenlet").is_dir() {
            continue;
        }
        say(&format!("installing greenlet for CPython 3.{minor}"));
        let mut command = Command::new(python);
        command.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:"]);
        command.arg("--target").arg(&folder).arg("greenlet");
        if let Err(error) = quietly(&mut command) {
            failures.push(format!("3.{minor}: {error:#}"));
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

fn pyenv(minor: u32) -> Option<PathBuf> {
    let prefix = format!("3.{minor}.");
    let versions = PathBuf::from(std::env::var_os("HOME")?).join(".pyenv/versions");
    let entries = fs::read_dir(versions).ok()?.flatten();
    let mut folders =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let python = folders.next()?.path().join("bin/python3");
    python.is_file().then_some(python)
}
