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
    /// What tests call it: `pyenv 3.9`, `stripped 3.9`, `system 3.11`, `sid 3.15`,
    /// `free-threaded 3.13`.
    pub name: String,
    /// The minor version: 9 for 3.9.
    pub minor: u32,
    /// Whether it runs without a GIL.
    pub free_threaded: bool,
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
    wanted.push(("free-threaded 3.13".to_owned(), free_threaded()));
    for (name, python) in wanted {
        match python {
            Some(python) => found.push(python),
            None => skip(&format!("{test} on {name}"), "this Python is not here"),
        }
    }
    found
}

/// Python 2.7, which runs few of the workloads.
pub fn old(test: &str) -> Option<Python> {
    let python = pyenv_of("2.7", "bin/python2.7").map(|program| Python {
        name: "pyenv 2.7".to_owned(),
        minor: 7,
        free_threaded: false,
        program,
        root: None,
        library: None,
    });
    if python.is_none() {
        skip(test, "no Python 2.7 is here");
    }
    python
}

/// A CPython that pyebpf refuses and that is here: a debug build.
pub fn refused() -> Option<PathBuf> {
    let programs = fs::read_dir("/usr/bin").ok()?.filter_map(Result::ok);
    programs.map(|entry| entry.path()).find(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("python3.") && name.ends_with("-dbg"))
    })
}

/// A Python on musl, built without the modules that need other libraries.
pub fn musl(test: &str) -> Option<Python> {
    let program = cache().map(|cache| cache.join("musl-3.13/python"));
    let program = program.filter(|program| program.is_file());
    if program.is_none() {
        skip(test, "no Python on musl is here");
    }
    program.map(|program| Python {
        name: "musl 3.13".to_owned(),
        minor: 13,
        free_threaded: false,
        program,
        root: None,
        library: None,
    })
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
        let mut command = match &self.root {
            None => {
                let mut command = Command::new(&self.program);
                command.args(self.arguments(folder, arguments));
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
                    .args(self.arguments(Path::new("/mnt"), arguments));
                command
            }
        };
        self.set_variables(&mut command);
        command
    }

    /// What follows the interpreter's own name, to run `arguments[0]`, a file of `folder`.
    pub(crate) fn arguments(&self, folder: &Path, arguments: &[&str]) -> Vec<PathBuf> {
        let (script, rest) = arguments.split_first().expect("a script is named");
        let mut words = vec![PathBuf::from("-B"), folder.join(script)];
        words.extend(rest.iter().map(PathBuf::from));
        words
    }

    /// The environment variables that it needs.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        let mut variables = vec![("LC_ALL".to_owned(), "C.UTF-8".to_owned())];
        if let Some(library) = &self.library {
            let folder = library.path().to_string_lossy().into_owned();
            variables.push(("LD_LIBRARY_PATH".to_owned(), folder));
        }
        variables
    }

    /// Gives a command the variables, and takes away what would make Python behave otherwise.
    pub(crate) fn set_variables(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PYTHON") {
                command.env_remove(name);
            }
        }
        command.envs(self.variables());
    }

    /// The root folder that it is run in, where it needs another C library than this machine's.
    pub(crate) fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The folders beyond those of the system that it needs to run.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        // One that was not installed runs where it was built.
        let built = self.program.with_file_name("pybuilddir.txt").exists();
        let levels = if built { 1 } else { 2 };
        let own = self.program.ancestors().nth(levels).map(Path::to_owned);
        let own = own.filter(|folder| !folder.starts_with("/usr"));
        let library = self.library.as_ref().map(|folder| folder.path().to_owned());
        own.into_iter().chain(library).collect()
    }

    /// The words that run it outside of its root folder: its own dynamic loader and where that finds
    /// its libraries. None for one that has no root folder.
    ///
    /// # Errors
    ///
    /// When the folder has no loader.
    pub(crate) fn by_its_loader(&self) -> Result<Option<Vec<PathBuf>>> {
        let Some(root) = &self.root else {
            return Ok(None);
        };
        let loader = root.join("lib64/ld-linux-x86-64.so.2");
        let loader = fs::canonicalize(&loader).with_context(|| loader.display().to_string())?;
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        let program = root.join(self.program.strip_prefix("/")?);
        Ok(Some(vec![
            loader,
            PathBuf::from("--library-path"),
            libraries,
            program,
        ]))
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
    let program = pyenv_of(&format!("3.{minor}"), "bin/python3")?;
    Some(Python {
        name: format!("pyenv 3.{minor}"),
        minor,
        free_threaded: false,
        program,
        root: None,
        library: None,
    })
}

/// A program of pyenv's Python of this version.
fn pyenv_of(version: &str, program: &str) -> Option<PathBuf> {
    let prefix = format!("{version}.");
    let versions = PathBuf::from(std::env::var_os("HOME")?).join(".pyenv/versions");
    let folder = fs::read_dir(versions)
        .ok()?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))?;
    Some(folder.path().join(program)).filter(|program| program.is_file())
}

/// What `cargo xtask setup --tests` built.
fn free_threaded() -> Option<Python> {
    let program = cache()?.join("freethreaded-3.13/python");
    program.is_file().then(|| Python {
        name: "free-threaded 3.13".to_owned(),
        minor: 13,
        free_threaded: true,
        program,
        root: None,
        library: None,
    })
}

/// The cache folder of the set-up.
pub fn cache() -> Option<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) if !cache.is_empty() => PathBuf::from(cache),
        _ => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    Some(cache.join("pyebpf"))
}

fn system() -> Option<Python> {
    let program = fs::canonicalize("/usr/bin/python3").ok()?;
    let name = program.file_name()?.to_str()?;
    let minor = name.strip_prefix("python3.")?.parse().ok()?;
    Some(Python {
        name: format!("system 3.{minor}"),
        minor,
        free_threaded: false,
        program,
        root: None,
        library: None,
    })
}

fn sid(minor: u32) -> Option<Python> {
    let root = cache()?.join("roots/sid");
    let program = format!("/usr/bin/python3.{minor}");
    root.join(program.trim_start_matches('/'))
        .exists()
        .then(|| Python {
            name: format!("sid 3.{minor}"),
            minor,
            free_threaded: false,
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
