//! Whether a process that is gone before pyebpf reads its first sample still has names and lines.

use std::os::unix::process::ExitStatusExt as _;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::matrix::same_frames;
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::raw::{self, Stack, samples};
use pyebpf_tests::recording::{Ended, Running, pyebpf};
use pyebpf_tests::workload::Target;
use pyebpf_tests::{Parts, can_profile, turn};
use tempfile::TempDir;

use crate::expected_stack;

#[test]
fn names_a_process_that_is_gone_before_it_is_looked_at() {
    named(
        "names_a_process_that_is_gone_before_it_is_looked_at",
        "best",
    );
}

/// As kernels before 5.17 copy the code.
#[test]
fn names_a_process_that_is_gone_where_steps_are_calls() {
    named(
        "names_a_process_that_is_gone_where_steps_are_calls",
        "calls",
    );
}

fn named(test: &str, steps: &str) {
    if !can_profile(test) {
        return;
    }
    let _turn = turn();
    let mut parts = Parts::default();
    let mut targets = Vec::new();
    for python in pythons::all(test) {
        match python.start(&["short_lived.py"]) {
            Ok(target) => targets.push((python, target)),
            Err(error) => parts.note(&python.name, Err(error)),
        }
    }
    match record_stopped(&mut targets, steps) {
        Ok((ended, stacks)) => {
            for (python, target) in &targets {
                parts.note(&python.name, check(target, &stacks));
            }
            parts.add(&ended.stderr);
        }
        Err(error) => parts.note("pyebpf record", Err(error)),
    }
    parts.finish();
}

/// Records the targets with a pyebpf that is stopped until all of them are gone.
fn record_stopped(targets: &mut [(Python, Target)], steps: &str) -> Result<(Ended, Vec<Stack>)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("out.txt");
    let mut command = pyebpf(&["record", "-r", "199", "--full-filenames", "-f", "raw", "-o"]);
    command.arg(&path).args(["--all-python", "--steps", steps]);
    let running = Running::start(&mut command)?;
    running.wait_until_it_samples()?;
    running.signal(libc::SIGSTOP)?;
    for (_, target) in targets.iter() {
        let pid = libc::pid_t::try_from(target.pid).context("a pid fits")?;
        // SAFETY: kill takes no pointers; the child has not been waited for, so the pid is its own.
        let sent = unsafe { libc::kill(pid, libc::SIGUSR1) };
        ensure!(sent == 0, "{}", std::io::Error::last_os_error());
    }
    for (python, target) in targets.iter_mut() {
        let status = target.child.wait()?;
        let killed = status.signal() == Some(libc::SIGKILL);
        ensure!(killed, "{}: {status}", python.name);
    }
    running.signal(libc::SIGCONT)?;
    sleep(Duration::from_millis(200));
    running.signal(libc::SIGINT)?;
    let ended = running.wait()?;
    ensure!(ended.status.success(), "{}", ended.stderr);
    let stacks = raw::parse(&std::fs::read_to_string(&path)?)?;
    Ok((ended, stacks))
}

fn check(target: &Target, stacks: &[Stack]) -> Result<()> {
    let expected = expected_stack(target)?;
    let of_it: Vec<Stack> = stacks
        .iter()
        .filter(|stack| stack.process == Some(target.pid))
        .cloned()
        .collect();
    let spinning = of_it.iter().filter(|stack| {
        let leaf = stack.frames.last();
        stack.marker.is_none() && leaf.is_some_and(|leaf| leaf.name == "spin")
    });
    for stack in spinning.clone() {
        same_frames(&stack.frames, &expected)?;
    }
    let (count, all) = (samples(spinning), samples(of_it.iter()));
    ensure!(count >= 5, "{count} samples of it spinning: {of_it:?}");
    ensure!(
        10 * count >= 9 * all,
        "{count} of {all} samples show it spinning: {of_it:?}"
    );
    Ok(())
}
