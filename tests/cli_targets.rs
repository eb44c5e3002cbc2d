//! Targets that can't be profiled: which one, what it is instead, and what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use pyebpf_tests::pythons;
use pyebpf_tests::recording::pyebpf;
use pyebpf_tests::{can_profile, skip, turn};

use crate::{Helper, fails, gone, run, text};

#[test]
fn targets_that_can_not_be_profiled() {
    if !can_profile("targets_that_can_not_be_profiled") {
        return;
    }
    let record = ["record", "-d", "1", "-o", "-", "-f", "raw"];
    let with = |rest: &[&'static str], pid: &str, words: &[&str]| {
        let mut arguments = record.to_vec();
        arguments.extend(rest);
        arguments.push(pid);
        fails(&arguments, 1, words);
    };
    let pid = gone();
    with(&["-p"], &pid, &[&pid, "does not exist"]);
    let sleeper = Helper::start(Path::new("sleep"), &["60"]);
    with(
        &["-p"],
        &sleeper.pid(),
        &[&sleeper.pid(), "sleep", "Python", "--subprocesses"],
    );
    with(
        &["--"],
        "no-such-program-here",
        &["no-such-program-here", "not found"],
    );
    with(&["--"], "/no/such", &["/no/such", "does not exist"]);
    with(&["--"], "/etc/passwd", &["/etc/passwd"]);
}

#[test]
fn control_groups_and_containers_that_are_not_there() {
    if !can_profile("control_groups_and_containers_that_are_not_there") {
        return;
    }
    let record = |flag, value| ["record", "-d", "1", "-o", "-", flag, value];
    let group = "/sys/fs/cgroup/no-such.slice";
    fails(&record("--cgroup", group), 1, &[group, "/proc/PID/cgroup"]);
    fails(
        &record("--cgroup", "no-such"),
        1,
        &["control group /no-such:"],
    );
    let id = "fedcba9876543210";
    fails(&record("--container", id), 1, &[id, "no process"]);
}

/// A debug build, which is not supported.
fn debug_build(test: &str) -> Option<PathBuf> {
    let python = pythons::refused();
    if python.is_none() {
        skip(test, "no debug build of Python is here");
    }
    python
}

#[test]
fn a_python_of_a_build_that_is_not_supported() {
    const TEST: &str = "a_python_of_a_build_that_is_not_supported";
    if !can_profile(TEST) {
        return;
    }
    let Some(python) = debug_build(TEST) else {
        return;
    };
    let target = Helper::start(&python, &["-c", "import time; time.sleep(60)"]);
    sleep(Duration::from_millis(500));
    let arguments = [
        "record",
        "-d",
        "1",
        "-o",
        "-",
        "-f",
        "raw",
        "-p",
        &target.pid(),
    ];
    fails(&arguments, 1, &[&target.pid(), "debug build"]);
}

#[test]
fn a_short_recording_names_the_pythons_that_it_leaves_out() {
    const TEST: &str = "a_short_recording_names_the_pythons_that_it_leaves_out";
    if !can_profile(TEST) {
        return;
    }
    let Some(python) = debug_build(TEST) else {
        return;
    };
    let _turn = turn();
    let short = ["record", "-d", "0.8", "-f", "raw", "-o", "-"];
    let names_it = |arguments: &[&str]| {
        let ended = run(pyebpf(&short).args(arguments));
        let said = ended.stderr;
        assert!(ended.status.success(), "{arguments:?}: {said}");
        let named = said
            .lines()
            .any(|line| line.contains("debug build") && line.contains("not profiled"));
        assert!(named, "{arguments:?}: {said}");
    };
    let busy = ["-c", "while True: pass"];
    // Met while recording.
    names_it(&["--", text(&python), busy[0], busy[1]]);
    // There before it began, and waiting: only a look at all processes finds it.
    let _idle = Helper::start(&python, &["-c", "import time; time.sleep(60)"]);
    sleep(Duration::from_millis(500));
    names_it(&["--all-python"]);
    let _busy = Helper::start(&python, &busy);
    names_it(&["--all-python"]);
}

#[test]
fn a_thread_is_not_a_process() {
    const TEST: &str = "a_thread_is_not_a_process";
    if !can_profile(TEST) {
        return;
    }
    let Some(python) = pythons::any(TEST) else {
        return;
    };
    let target = python.start(&["threads.py"]).expect("a workload starts");
    let pid = target.pid.to_string();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let thread = tasks
        .flatten()
        .map(|task| text(Path::new(&task.file_name())).to_owned())
        .find(|thread| *thread != pid)
        .expect("the workload has threads");
    let arguments = ["record", "-d", "1", "-o", "-", "-f", "raw", "-p", &thread];
    let process = format!("process {pid}");
    fails(&arguments, 1, &[&thread, &process, &format!("--pid {pid}")]);
}
