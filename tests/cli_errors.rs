//! Bad input: what failed, the value seen, what mends it, and the exit code.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use pyebpf_tests::recording::{binary, pyebpf};
use pyebpf_tests::{can_profile, skip};

use crate::{check_failure, fails, folder, run, text, working_python};

#[test]
fn usage_errors_exit_with_2() {
    fails(&["record", "--no-such-flag"], 2, &["--no-such-flag"]);
    fails(&["record", "-p", "abc"], 2, &["abc"]);
    fails(&["record", "-d", "soon"], 2, &["soon"]);
    fails(&["record", "-r", "0"], 2, &["0", "rate"]);
    fails(
        &["record", "-f", "gif"],
        2,
        &["gif", "flamegraph", "speedscope"],
    );
    fails(&["record", "-o", "profile.gif"], 2, &["gif", "--format"]);
    fails(&["record", "--container", "web"], 2, &["web", "docker ps"]);
    fails(&["record", "--container", "012"], 2, &["012", "4 to 64"]);
    fails(&["record", "--cgroup", ""], 2, &["--cgroup"]);
    let two = ["record", "--cgroup", "/a", "-p", "1"];
    fails(&two, 2, &["--cgroup", "--pid", "cannot be used with"]);
    fails(&["record", "--"], 2, &["no command after `--`", "Usage"]);
    fails(
        &["record", "-d", "1", "-s"],
        2,
        &["--subprocesses", "--pid"],
    );
    fails(&["no-such-command"], 2, &["no-such-command"]);
    fails(&["completions", "tcl"], 2, &["tcl", "bash"]);
}

#[test]
fn help_and_version_are_data() {
    for arguments in [&["--help"][..], &["record", "--help"], &["--version"]] {
        let ended = run(&mut pyebpf(arguments));
        assert!(ended.status.success(), "{arguments:?}: {}", ended.stderr);
        assert!(!ended.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn completions_are_scripts_of_their_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = run(&mut pyebpf(&["completions", shell]));
        assert!(ended.status.success(), "{shell}: {}", ended.stderr);
        let script = String::from_utf8(ended.stdout).expect("a script is text");
        assert!(
            script.contains("pyebpf") && script.contains("record"),
            "{shell}"
        );
        let present = Command::new(shell).arg("--version").output().is_ok();
        if !present {
            skip(
                &format!("completions of {shell} are read by it"),
                "it is not installed",
            );
            continue;
        }
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(script.as_bytes())
            .expect("it can be written");
        let read = Command::new(shell).arg("-n").arg(file.path()).output();
        let read = read.expect("the shell starts");
        assert!(read.status.success(), "{shell}: {read:?}");
    }
}

#[test]
fn without_privileges_it_says_what_is_missing() {
    const TEST: &str = "without_privileges_it_says_what_is_missing";
    if !can_profile(TEST) {
        return;
    }
    let folder = folder();
    // The user must reach the program and the folder that it would write to.
    let copy = folder.path().join("pyebpf");
    fs::copy(binary(), &copy).expect("the program can be copied");
    for path in [folder.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("it is ours");
    }
    let output = folder.path().join("out.svg");
    let arguments = ["record", "-d", "1", "-o", text(&output)];
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--inh-caps=-all", "--bounding-set=-all"])
        .arg(&copy)
        .args(arguments);
    check_failure(
        &run(&mut command),
        &arguments,
        1,
        &["root", "CAP_BPF", "sudo"],
    );
    assert!(!output.exists());
}

#[test]
fn a_proc_of_another_pid_namespace_is_refused() {
    if !can_profile("a_proc_of_another_pid_namespace_is_refused") {
        return;
    }
    let arguments = ["record", "-d", "1", "-f", "raw", "-o", "-"];
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork"])
        .arg(binary())
        .args(arguments);
    check_failure(
        &run(&mut command),
        &arguments,
        1,
        &[
            "/proc",
            "PID namespace",
            "process 1 is",
            "unshare --mount-proc",
        ],
    );
}

#[test]
fn a_rate_above_the_limit_of_the_kernel() {
    let path = "/proc/sys/kernel/perf_event_max_sample_rate";
    let limit: u64 = fs::read_to_string(path)
        .expect("the limit can be read")
        .trim()
        .parse()
        .expect("the limit is a number");
    if !can_profile("a_rate_above_the_limit_of_the_kernel") {
        return;
    }
    let above = (limit + 1).to_string();
    let arguments = ["record", "-d", "1", "-o", "-", "-f", "raw", "-r", &above];
    fails(
        &arguments,
        1,
        &[&above, &limit.to_string(), "perf_event_max_sample_rate"],
    );
}

#[test]
fn outputs_that_can_not_be_written() {
    const TEST: &str = "outputs_that_can_not_be_written";
    if !can_profile(TEST) {
        return;
    }
    let Some(target) = working_python(TEST) else {
        return;
    };
    let pid = target.pid.to_string();
    let folder = folder();
    let missing = folder.path().join("missing/out.svg");
    let in_missing = text(missing.parent().expect("it has a folder"));
    let arguments = ["record", "-d", "60", "-f", "raw", "-p", &pid, "-o"];
    let with = |path: &str, words: &[&str]| {
        let mut arguments = arguments.to_vec();
        arguments.push(path);
        fails(&arguments, 1, words);
    };
    with(text(&missing), &[in_missing, "does not exist"]);
    // Not even root can make a file there.
    with("/sys/kernel/out.svg", &["/sys/kernel", "write"]);
    with("/proc/out.svg", &["/proc", "write"]);
    with(text(folder.path()), &[text(folder.path()), "is a folder"]);
    // Without a format, either.
    let unnamed = ["record", "-p", &pid, "-o", text(folder.path())];
    fails(&unnamed, 1, &[text(folder.path()), "is a folder"]);
    let summary = folder.path().join("no/stats.json");
    let arguments = ["record", "-p", &pid, "-o", "-", "--stats", text(&summary)];
    fails(&arguments, 1, &["no", "does not exist"]);
    let full = folder.path().join("full.json");
    std::os::unix::fs::symlink("/dev/full", &full).expect("a link can be made");
    let arguments = [
        "record",
        "-d",
        "0.5",
        "-o",
        "/dev/null",
        "-f",
        "raw",
        "-p",
        &pid,
        "--stats",
    ];
    let ended = run(pyebpf(&arguments).arg(&full));
    check_failure(
        &ended,
        &arguments,
        1,
        &["the summary", "/dev/full", "No space"],
    );
    let last = ended.stderr.lines().last().expect("it says something");
    assert!(!last.contains("the profile"), "{}", ended.stderr);
    let fixed = folder.path().join("fixed.svg");
    fs::write(&fixed, "kept").expect("it can be written");
    let chattr = |flag| Command::new("chattr").arg(flag).arg(&fixed).output();
    if chattr("+i").is_ok_and(|done| done.status.success()) {
        let said = std::panic::catch_unwind(|| with(text(&fixed), &["chattr -ia", "fixed.svg"]));
        chattr("-i").expect("it started before");
        said.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    } else {
        skip(TEST, "no file can be made immutable here");
    }
}
