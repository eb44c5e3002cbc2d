//! Finds the Pythons of this machine that live tests run on, and starts workloads on them. It
//! installs nothing: what is missing is named and skipped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::skip;
use crate::workload::{Target, folder};

/// One CPython to test on.
#[derive(Clone, Debug)]
pub struct Python {
    /// What tests call it: `pyenv 3.9`, `stripped 3.9`, `system 3.11`, `sid 3.15`.
    pub name: String,
    /// The minor version: 9 for 3.9.
    pub minor: u32,
    program: PathBuf,
    /// The root folder that it is run in, for a Python that needs another C library.
    root: Option<PathBuf>,
    /// Holds the stripped copy of its libpython.
    library: Option<Arc<TempDir>>,
}

/// Every Python that is wanted for live tests and is here; the others are skipped by name.
pub fn all(test: &str) -> Vec<Python> {
    let mut found = Vec::new();
    let mut wanted: Vec<(String, Option<Python>)> = Vec::new();
    for minor in 6..=13 {
        wanted.push((format!("pyenv 3.{minor}"), pyenv(minor)));
    }
    wanted.push(("system python3".to_owned(), system()));
    for minor in 13..=15 {
        wanted.push((format!("sid 3.{minor}"), sid(minor)));
    }
    for minor in [6, 9] {
        wanted.push((format!("stripped 3.{minor}"), stripped(minor)));
    }
    for (name, python) in wanted {
        match python {
            Some(python) => found.push(python),
            None => skip(&format!("{test} on {name}"), "this Python is not here"),
        }
    }
    found
}

/// The one Python that a test needs which is not about versions: the first of [`all`] from 3.8 on.
pub fn any(test: &str) -> Option<Python> {
    let python = (8..=13)
        .find_map(pyenv)
        .or_else(system)
        .or_else(|| (13..=15).find_map(sid));
    if python.is_none() {
        skip(test, "no Python is here");
    }
    python
}

impl Python {
    /// A command that runs `arguments[0]`, a file of `folder`, with the other arguments.
    pub fn command(&self, folder: &Path, arguments: &[&str]) -> Command {
        let (script, rest) = arguments.split_first().expect("a script is named");
        let mut command = match &self.root {
            None => {
                let mut command = Command::new(&self.program);
                command.arg("-B").arg(folder.join(script));
                command
            }
            // Each program replaces the one before, so the process id stays that of the child.
            Some(root) => {
                let mut command = Command::new("unshare");
                command
                    .args(["--mount", "sh", "-c"])
                    .arg(r#"mount --bind "$1" "$0/mnt" && shift && exec chroot "$0" "$@""#)
                    .arg(root)
                    .arg(folder)
                    .arg(&self.program)
                    .arg("-B")
                    .arg(Path::new("/mnt").join(script));
                command
            }
        };
        if let Some(library) = &self.library {
            command.env("LD_LIBRARY_PATH", library.path());
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PYTHON") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C.UTF-8").args(rest);
        command
    }

    /// Path of the interpreter, as a process of this machine's own root sees it.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts a workload of [`folder`] and waits for its first line.
    ///
    /// # Errors
    ///
    /// When it can't be started or ends before it says what it is.
    pub fn start(&self, arguments: &[&str]) -> Result<Target> {
        Target::start(self.command(&folder(), arguments)).with_context(|| self.name.clone())
    }
}

fn pyenv(minor: u32) -> Option<Python> {
    let prefix = format!("3.{minor}.");
    let versions = PathBuf::from(std::env::var_os("HOME")?).join(".pyenv/versions");
    let folder = fs::read_dir(versions)
        .ok()?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))?;
    let program = folder.path().join("bin/python3");
    program.is_file().then(|| Python {
        name: format!("pyenv 3.{minor}"),
        minor,
        program,
        root: None,
        library: None,
    })
}

fn system() -> Option<Python> {
    let program = fs::canonicalize("/usr/bin/python3").ok()?;
    let name = program.file_name()?.to_str()?;
    let minor = name.strip_prefix("python3.")?.parse().ok()?;
    Some(Python {
        name: format!("system 3.{minor}"),
        minor,
        program,
        root: None,
        library: None,
    })
}

fn sid(minor: u32) -> Option<Python> {
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) if !cache.is_empty() => PathBuf::from(cache),
        _ => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    let root = cache.join("pyebpf/roots/sid");
    let program = format!("/usr/bin/python3.{minor}");
    root.join(program.trim_start_matches('/'))
        .exists()
        .then(|| Python {
            name: format!("sid 3.{minor}"),
            minor,
            program: PathBuf::from(program),
            root: Some(root),
            library: None,
        })
}

/// A pyenv Python that finds a stripped copy of its libpython in a temporary folder.
fn stripped(minor: u32) -> Option<Python> {
    let python = pyenv(minor)?;
    let libraries = python.program.parent()?.parent()?.join("lib");
    let prefix = format!("libpython3.{minor}");
    let library = fs::read_dir(libraries)
        .ok()?
        .filter_map(Result::ok)
        .find(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(".so.1.0")
        })?;
    let folder = TempDir::new().ok()?;
    let copy = folder.path().join(library.file_name());
    let output = File::create(folder.path().join("strip.log")).ok()?;
    let done = Command::new("strip")
        .arg("-o")
        .arg(&copy)
        .arg(library.path())
        .stderr(output)
        .status();
    done.is_ok_and(|status| status.success()).then(|| Python {
        name: format!("stripped 3.{minor}"),
        library: Some(Arc::new(folder)),
        ..python
    })
}
