//! Live tests: the built `pyebpf` on running Pythons, as root. One recording covers all versions at
//! once, so the whole takes minutes, not an hour; each version's failure is told by its name.

mod live_accounts;
mod live_agent;
mod live_amounts;
mod live_cgroups;
mod live_chaos;
mod live_deploy;
mod live_doctor;
mod live_events;
mod live_forged;
mod live_gone;
mod live_hostile;
mod live_kernel;
mod live_kinds;
mod live_matrix;
mod live_namespaces;
mod live_native;
mod live_pods;
mod live_processes;
mod live_shapes;
mod live_shares;
mod live_short_lived;
mod live_stacks;
mod live_untold;

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::matrix::{Expected, same_frames};
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::raw::{Frame, Stack, samples};
use pyebpf_tests::recording::{Recording, Running, finished, pyebpf, record};
use pyebpf_tests::workload::Target;
use pyebpf_tests::{Parts, can_profile, turn};
use tempfile::TempDir;

/// Starts a workload on every Python, records them all together with these flags, and checks each.
fn on_every_python(
    test: &str,
    workload: &[&str],
    flags: &[&str],
    check: impl Fn(&Python, &Target, &Recording) -> Result<()>,
) {
    on_these(
        test,
        &|python| python.start(workload),
        &[flags],
        |python, target, recordings| check(python, target, &recordings[0]),
    );
}

/// Likewise, with a way to start of its own and one recording for each set of flags.
fn on_these(
    test: &str,
    start: &dyn Fn(&Python) -> Result<Target>,
    flags: &[&[&str]],
    check: impl Fn(&Python, &Target, &[Recording]) -> Result<()>,
) {
    on_those(test, &|_| true, start, flags, check);
}

/// Likewise, on some of the Pythons.
fn on_those(
    test: &str,
    wanted: &dyn Fn(&Python) -> bool,
    start: &dyn Fn(&Python) -> Result<Target>,
    flags: &[&[&str]],
    check: impl Fn(&Python, &Target, &[Recording]) -> Result<()>,
) {
    if !can_profile(test) {
        return;
    }
    let _turn = turn();
    let mut parts = Parts::default();
    let mut targets = Vec::new();
    for python in pythons::all(test).into_iter().filter(wanted) {
        // So many at work would keep the others from starting.
        let stopped = |target: Target| target.signal(libc::SIGSTOP).map(|()| target);
        match start(&python).and_then(stopped) {
            Ok(target) => targets.push((python, target)),
            Err(error) => parts.note(&python.name, Err(error)),
        }
    }
    let pids: Vec<String> = targets
        .iter()
        .map(|(_, target)| target.pid.to_string())
        .collect();
    if pids.is_empty() {
        return parts.finish();
    }
    for (_, target) in &targets {
        if let Err(error) = target.signal(libc::SIGCONT) {
            parts.note("SIGCONT", Err(error));
        }
    }
    let recorded: Result<Vec<Recording>> = flags
        .iter()
        .map(|flags| {
            let mut arguments = flags.to_vec();
            for pid in &pids {
                arguments.extend(["-p", pid]);
            }
            record(&arguments)
        })
        .collect();
    match recorded {
        Ok(recordings) => {
            for (python, target) in &targets {
                let result = check(python, target, &recordings);
                parts.note(&format!("{} ({})", python.name, target.pid), result);
            }
            for recording in &recordings {
                parts.add(&recording.stderr);
            }
        }
        Err(error) => parts.note("pyebpf record", Err(error)),
    }
    parts.finish();
}

/// The stack that a workload says it has, from root to leaf.
fn expected_stack(target: &Target) -> Result<Vec<Expected>> {
    serde_json::from_value(target.said["stack"].clone()).context("the workload tells its stack")
}

/// Whether any of the frames is of this function.
fn has(stack: &Stack, function: &str) -> bool {
    stack.frames.iter().any(|frame| frame.name == function)
}

/// Runs a test of one Python, alone on the machine.
fn with_python(test: &str, body: impl FnOnce(&Python) -> Result<()>) {
    if !can_profile(test) {
        return;
    }
    let Some(python) = pythons::any(test) else {
        return;
    };
    let _turn = turn();
    if let Err(error) = body(&python) {
        panic!("{}: {error:#}", python.name);
    }
}

/// Records while `chaos` goes on, from when it samples; gives what was recorded, with the process of each stack.
fn record_during(flags: &[&str], chaos: impl FnOnce() -> Result<()>) -> Result<Recording> {
    let folder = TempDir::new()?;
    let path = folder.path().join("profile.txt");
    let mut command = pyebpf(&["record", "-f", "raw", "--full-filenames", "-o"]);
    let running = Running::start(command.arg(&path).args(flags))?;
    let done = running.wait_until_it_samples().and_then(|()| chaos());
    running.signal(libc::SIGINT)?;
    let recording = finished(running.wait()?, &path)?;
    done.map(|()| recording)
}

/// Every stack of the target is whole and the one that it tells.
fn only_the_known_stack(recording: &Recording, target: &Target) -> Result<()> {
    let expected = expected_stack(target)?;
    let stacks = recording.of(target.pid);
    ensure!(
        samples(&stacks) >= 10,
        "only {} samples\n{}",
        samples(&stacks),
        recording.stderr
    );
    for stack in &stacks {
        ensure!(stack.marker.is_none(), "marked {:?}", stack.marker);
        same_frames(&stack.frames, &expected)?;
    }
    Ok(())
}

/// The newest frames are as expected, as many as there are; a name may be unknown or unproven.
fn right_or_unknown(frames: &[Frame], expected: &[Expected]) -> Result<()> {
    let missing = expected.len().checked_sub(frames.len());
    let missing = missing.with_context(|| format!("{} frames", frames.len()))?;
    for (seen, expected) in frames.iter().zip(&expected[missing..]) {
        let Expected(name, file, lines) = expected;
        let right = seen.name.strip_suffix(" [unproven]").unwrap_or(&seen.name) == name
            && seen.file == *file
            && lines.contains(&seen.line);
        ensure!(
            right || seen.name.starts_with("[unknown"),
            "{seen:?}, not {expected:?}"
        );
    }
    Ok(())
}
