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
