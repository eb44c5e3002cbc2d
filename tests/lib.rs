//! What the tests share: the Pythons to test on, workloads on them, runs of the built `pyebpf`, and
//! a reader of its collapsed stacks. What a machine lacks is skipped by name, never silently.

pub mod agent;
pub mod containerd;
pub mod example;
pub mod fake_agent;
pub mod kernel_time;
pub mod matrix;
pub mod memory_pressure;
pub mod pythons;
pub mod raw;
pub mod recording;
pub mod start;
pub mod workload;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Says that a test, or a part of it, does not run here, and why.
///
/// The line goes to stderr and, where the environment variable `PYEBPF_SKIPPED` names a file, is
/// appended to that file, so that a summary can list what was skipped.
pub fn skip(test: &str, why: &str) {
    let line = format!("skipped: {test}: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("PYEBPF_SKIPPED") {
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            eprintln!("cannot append to {}: {error}", path.display());
        }
    }
}

/// A file that `cargo xtask setup --tests` has put into the cache folder. Says so where it is missing.
pub fn installed(test: &str, path: &str) -> Option<PathBuf> {
    let path = pythons::cache().unwrap_or_default().join(path);
    if path.exists() {
        return Some(path);
    }
    skip(test, &format!("{} is missing", path.display()));
    None
}

/// Whether the test can run at all: it needs root. Says so where it can't.
pub fn can_profile(test: &str) -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        skip(test, "needs root");
    }
    root
}

/// Lets one live test run at a time: they share the machine's CPUs, and some count what is on them.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A failed test leaves nothing half-done behind the lock.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Collects what failed in the parts of one test, so that one Python's failure hides no other's.
#[derive(Debug, Default)]
pub struct Parts {
    failures: Vec<String>,
    /// Shown with the failures, where there are any.
    details: String,
}

impl Parts {
    /// Notes how the part of this name went.
    pub fn note(&mut self, part: &str, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.failures.push(format!("{part}: {error:#}"));
        }
    }

    /// Adds what may explain a failure.
    pub fn add(&mut self, detail: &str) {
        self.details.push_str(detail);
    }

    /// Ends the test.
    ///
    /// # Panics
    ///
    /// When a part failed, with all the failures.
    pub fn finish(self) {
        let failures = self.failures.join("\n");
        assert!(failures.is_empty(), "\n{failures}\n{}", self.details);
    }
}
