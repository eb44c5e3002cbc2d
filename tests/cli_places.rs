//! Odd places for a profile: a name that is no text, a pipe that nobody reads.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pyebpf_tests::recording::{Running, pyebpf};
use pyebpf_tests::{can_profile, turn};

use crate::{folder, run, text, working_python};

/// How long a recording of a second may take to end on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// What is to happen at once takes less.
const AT_ONCE: Duration = Duration::from_secs(3);

#[test]
fn the_name_of_an_output_need_not_be_text() {
    if !can_profile("the_name_of_an_output_need_not_be_text") {
        return;
    }
    let folder = folder();
    for format in [&[][..], &["-f", "raw"]] {
        let output = folder.path().join(OsStr::from_bytes(b"bad\xff.txt"));
        let mut command = pyebpf(&["record"]);
        command.args(format).arg("-o").arg(&output);
        let ended = run(command.args(["--", "true"]));
        assert!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
        fs::remove_file(&output).expect("it is written under this name");
    }
}

#[test]
fn an_interrupt_ends_the_wait_for_a_reader_of_a_named_pipe() {
    const TEST: &str = "an_interrupt_ends_the_wait_for_a_reader_of_a_named_pipe";
    if !can_profile(TEST) {
        return;
    }
    let Some(target) = working_python(TEST) else {
        return;
    };
    let _turn = turn();
    let folder = folder();
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo starts").success());
    let pid = target.pid.to_string();
    let mut command = pyebpf(&["record", "-d", "1", "-f", "raw", "-p", &pid]);
    command.args(["-o", text(&pipe)]);
    let running = Running::start(&mut command).expect("pyebpf starts");
    let start = Instant::now();
    while !opens_a_file(running.pid()) {
        assert!(start.elapsed() < LIMIT, "it does not wait for a reader");
        sleep(Duration::from_millis(100));
    }
    let start = Instant::now();
    running.signal(libc::SIGINT).expect("it runs");
    let ended = running.wait().expect("it ends");
    let took = start.elapsed();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(took < AT_ONCE, "it took {took:?}: {}", ended.stderr);
    assert!(
        ended.stderr.contains("the profile was not written"),
        "{}",
        ended.stderr
    );
}

/// Whether a thread of this process is asleep in `openat`: nothing but a pipe without a reader
/// makes it sleep there for long, so it is looked at twice.
fn opens_a_file(pid: u32) -> bool {
    let asleep = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        tasks.flatten().any(|task| {
            let call = fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
            call.split(' ').next() == Some(&libc::SYS_openat.to_string())
        })
    };
    asleep() && {
        sleep(Duration::from_millis(200));
        asleep()
    }
}
