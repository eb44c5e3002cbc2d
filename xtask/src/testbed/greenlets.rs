//! greenlet and gevent for the Pythons of pyenv, `greenlet/3.N` and `gevent/3.N` in the cache folder:
//! tests look at their stacks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::apt::Apt;
use crate::process::{quietly, say};

/// The minor versions that it is made for.
const MINORS: std::ops::RangeInclusive<u32> = 8..=13;

/// Installs them where they are not; fails, with the reasons, where they can't be had.
pub(super) fn prepare(cache: &Path, _apt: &mut Apt) -> Result<()> {
    let mut failures = Vec::new();
    let wanted = MINORS.flat_map(|minor| ["greenlet", "gevent"].map(|package| (minor, package)));
    for (minor, package) in wanted {
        let folder = cache.join(format!("{package}/3.{minor}"));
        let Some(python) = pyenv(minor) else {
            continue;
        };
        if folder.join(package).is_dir() {
            continue;
        }
        say(&format!("installing {package} for CPython 3.{minor}"));
        let mut command = Command::new(python);
        command.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:"]);
        command.arg("--target").arg(&folder).arg(package);
        if let Err(error) = quietly(&mut command) {
            failures.push(format!("{package} for 3.{minor}: {error:#}"));
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

/// The program of pyenv's Python of this minor version.
pub(super) fn pyenv(minor: u32) -> Option<PathBuf> {
    let prefix = format!("3.{minor}.");
    let versions = PathBuf::from(std::env::var_os("HOME")?).join(".pyenv/versions");
    let entries = fs::read_dir(versions).ok()?.flatten();
    let mut folders =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let python = folders.next()?.path().join("bin/python3");
    python.is_file().then_some(python)
}
