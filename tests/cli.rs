//! What the built `pyebpf` does with bad input, with its outputs and with signals: the essential
//! words of each message, the exit code, and that nothing is left half-written.

mod cli_commands;
mod cli_doctor;
mod cli_errors;
mod cli_outputs;
mod cli_places;
mod cli_stderr;
mod cli_targets;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use pyebpf_tests::pythons;
use pyebpf_tests::recording::{Ended, Running, pyebpf};
use pyebpf_tests::workload::Target;
use tempfile::TempDir;

fn run(command: &mut Command) -> Ended {
    Running::start(command)
        .and_then(Running::wait)
        .unwrap_or_else(|error| panic!("{command:?}: {error:#}"))
}

/// Runs it and checks that it fails with this code, says these words, and writes no data.
fn fails(arguments: &[&str], code: i32, words: &[&str]) {
    check_failure(&run(&mut pyebpf(arguments)), arguments, code, words);
}

fn check_failure(ended: &Ended, arguments: &[&str], code: i32, words: &[&str]) {
    let said = &ended.stderr;
    assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {said}");
    for word in words {
        assert!(
            said.to_lowercase().contains(&word.to_lowercase()),
            "{arguments:?} does not say {word:?} but: {said}"
        );
    }
    assert!(ended.stdout.is_empty(), "{arguments:?} wrote data");
    for bad in ["panicked", "pyebpf: pyebpf", ".pyebpf-"] {
        assert!(!said.contains(bad), "{arguments:?}: {said}");
    }
    let mut codes = said.match_indices("(os error");
    assert!(
        codes.nth(1).is_none(),
        "{arguments:?} says it twice: {said}"
    );
}

/// A process that is killed when it is dropped.
struct Helper(Child);

impl Helper {
    fn start(program: &Path, arguments: &[&str]) -> Helper {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .expect("a helper process starts");
        Helper(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must be waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder can be made")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// The pid of a process that is gone.
fn gone() -> String {
    let mut child = Command::new("true").spawn().expect("`true` starts");
    let pid = child.id().to_string();
    child.wait().expect("`true` ends");
    pid
}

fn working_python(test: &str) -> Option<Target> {
    let python = pythons::any(test)?;
    Some(
        python
            .start(&["lifecycle.py", "works"])
            .expect("a workload starts"),
    )
}
