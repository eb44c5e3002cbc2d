//! Outputs and signals: data and talk kept apart, whole files or none, and how a run is ended.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use pyebpf_tests::recording::{Running, pyebpf};
use pyebpf_tests::{can_profile, raw, skip, turn};

use crate::{Helper, fails, folder, gone, run, text, working_python};

/// Long enough for `pyebpf` to be recording on a busy machine.
const UP: Duration = Duration::from_millis(2500);

#[test]
fn a_failed_run_keeps_the_file_that_is_there() {
    if !can_profile("a_failed_run_keeps_the_file_that_is_there") {
        return;
    }
    let folder = folder();
    let output = folder.path().join("out.txt");
    fs::write(&output, "kept").expect("it can be written");
    let arguments = [
        "record",
        "-d",
        "1",
        "-f",
        "raw",
        "-o",
        text(&output),
        "-p",
        &gone(),
    ];
    fails(&arguments, 1, &["does not exist"]);
    assert_eq!(fs::read_to_string(&output).expect("it is there"), "kept");
    assert_eq!(files(folder.path()), ["out.txt"]);
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    entries
        .map(|entry| entry.expect("the folder can be read").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn no_python_gives_a_profile_that_is_said_to_be_empty() {
    const TEST: &str = "no_python_gives_a_profile_that_is_said_to_be_empty";
    if !can_profile(TEST) {
        return;
    }
    let _turn = turn();
    let folder = folder();
    let output = folder.path().join("out.txt");
    let empty = |arguments: &[&str]| {
        let mut command = pyebpf(&["record", "-d", "1", "-f", "raw", "-o", text(&output)]);
        let ended = run(command.args(arguments));
        let said = ended.stderr.to_lowercase();
        assert!(ended.status.success(), "{arguments:?}: {said}");
        assert!(
            said.contains("no python") && said.contains("empty"),
            "{said}"
        );
        assert_eq!(fs::read(&output).expect("it is written"), b"");
    };
    empty(&["--", "sleep", "0.5"]);
    if python_runs() {
        skip(
            &format!("{TEST}, with --all-python"),
            "a Python runs on this machine",
        );
    } else {
        empty(&["--all-python"]);
    }
}

/// Whether a process of this machine has a file mapped that is called Python.
fn python_runs() -> bool {
    let processes = fs::read_dir("/proc").expect("/proc can be read");
    processes.flatten().any(|process| {
        fs::read_to_string(process.path().join("maps")).is_ok_and(|maps| maps.contains("python"))
    })
}

#[test]
fn standard_output_is_data_alone() {
    const TEST: &str = "standard_output_is_data_alone";
    if !can_profile(TEST) {
        return;
    }
    let Some(target) = working_python(TEST) else {
        return;
    };
    let _turn = turn();
    let pid = target.pid.to_string();
    let ended = run(&mut pyebpf(&[
        "record", "-d", "1", "-f", "raw", "-o", "-", "-p", &pid,
    ]));
    assert!(ended.status.success(), "{}", ended.stderr);
    let data = String::from_utf8(ended.stdout).expect("collapsed stacks are text");
    let stacks = raw::parse(&data).expect("each line is a stack");
    let in_parent = |stack: &raw::Stack| stack.frames.iter().any(|frame| frame.name == "in_parent");
    assert!(!stacks.is_empty() && stacks.iter().all(in_parent), "{data}");
    for word in ["samples", "work"] {
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
}

#[test]
fn a_reader_that_closes_its_pipe_is_a_success() {
    const TEST: &str = "a_reader_that_closes_its_pipe_is_a_success";
    if !can_profile(TEST) {
        return;
    }
    let Some(target) = working_python(TEST) else {
        return;
    };
    let _turn = turn();
    let mut child = pyebpf(&[
        "record",
        "-d",
        "1",
        "-o",
        "-",
        "-p",
        &target.pid.to_string(),
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .expect("pyebpf starts");
    drop(child.stdout.take());
    let ended = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {said}", ended.status);
}

#[test]
fn an_interrupt_ends_the_recording_and_writes_it() {
    const TEST: &str = "an_interrupt_ends_the_recording_and_writes_it";
    if !can_profile(TEST) {
        return;
    }
    let Some(target) = working_python(TEST) else {
        return;
    };
    let _turn = turn();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let folder = folder();
        let output = folder.path().join("out.txt");
        let pid = target.pid.to_string();
        let mut command = pyebpf(&["record", "-f", "raw", "-p", &pid, "-o", text(&output)]);
        let running = Running::start(&mut command).expect("pyebpf starts");
        sleep(UP);
        assert!(files(folder.path()).iter().all(|name| name != "out.txt"));
        running.signal(signal).expect("it runs");
        let ended = running.wait().expect("it ends");
        assert!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
        let stacks = raw::parse(&fs::read_to_string(&output).expect("it is written"));
        assert!(!stacks.expect("each line is a stack").is_empty());
        assert_eq!(files(folder.path()), ["out.txt"]);
    }
}

#[test]
fn a_second_interrupt_quits_at_once() {
    const TEST: &str = "a_second_interrupt_quits_at_once";
    if !can_profile(TEST) {
        return;
    }
    let Some(target) = working_python(TEST) else {
        return;
    };
    let _turn = turn();
    // A pipe that is full and that nobody reads: writing the profile never ends.
    let (_reader, writer) = full_pipe();
    let pid = target.pid.to_string();
    let mut child = pyebpf(&["record", "-f", "raw", "-p", &pid, "-o", "-"])
        .stdout(writer)
        .stderr(Stdio::null())
        .spawn()
        .map(Helper)
        .expect("pyebpf starts");
    let send = |child: &Helper| {
        let pid = libc::pid_t::try_from(child.0.id()).expect("a pid fits");
        // SAFETY: kill takes no pointers; the child has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    };
    sleep(UP);
    send(&child);
    sleep(Duration::from_secs(1));
    assert!(
        child.0.try_wait().expect("it is ours").is_none(),
        "the pipe is not full"
    );
    send(&child);
    for _ in 0..100 {
        if let Some(status) = child.0.try_wait().expect("it is ours") {
            assert!(!status.success(), "nothing was written, yet: {status}");
            return;
        }
        sleep(Duration::from_millis(50));
    }
    panic!("it still runs five seconds after the second interrupt");
}

fn full_pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors that pipe2 writes.
    let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: pipe2 succeeded, so both are open descriptors that nobody else owns.
    let (reader, writer) =
        unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    let set_flags = |flags: i32| {
        // SAFETY: F_SETFL takes an integer; the descriptor is open.
        let set = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, flags) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    };
    set_flags(libc::O_NONBLOCK);
    let mut file = fs::File::from(writer.try_clone().expect("a descriptor can be cloned"));
    while file.write(&[b'x'; 4096]).is_ok() {}
    while file.write(b"x").is_ok() {}
    set_flags(0);
    (reader, writer)
}
