//! What is said on stderr: nothing depends on whether it can be, and programs get what they asked for.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pyebpf_tests::recording::pyebpf;
use pyebpf_tests::{can_profile, skip, turn};

use crate::{folder, gone, run, text};

/// The exit codes of the same command with a stderr that is full, and with one that nobody reads.
fn codes(command: impl Fn() -> Command) -> [Option<i32>; 2] {
    let code = |stderr: Stdio| {
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let status = command.stderr(stderr).status().expect("pyebpf starts");
        status.code()
    };
    let full = File::options().write(true).open("/dev/full");
    let (reader, unread) = std::io::pipe().expect("a pipe can be made");
    drop(reader);
    [
        code(full.expect("there is one").into()),
        code(unread.into()),
    ]
}

#[test]
fn a_stderr_that_can_not_be_written_changes_no_exit_code() {
    let wrong = || pyebpf(&["record", "-o", "profile.gif"]);
    assert_eq!(codes(wrong), [Some(2); 2]);
    let gone = gone();
    let failing = || pyebpf(&["record", "-o", "-", "-p", &gone]);
    assert_eq!(codes(failing), [Some(1); 2]);
    if !can_profile("a_stderr_that_can_not_be_written_changes_no_exit_code") {
        return;
    }
    let _turn = turn();
    let folder = folder();
    let output = folder.path().join("out.txt");
    let record = |arguments: &[&str], code: i32| {
        let codes = codes(|| {
            let mut command = pyebpf(&["record", "-d", "1", "-f", "raw", "-o", text(&output)]);
            command.args(arguments);
            command
        });
        assert_eq!(codes, [Some(code); 2], "{arguments:?}");
        fs::remove_file(&output).expect("the profile is written");
    };
    record(&["--all-python"], 0);
    record(&["--all-python", "--stats", "json"], 0);
    record(&["--", "sh", "-c", "exit 3"], 3);
}

#[test]
fn a_summary_as_json_is_all_that_is_said() {
    const TEST: &str = "a_summary_as_json_is_all_that_is_said";
    if !can_profile(TEST) {
        return;
    }
    let _turn = turn();
    let arguments = [
        "record", "-d", "1", "-f", "raw", "-o", "-", "--stats", "json",
    ];
    let said = |what: &[&str]| {
        let ended = run(pyebpf(&arguments).args(what));
        let summary: serde_json::Value = serde_json::from_str(&ended.stderr)
            .unwrap_or_else(|error| panic!("{what:?}: {error}: {}", ended.stderr));
        assert_eq!(ended.stderr.lines().count(), 1, "{what:?}");
        assert!(summary["samples"].is_u64(), "{summary}");
    };
    said(&["--all-python"]);
    said(&["--", "sleep", "0.3"]);
    // Nothing runs there, which is told where there is text.
    match EmptyGroup::make() {
        Some(group) => said(&["--cgroup", text(&group.0)]),
        None => skip(TEST, "no control group of version 2 can be made"),
    }
}

/// A control group of version 2, which goes when it is dropped.
struct EmptyGroup(PathBuf);

impl EmptyGroup {
    fn make() -> Option<EmptyGroup> {
        let name = format!("pyebpf-test-{}-empty", std::process::id());
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .map(Path::new)
            .into_iter()
            .filter(|root| root.join("cgroup.procs").exists())
            .map(|root| root.join(&name))
            .find(|group| fs::create_dir(group).is_ok())
            .map(EmptyGroup)
    }
}

impl Drop for EmptyGroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}
