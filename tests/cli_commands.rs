//! `record -- COMMAND`: its arguments as they are, its words beside the profile, and whose end waits
//! for whose.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pyebpf::target::exists;
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::recording::{Running, pyebpf};
use pyebpf_tests::{can_profile, raw, turn};

use crate::{folder, run, text};

/// How long a command may take to be up on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// What is to happen at once takes less: well below the grace that a command has, 5 s.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Ignores what would end it, says its pid in a file, and ends after half a minute.
const IGNORES: &str = "\
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(sys.argv[1], 'w') as up:
    up.write('%d\\n' % os.getpid())
end = time.monotonic() + 30
while time.monotonic() < end:
    pass
";

/// Says its pid in a file; interrupted, it works for a second, writes another file, and exits with 7.
const CLEANS_UP: &str = "\
import os, signal, sys, time
def work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with open(sys.argv[1], 'w') as up:
        up.write('%d\\n' % os.getpid())
    work(30)
except KeyboardInterrupt:
    sys.exit(7)
finally:
    work(1)
    with open(sys.argv[2], 'w') as clean:
        clean.write('clean\\n')
";

const SAYS_WORDS: &str = "\
import sys, time
print('words of the command')
sys.stdout.flush()
end = time.monotonic() + 2
while time.monotonic() < end:
    pass
print('its last words')
";

/// `pyebpf record -f raw -o OUTPUT -- PYTHON -c PROGRAM`.
fn record_program(python: &Python, output: &str, program: &str) -> Command {
    let mut command = pyebpf(&["record", "-f", "raw", "-o", output, "--"]);
    command.arg(python.program()).args(["-B", "-c", program]);
    command
}

/// The pid that a command has written to this file once it is up.
fn pid_in(file: &Path) -> u32 {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        let said = fs::read_to_string(file).unwrap_or_default();
        if let Some(pid) = said.strip_suffix('\n') {
            return pid.parse().expect("the command says its pid");
        }
        sleep(Duration::from_millis(20));
    }
    panic!("the command was not up after {LIMIT:?}");
}

#[test]
fn arguments_of_a_command_need_not_be_text() {
    if !can_profile("arguments_of_a_command_need_not_be_text") {
        return;
    }
    let folder = folder();
    let output = folder.path().join("out.txt");
    let mut command = pyebpf(&["record", "-f", "raw", "-o", text(&output), "--"]);
    command.args(["sh", "-c", "printf %s \"$1\"", "sh"]);
    command.arg(OsStr::from_bytes(b"a\xffb"));
    let ended = run(&mut command);
    assert!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    assert_eq!(ended.stdout, b"a\xffb");
    assert!(output.exists());
}

#[test]
fn a_command_that_is_no_python_is_said_to_be_none() {
    if !can_profile("a_command_that_is_no_python_is_said_to_be_none") {
        return;
    }
    let folder = folder();
    let output = folder.path().join("out.txt");
    let arguments = ["record", "-f", "raw", "-o", text(&output), "--"];
    let ended = run(pyebpf(&arguments).args(["sleep", "0.3"]));
    assert!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    assert!(
        ended.stderr.contains("the command ran no CPython"),
        "{}",
        ended.stderr
    );
}

#[test]
fn words_of_a_command_stay_out_of_a_profile_on_stdout() {
    const TEST: &str = "words_of_a_command_stay_out_of_a_profile_on_stdout";
    if !can_profile(TEST) {
        return;
    }
    let Some(python) = pythons::any(TEST) else {
        return;
    };
    let _turn = turn();
    let ended = run(&mut record_program(&python, "-", SAYS_WORDS));
    assert!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    let data = String::from_utf8(ended.stdout).expect("collapsed stacks are text");
    let stacks = raw::parse(&data).unwrap_or_else(|error| panic!("{error:#}: {data}"));
    assert!(!stacks.is_empty(), "{}", ended.stderr);
    for words in ["words of the command\n", "its last words\n"] {
        assert!(!data.contains(words), "{data}");
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
}

#[test]
fn a_second_interrupt_kills_a_command_that_ignores_them() {
    const TEST: &str = "a_second_interrupt_kills_a_command_that_ignores_them";
    if !can_profile(TEST) {
        return;
    }
    let Some(python) = pythons::any(TEST) else {
        return;
    };
    let _turn = turn();
    let folder = folder();
    let (up, output) = (folder.path().join("up"), folder.path().join("out.txt"));
    let mut command = record_program(&python, text(&output), IGNORES);
    let running = Running::start(command.arg(&up)).expect("pyebpf starts");
    let pid = pid_in(&up);
    running.signal(libc::SIGINT).expect("it runs");
    sleep(Duration::from_secs(1));
    let start = Instant::now();
    running.signal(libc::SIGINT).expect("it waits");
    let ended = running.wait().expect("it ends");
    let took = start.elapsed();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(took < AT_ONCE, "it took {took:?}: {}", ended.stderr);
    for words in ["the command was killed", "the profile was not written"] {
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
    assert!(!output.exists());
    let start = Instant::now();
    while exists(pid) {
        assert!(start.elapsed() < AT_ONCE, "the command still runs");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_interrupt_of_the_whole_group_lets_a_command_clean_up() {
    const TEST: &str = "an_interrupt_of_the_whole_group_lets_a_command_clean_up";
    check_cleaning_up(TEST, |pid| interrupt(-pid));
}

#[test]
fn an_interrupt_that_comes_twice_at_once_is_one() {
    // As `timeout -s INT` does it.
    check_cleaning_up("an_interrupt_that_comes_twice_at_once_is_one", |pid| {
        interrupt(pid);
        sleep(Duration::from_millis(50));
        interrupt(-pid);
    });
}

fn interrupt(process_or_group: libc::pid_t) {
    // SAFETY: kill takes no pointers; the group's leader, our child, has not been waited for.
    let sent = unsafe { libc::kill(process_or_group, libc::SIGINT) };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
}

/// Runs pyebpf and a command in a group of their own, calls `interrupt` with pyebpf's pid, and checks
/// that both do what they have to do before they end.
fn check_cleaning_up(test: &str, interrupt: impl Fn(libc::pid_t)) {
    if !can_profile(test) {
        return;
    }
    let Some(python) = pythons::any(test) else {
        return;
    };
    let _turn = turn();
    let folder = folder();
    let place = |name: &str| folder.path().join(name);
    let (up, clean, output) = (place("up"), place("clean"), place("out.txt"));
    let mut command = record_program(&python, text(&output), CLEANS_UP);
    command.arg(&up).arg(&clean).process_group(0);
    let running = Running::start(&mut command).expect("pyebpf starts");
    pid_in(&up);
    sleep(Duration::from_secs(1));
    interrupt(libc::pid_t::try_from(running.pid()).expect("a pid fits"));
    let ended = running.wait().expect("it ends");
    assert_eq!(ended.status.code(), Some(7), "{}", ended.stderr);
    let cleaned = fs::read_to_string(&clean).expect("the command has cleaned up");
    assert_eq!(cleaned, "clean\n");
    let profile = fs::read_to_string(&output).expect("the profile is written");
    raw::parse(&profile).expect("each line is a stack");
}
