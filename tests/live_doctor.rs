//! What `pyebpf doctor` tells of running Pythons and of what is none.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::recording::{Ended, Running, pyebpf};
use pyebpf_tests::workload::Target;
use pyebpf_tests::{Parts, can_profile, skip, turn};
use serde_json::Value;

use crate::{Expected, expected_stack};

fn doctor(pids: &[u32]) -> Result<(Ended, Value)> {
    let mut command = pyebpf(&["doctor", "--json"]);
    for pid in pids {
        command.arg("--pid").arg(pid.to_string());
    }
    let ended = Running::start(&mut command)?.wait()?;
    let report = serde_json::from_slice(&ended.stdout)
        .with_context(|| format!("no JSON: {:?} {}", ended.stdout, ended.stderr))?;
    Ok((ended, report))
}

/// Checks what is told of a workload with a known stack.
fn known(python: &Python, target: &Target, told: &Value) -> Result<()> {
    let version = told["python"]["value"].as_str().context("no version")?;
    let minor = format!(".{}.", python.minor);
    ensure!(version.contains(&minor), "it is told to be {version}");
    for key in ["process", "python", "runtime", "threads", "first_stack"] {
        ensure!(told[key]["verdict"] == "ok", "{key}: {}", told[key]);
    }
    let file = told["runtime"]["value"]["file"]
        .as_str()
        .unwrap_or_default();
    ensure!(file.contains("python"), "its runtime is in {file:?}");
    let threads = told["threads"]["value"].as_array().context("no threads")?;
    let main = threads
        .iter()
        .find(|thread| thread["tid"] == target.pid)
        .with_context(|| format!("no main thread among {threads:?}"))?;
    ensure!(main["route"] != "none", "{main}");
    let frames = main["frames"].as_array().context("no frames")?;
    let expected = expected_stack(target)?;
    ensure!(frames.len() == expected.len(), "{frames:#?}");
    // Ours begin with the newest.
    for (frame, Expected(name, file, lines)) in frames.iter().rev().zip(&expected) {
        let frame = frame.as_str().context("a frame is text")?;
        let parts = frame.strip_suffix(')').and_then(|all| all.split_once(" ("));
        let (seen, place) = parts.with_context(|| format!("no frame: {frame}"))?;
        let (path, line) = place.rsplit_once(':').context("no line")?;
        // The newest frame may not have come back yet from telling us, in the lines before its loop.
        let line: u32 = line.parse()?;
        let telling = lines.len() > 1 && (line..line + 5).contains(&lines[0]);
        let same = seen == name && path.ends_with(file) && (telling || lines.contains(&line));
        ensure!(same, "{frame} instead of {name} ({file}:{lines:?})");
    }
    Ok(())
}

fn look_at(python: &Python) -> Result<()> {
    let target = python.start(&["known_stack.py"])?;
    let (ended, report) = doctor(&[target.pid])?;
    let well = ended.status.success() && report["ok"] == true;
    ensure!(well, "{report:#}");
    known(python, &target, &report["processes"][0])
}

#[test]
fn doctor_knows_every_python_and_its_stack() {
    const TEST: &str = "doctor_knows_every_python_and_its_stack";
    if !can_profile(TEST) {
        return;
    }
    let _turn = turn();
    let mut parts = Parts::default();
    for python in pythons::all(TEST) {
        // One by one: a workload does not run for ever.
        parts.note(&python.name, look_at(&python));
    }
    parts.finish();
}

#[test]
fn doctor_names_the_c_library_and_the_control_group() {
    const TEST: &str = "doctor_names_the_c_library_and_the_control_group";
    if !can_profile(TEST) {
        return;
    }
    let told = |python: &Python| {
        let target = python.start(&["known_stack.py"])?;
        let (_, report) = doctor(&[target.pid])?;
        let process = &report["processes"][0];
        let path = process["cgroup"]["value"].as_str();
        ensure!(path.is_some_and(|path| path.starts_with('/')), "{process}");
        let build = process["build"]["value"].as_array();
        Ok(build.context("no build")?.clone())
    };
    let pythons = [(pythons::any(TEST), "glibc"), (pythons::musl(TEST), "musl")];
    for (python, library) in pythons {
        let Some(python) = python else { continue };
        let build = told(&python).expect("doctor reports");
        assert!(build.contains(&Value::from(library)), "{build:?}");
    }
}

#[test]
fn doctor_says_what_a_process_is_that_it_can_not_help() {
    const TEST: &str = "doctor_says_what_a_process_is_that_it_can_not_help";
    if !can_profile(TEST) {
        return;
    }
    let mut sleeper = Command::new("sleep")
        .arg("60")
        .spawn()
        .expect("sleep starts");
    let result = doctor(&[sleeper.id(), u32::MAX]);
    sleeper.kill().expect("it runs");
    sleeper.wait().expect("it ends");
    let (ended, report) = result.expect("doctor reports");
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(report["ok"], false);
    let [sleep, none] = [0, 1].map(|at| &report["processes"][at]);
    assert_eq!(sleep["process"]["value"]["command"], "sleep 60");
    assert_eq!(sleep["python"]["verdict"], "fail");
    let mend = sleep["python"]["mend"].as_str().expect("what to do");
    assert!(mend.contains("pgrep"), "{mend}");
    assert_eq!(none["process"]["seen"], "does not exist");
}

#[test]
fn doctor_says_in_which_state_a_process_is() {
    const TEST: &str = "doctor_says_in_which_state_a_process_is";
    if !can_profile(TEST) {
        return;
    }
    let spawn = |program: &str| Command::new(program).arg("60").spawn();
    let mut stopped = spawn("sleep").expect("sleep starts");
    let mut ended = spawn("true").expect("true starts");
    signal(stopped.id(), libc::SIGSTOP);
    await_state(stopped.id(), 'T');
    await_state(ended.id(), 'Z');
    // In the machine's PID namespace the second process is the kernel's.
    let kernel = std::fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n");
    let result = doctor(&[stopped.id(), ended.id(), 2]);
    stopped.kill().expect("it is there");
    stopped.wait().expect("it ends");
    ended.wait().expect("it has ended");
    let (_, report) = result.expect("doctor reports");
    let told = |at: usize, key: &str, what: &str| {
        let fact = &report["processes"][at][key];
        let text = fact[what].as_str().unwrap_or_default().to_owned();
        assert!(!fact.is_null(), "no {key}: {report:#}");
        text
    };
    assert!(told(0, "state", "seen").starts_with("stopped by a signal"));
    assert!(told(0, "state", "mend").contains("kill -CONT"));
    let parent = format!("its parent, process {}", std::process::id());
    assert!(told(1, "process", "seen").contains(&parent), "{report:#}");
    if !kernel {
        return skip(TEST, "process 2 is not the kernel's here");
    }
    assert!(told(2, "process", "seen").contains("thread of the kernel"));
    assert_eq!(told(2, "process", "mend"), "", "{report:#}");
}

#[test]
fn a_recording_of_a_stopped_process_says_so() {
    const TEST: &str = "a_recording_of_a_stopped_process_says_so";
    if !can_profile(TEST) {
        return;
    }
    let Some(python) = pythons::any(TEST) else {
        return;
    };
    let _turn = turn();
    let target = python.start(&["known_stack.py"]).expect("it starts");
    signal(target.pid, libc::SIGSTOP);
    await_state(target.pid, 'T');
    let pid = target.pid.to_string();
    let mut command = pyebpf(&[
        "record",
        "-d",
        "1",
        "-o",
        "/dev/null",
        "-f",
        "raw",
        "-p",
        &pid,
    ]);
    let ended = Running::start(&mut command).and_then(Running::wait);
    signal(target.pid, libc::SIGCONT);
    let said = ended.expect("it ends").stderr;
    let mend = format!("`kill -CONT {pid}`");
    assert!(
        said.contains("is stopped by a signal") && said.contains(&mend),
        "{said}"
    );
}

fn signal(pid: u32, number: i32) {
    // SAFETY: a system call without memory of ours; the process is our child, not waited for yet.
    unsafe { libc::kill(pid as i32, number) };
}

/// Waits until a child is in this state of proc_pid_stat(5).
fn await_state(pid: u32, state: char) {
    let is_there = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a child has one");
        stat.contains(&format!(") {state} "))
    };
    while !is_there() {
        std::thread::yield_now();
    }
}

#[test]
fn doctor_names_the_version_of_a_python_that_is_refused() {
    const TEST: &str = "doctor_names_the_version_of_a_python_that_is_refused";
    if !can_profile(TEST) {
        return;
    }
    let Some(python) = pythons::refused() else {
        return skip(TEST, "no such Python is here");
    };
    let mut child = Command::new(python)
        .args(["-c", "print(1); import sys; sys.stdin.read()"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    // Its first word says that it is up.
    let mut word = [0; 1];
    std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut word).expect("a word");
    let result = doctor(&[child.id()]);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let (ended, report) = result.expect("doctor reports");
    assert_eq!(ended.status.code(), Some(1), "{report:#}");
    let told = &report["processes"][0]["python"];
    assert_eq!(told["verdict"], "fail");
    let seen = told["seen"].as_str().expect("text");
    assert!(seen.contains("can't profile"), "{seen}");
}
