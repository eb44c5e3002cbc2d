//! Whether amounts are true: shares of CPU time, nothing for who is blocked, and threads told apart.

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::pythons;
use pyebpf_tests::raw::{Stack, samples};
use pyebpf_tests::recording::record;
use pyebpf_tests::workload::Target;
use pyebpf_tests::{Parts, can_profile, turn};
use serde_json::Value;

use crate::{has, on_every_python, on_these};

/// How far a share may be from the truth, in percentage points.
const POINTS: f64 = 3.0;

#[test]
fn shows_a_split_of_cpu_time_within_3_points() {
    on_every_python(
        "shows_a_split_of_cpu_time_within_3_points",
        &["split.py"],
        &["-d", "12", "-r", "1999"],
        |_, target, recording| shares_are_as_told(&target.said, &recording.of(target.pid)),
    );
}

#[test]
fn shows_a_rhythm_of_the_sampling_period_within_3_points() {
    const TEST: &str = "shows_a_rhythm_of_the_sampling_period_within_3_points";
    if !can_profile(TEST) {
        return;
    }
    let Some(python) = pythons::any(TEST) else {
        return;
    };
    let _turn = turn();
    let mut parts = Parts::default();
    let result = python.start(&["rhythm.py"]).and_then(|target| {
        let pid = target.pid.to_string();
        let recording = record(&["-d", "20", "-r", "100", "-p", &pid])?;
        let stacks = recording.of(target.pid);
        let said = target.finish()?;
        let first = said["shares"]["first_fifth"].as_f64().context("no share")?;
        ensure!(
            (10.0..=30.0).contains(&first),
            "no rhythm on this machine: {said}"
        );
        shares_are_as_told(&said, &stacks)
    });
    parts.note(&python.name, result);
    parts.finish();
}

/// Compares the shares by leaf function with those that the workload says it has.
fn shares_are_as_told(said: &Value, stacks: &[Stack]) -> Result<()> {
    let told = said["shares"].as_object().context("no shares are told")?;
    let of = |name: &str| samples(stacks.iter().filter(|stack| has(stack, name)));
    let total: u64 = told.keys().map(|name| of(name)).sum();
    ensure!(total >= 200, "only {total} samples");
    // The loop between the slices has next to nothing.
    ensure!(
        samples(stacks) - total <= samples(stacks) / 50,
        "{total} of {} samples are of the functions that work",
        samples(stacks)
    );
    for (name, percent) in told {
        let percent = percent.as_f64().context("a share is a number")?;
        let seen = of(name) as f64 * 100.0 / total as f64;
        ensure!(
            (seen - percent).abs() <= POINTS,
            "{name} has {seen:.1} % of {total} samples, not {percent} %"
        );
    }
    Ok(())
}

#[test]
fn tells_threads_apart_and_gives_blocked_ones_nothing() {
    on_these(
        "tells_threads_apart_and_gives_blocked_ones_nothing",
        &|python| python.start(&["threads.py"]),
        &[
            &["-d", "4", "-r", "499", "-t"],
            &["-d", "2", "-r", "499", "-t", "-g"],
        ],
        |_, target, recordings| {
            let all = recordings[0].of(target.pid);
            busy_threads_only(&all)?;
            threads_are_told_apart(target, &all)?;
            summing_keeps_its_stack(&all)?;
            let holding = recordings[1].of(target.pid);
            let spins = by_thread_function(&holding, "spins_in_python");
            let sums = by_thread_function(&holding, "sums_without_gil");
            ensure!(
                spins >= 10 && sums * 20 <= spins,
                "with -g: {sums} samples of the thread without the GIL, {spins} of the other"
            );
            Ok(())
        },
    );
}

fn by_thread_function(stacks: &[Stack], function: &str) -> u64 {
    samples(stacks.iter().filter(|stack| has(stack, function)))
}

fn busy_threads_only(stacks: &[Stack]) -> Result<()> {
    for stack in stacks {
        let busy = has(stack, "spins_in_python") || has(stack, "sums_without_gil");
        ensure!(busy, "a blocked thread has time: {stack:?}");
        ensure!(stack.marker.is_none(), "marked: {stack:?}");
    }
    Ok(())
}

fn threads_are_told_apart(target: &Target, stacks: &[Stack]) -> Result<()> {
    for function in ["spins_in_python", "sums_without_gil"] {
        let id = target.said["threads"][function].to_string();
        let own = by_thread_function(stacks, function);
        ensure!(own >= 10, "{own} samples of {function}");
        for stack in stacks.iter().filter(|stack| has(stack, function)) {
            let thread = stack.thread.as_ref().context("no thread frame")?;
            ensure!(thread.id == id, "{function} runs in {id}, not {thread:?}");
            ensure!(thread.name == function, "{thread:?} runs {function}");
        }
    }
    Ok(())
}

/// A thread that is in C code without the GIL keeps its Python stack, with the line of the call.
fn summing_keeps_its_stack(stacks: &[Stack]) -> Result<()> {
    let of_summing: Vec<&Stack> = stacks
        .iter()
        .filter(|stack| has(stack, "sums_without_gil"))
        .collect();
    for stack in &of_summing {
        let names: Vec<&str> = stack
            .frames
            .iter()
            .map(|frame| frame.name.as_str())
            .collect();
        // `_bootstrap`, `_bootstrap_inner`, `run`, `begin`, the function, and `running` at times.
        let begin = names.iter().position(|name| *name == "begin");
        ensure!(
            names
                .first()
                .is_some_and(|name| name.ends_with("_bootstrap"))
                && begin.is_some_and(|at| names.get(at + 1) == Some(&"sums_without_gil")),
            "{names:?}"
        );
    }
    let leaf = |stack: &&&Stack| {
        stack
            .frames
            .last()
            .is_some_and(|frame| frame.name == "sums_without_gil")
    };
    let all = samples(of_summing.iter().copied());
    let in_call = samples(of_summing.iter().filter(leaf).copied());
    ensure!(
        in_call * 10 >= all * 9,
        "{in_call} of {all} samples are at the call"
    );
    Ok(())
}
