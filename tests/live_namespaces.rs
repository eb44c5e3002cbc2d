//! pyebpf within a PID namespace that is not the initial one: it sees the processes of that, and of
//! those nested in it, by their ids there, and nothing else of the machine.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::matrix::same_frames;
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::raw::Stack;
use pyebpf_tests::recording::{Recording, record_by};
use pyebpf_tests::start::{Start, around, start};
use pyebpf_tests::workload::{Target, folder};
use pyebpf_tests::{can_profile, skip, turn};
use serde_json::Value;
use tempfile::TempDir;

use crate::{expected_stack, has, only_the_known_stack};

/// Runs a test of one Python, alone on the machine.
fn with_python(test: &str, body: impl FnOnce(&Python) -> Result<()>) {
    if !can_profile(test) {
        return;
    }
    if let Some(why) = Start::PidNamespace.lacks() {
        return skip(test, &why);
    }
    let Some(python) = pythons::any(test) else {
        return;
    };
    let _turn = turn();
    if let Err(error) = body(&python) {
        panic!("{}: {error:#}", python.name);
    }
}

/// The command, in the PID namespace that this target is process 1 of, and with its `/proc`.
fn beside(target: &Target, command: &Command) -> Command {
    let pid = target.pid.to_string();
    around(&["nsenter", "--target", &pid, "--pid", "--mount"], command)
}

fn record_beside(target: &Target, arguments: &[&str]) -> Result<Recording> {
    record_by(|command| beside(target, &command), arguments)
}

/// The ids of a process: in our own PID namespace, and in each from there inwards.
fn ids(pid: u32) -> Result<Vec<u32>> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let ids = line.context("no NSpid")?.split_whitespace();
    Ok(ids.map(str::parse).collect::<Result<_, _>>()?)
}

#[test]
fn a_pid_namespace_of_its_own_has_its_own_ids() {
    with_python("a_pid_namespace_of_its_own_has_its_own_ids", |python| {
        let started = start(Start::PidNamespace, python, &["known_stack.py"])?;
        let target = &started.target;
        ensure!(ids(target.pid)? == [target.pid, 1], "it is process 1 there");
        for steps in ["best", "calls"] {
            let mut arguments = vec!["-d", "2", "-r", "199", "-t", "--full-filenames"];
            arguments.extend(["--steps", steps, "-p", "1"]);
            let recording = record_beside(target, &arguments)?;
            only_the_known_stack(&recording, target).with_context(|| steps.to_owned())?;
            for stack in &recording.stacks {
                let thread = stack.thread.as_ref().context("no thread")?;
                ensure!(thread.id == "1", "{thread:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn all_pythons_are_those_of_the_namespace_and_what_is_nested_in_it() {
    with_python(
        "all_pythons_are_those_of_the_namespace_and_what_is_nested_in_it",
        |python| {
            let _outside = python.start(&["lifecycle.py", "works"])?;
            let started = start(Start::PidNamespace, python, &["family.py", "server", "2"])?;
            let namespace = &started.target;
            let deeper = python.command(&folder(), &["known_stack.py"]);
            let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
            let deeper = Target::start_within(beside(namespace, &around(&unshare, &deeper)))?;
            let [_, seen_as, 1] = ids(deeper.pid)?[..] else {
                anyhow::bail!("it has the ids {:?}", ids(deeper.pid)?);
            };
            let recording = record_beside(
                namespace,
                &["--all-python", "-d", "5", "-r", "199", "--full-filenames"],
            )?;
            let mut children = BTreeSet::new();
            for stack in &recording.stacks {
                ensure!(!has(stack, "in_parent"), "from outside: {stack:?}");
                children.extend(child(stack)?);
            }
            ensure!(
                children.len() >= 4,
                "only {children:?}\n{}",
                recording.stderr
            );
            let nested = recording.of(seen_as);
            let whole = nested.iter().find(|stack| stack.marker.is_none());
            let whole = whole.with_context(|| format!("no stack of {seen_as}"))?;
            same_frames(&whole.frames, &expected_stack(&deeper)?)
        },
    );
}

/// Which child of `family.py` a stack shows: it must be the process whose id it has.
fn child(stack: &Stack) -> Result<Option<u32>> {
    let mut frames = stack.frames.iter();
    let Some(own) = frames.find_map(|frame| frame.name.strip_prefix("child_")) else {
        return Ok(None);
    };
    let own: u32 = own.parse()?;
    ensure!(stack.process == Some(own), "child_{own} is in {stack:?}");
    Ok(Some(own))
}

#[test]
fn a_process_of_a_namespace_is_followed_through_exec_and_to_its_end() {
    with_python(
        "a_process_of_a_namespace_is_followed_through_exec_and_to_its_end",
        |python| {
            let started = start(Start::PidNamespace, python, &["lifecycle.py", "works"])?;
            let namespace = &started.target;
            let program = python.program().to_str().context("a path of text")?;
            let script = folder().join("lifecycle.py");
            let script = script.to_str().context("a path of text")?;
            let mut arguments = vec!["-d", "5", "-r", "199", "--", program, "-B"];
            arguments.extend([script, "execs", program]);
            let recording = record_beside(namespace, &arguments)?;
            for function in ["before_exec", "after_exec"] {
                let mut stacks = recording.stacks.iter();
                ensure!(
                    stacks.any(|stack| has(stack, function)),
                    "no {function}\n{}",
                    recording.stderr
                );
            }
            let exits = python.command(&folder(), &["lifecycle.py", "exits", "3"]);
            let exits = Target::start_within(beside(namespace, &exits))?;
            let pid = exits.said["pid"].to_string();
            let folder_of_stats = TempDir::new()?;
            let stats = folder_of_stats.path().join("stats.json");
            let file = stats.to_str().context("a path of text")?;
            record_beside(namespace, &["-d", "60", "-p", &pid, "--stats", file])?;
            let stats: Value = serde_json::from_str(&std::fs::read_to_string(&stats)?)?;
            ensure!(stats["end"] == "targets_gone", "{stats:#}");
            Ok(())
        },
    );
}
