//! Targets that are killed, stopped, and that become other programs all the time: what is shown of
//! them is right, and a target beside them is profiled as if they were not there.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use pyebpf_tests::pythons;
use pyebpf_tests::recording::record;
use pyebpf_tests::skip;

use crate::{
    expected_stack, has, only_the_known_stack, record_during, right_or_unknown, with_python,
};

#[test]
fn targets_that_are_killed_and_stopped_spoil_nothing() {
    with_python(
        "targets_that_are_killed_and_stopped_spoil_nothing",
        |python| {
            let steady = python.start(&["known_stack.py"])?;
            let stopped = python.start(&["known_stack.py"])?;
            let mut killed = Vec::new();
            let recording = record_during(&["--all-python", "-r", "499"], || {
                sleep(Duration::from_millis(700));
                let start = Instant::now();
                for round in 0_u64.. {
                    if start.elapsed() > Duration::from_secs(5) {
                        break;
                    }
                    // Names that were not read before it stops are read while it is stopped.
                    let signal = [libc::SIGSTOP, libc::SIGCONT][round as usize % 2];
                    stopped.signal(signal)?;
                    let target = python.start(&["known_stack.py"])?;
                    sleep(Duration::from_millis(10 * (round % 8)));
                    killed.push((target.pid, expected_stack(&target)?));
                }
                stopped.signal(libc::SIGCONT)
            })?;
            only_the_known_stack(&recording, &steady)?;
            only_the_known_stack(&recording, &stopped)?;
            let mut seen = 0;
            for (pid, expected) in &killed {
                let stacks = recording.of(*pid);
                // What it did before it span is seen, too.
                let leaf = expected.last().context("a leaf")?;
                let spins = stacks.iter().filter(|stack| {
                    let newest = stack.frames.last();
                    newest.is_some_and(|newest| {
                        newest.name == leaf.0 && leaf.2.contains(&newest.line)
                    })
                });
                for stack in spins {
                    seen += stack.count;
                    right_or_unknown(&stack.frames, expected)?;
                }
            }
            ensure!(
                killed.len() >= 5 && seen > 0,
                "{} processes, {seen} samples",
                killed.len()
            );
            Ok(())
        },
    );
}

#[test]
fn a_target_that_is_stopped_all_along_holds_nothing_up() {
    with_python(
        "a_target_that_is_stopped_all_along_holds_nothing_up",
        |python| {
            let target = python.start(&["known_stack.py"])?;
            target.signal(libc::SIGSTOP)?;
            let start = Instant::now();
            let recording = record(&["-d", "2", "-p", &target.pid.to_string()])?;
            ensure!(start.elapsed() < Duration::from_secs(60), "it hung");
            ensure!(recording.stacks.is_empty(), "{:?}", recording.stacks);
            Ok(())
        },
    );
}

#[test]
fn lives_of_one_process_are_never_mixed() {
    const TEST: &str = "lives_of_one_process_are_never_mixed";
    with_python(TEST, |python| {
        let mut programs = vec![python.program().to_string_lossy().into_owned()];
        let others = pythons::all(TEST).into_iter();
        // Of another layout; the same two interpreters map the same files at the same addresses.
        let other = others.rev().find(|other| {
            other.name.starts_with("pyenv") && other.minor > 11 && other.minor != python.minor
        });
        match other {
            Some(other) => programs.push(other.program().to_string_lossy().into_owned()),
            None => skip(TEST, "there is only one Python to change to"),
        }
        let mut arguments = vec!["lives.py", "0"];
        arguments.extend(programs.iter().map(String::as_str));
        let target = python.start(&arguments)?;
        let lines: HashMap<String, u32> = serde_json::from_value(target.said["lines"].clone())?;
        let recording = record(&[
            "-d",
            "6",
            "-r",
            "999",
            "--full-filenames",
            "-p",
            &target.pid.to_string(),
        ])?;
        let (mut even, mut odd) = (0, 0);
        for stack in &recording.stacks {
            let (is_even, is_odd) = (has(stack, "even_life"), has(stack, "odd_life"));
            ensure!(!(is_even && is_odd), "both in {stack:?}");
            (even, odd) = (
                even + stack.count * u64::from(is_even),
                odd + stack.count * u64::from(is_odd),
            );
            for frame in &stack.frames {
                let Some(&first) = lines.get(&frame.name) else {
                    continue;
                };
                let last = first + if frame.name == "work" { 3 } else { 1 };
                ensure!(
                    (first..=last).contains(&frame.line),
                    "{frame:?} is not within {first} to {last}"
                );
                let other = if is_even { "odd" } else { "even" };
                ensure!(!frame.name.starts_with(other), "{stack:?}");
            }
        }
        ensure!(
            even > 0 && odd > 0,
            "{even} and {odd} samples\n{}",
            recording.stderr
        );
        Ok(())
    });
}
