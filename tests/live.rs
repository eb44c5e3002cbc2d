//! Live tests: the built `pyebpf` on running Pythons, as root. One recording covers all versions at
//! once, so the whole takes minutes, not an hour; each version's failure is told by its name.

mod live_amounts;
mod live_hostile;
mod live_processes;
mod live_shapes;
mod live_shares;
mod live_stacks;

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::raw::{Frame, Stack};
use pyebpf_tests::recording::{Recording, record};
use pyebpf_tests::workload::Target;
use pyebpf_tests::{Parts, can_profile, turn};

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
    if !can_profile(test) {
        return;
    }
    let _turn = turn();
    let mut parts = Parts::default();
    let mut targets = Vec::new();
    for python in pythons::all(test) {
        match start(&python) {
            Ok(target) => targets.push((python, target)),
            Err(error) => parts.note(&python.name, Err(error)),
        }
    }
    let pids: Vec<String> = targets
        .iter()
        .map(|(_, target)| target.pid.to_string())
        .collect();
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

/// One frame as a workload tells it: the name, the file, and the lines that it may be on.
#[derive(Debug, serde::Deserialize)]
struct Expected(String, String, Vec<u32>);

/// The stack that a workload says it has, from root to leaf.
fn expected_stack(target: &Target) -> Result<Vec<Expected>> {
    serde_json::from_value(target.said["stack"].clone()).context("the workload tells its stack")
}

/// Checks the Python frames of a stack against those that are expected, all of them.
fn same_frames(seen: &[Frame], expected: &[Expected]) -> Result<()> {
    for (index, (seen, expected)) in seen.iter().zip(expected).enumerate() {
        let Expected(name, file, lines) = expected;
        ensure!(
            seen.name == *name && seen.file == *file && lines.contains(&seen.line),
            "frame {index} from the root is {seen:?}, not {expected:?}"
        );
    }
    ensure!(
        seen.len() == expected.len(),
        "{} frames instead of {}; the newest are {:?}",
        seen.len(),
        expected.len(),
        &seen[seen.len().saturating_sub(3)..]
    );
    Ok(())
}

/// Whether any of the frames is of this function.
fn has(stack: &Stack, function: &str) -> bool {
    stack.frames.iter().any(|frame| frame.name == function)
}
