//! The kernel's frames above those that have called it: with the names that are known of a system
//! call, only where the thread was in the kernel, with native frames and without.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use pyebpf_tests::raw::{Frame, Stack, samples};
use pyebpf_tests::recording::{Recording, Running, binary, finished, record};
use pyebpf_tests::skip;
use pyebpf_tests::workload::Target;
use serde_json::Value;
use tempfile::TempDir;

use crate::{has, on_every_python, with_python};

fn is_kernel(frame: &Frame) -> bool {
    let unknown = ["[unknown in kernel", "[unknown: kernel"];
    frame.file.starts_with('[') || unknown.iter().any(|name| frame.name.starts_with(name))
}

/// The frames before the kernel's, and those.
fn apart(stack: &Stack) -> (&[Frame], &[Frame]) {
    let frames = &stack.frames;
    let first = frames.iter().position(is_kernel);
    frames.split_at(first.unwrap_or(frames.len()))
}

/// The kernel is entered by a system call or by an interrupt or fault, and left for nothing else.
fn check_stack(stack: &Stack) -> Result<()> {
    let (_, kernel) = apart(stack);
    ensure!(kernel.iter().all(is_kernel), "more above: {stack:?}");
    let unknown = |frame: &Frame| frame.name.starts_with("[unknown");
    ensure!(!kernel.iter().any(unknown), "without a name: {stack:?}");
    let Some(entry) = kernel.first() else {
        return Ok(());
    };
    let entered = ["entry_SYSCALL", "asm_", "error_entry", "ret_from_fork"]
        .iter()
        .any(|name| entry.name.starts_with(name));
    // A retpoline's thunk writes over its own return address, so the kernel's walker tells nothing of its
    // callers: `UNWIND_HINT_UNDEFINED`, arch/x86/lib/retpoline.S.
    let alone = kernel.len() == 1 && entry.name.starts_with("__x86_");
    ensure!(entered || alone, "not entered: {stack:?}");
    // What samples is not the target's.
    let ours = ["perf_", "__perf_", "bpf_", "hrtimer_"];
    let ours = kernel
        .iter()
        .find(|frame| ours.iter().any(|name| frame.name.starts_with(name)));
    ensure!(ours.is_none(), "{ours:?} of ours: {stack:?}");
    Ok(())
}

fn check(target: &Target, recording: &Recording, native: bool) -> Result<()> {
    let stacks = recording.of(target.pid);
    ensure!(samples(&stacks) >= 10, "only {} samples", samples(&stacks));
    stacks.iter().try_for_each(check_stack)?;
    let reads = |stack: &&Stack| {
        let name = |frame: &Frame| frame.name == "read_zero" || frame.name == "read_iter_zero";
        let (_, kernel) = apart(stack);
        kernel.iter().any(name)
    };
    let (reading, others): (Vec<&Stack>, Vec<&Stack>) = stacks.iter().partition(reads);
    let seen = samples(reading.iter().copied());
    let said = format!("{seen} of {} samples in it", samples(&stacks));
    ensure!(seen * 4 >= samples(&stacks), "{said}\n{stacks:?}");
    for stack in reading {
        ensure!(has(stack, "do_syscall_64"), "no system call: {stack:?}");
        let (before, _) = apart(stack);
        let caller = before.last().map_or("", |frame| &*frame.name);
        let called = match native {
            true => caller.contains("read") && caller != "read_zeros",
            false => caller == "read_zeros",
        };
        ensure!(called, "called by {caller:?}: {stack:?}");
    }
    // Interrupts take next to nothing of what counts alone.
    let counting = others.iter().filter(|stack| has(stack, "count"));
    let counting: Vec<&Stack> = counting.copied().collect();
    let inside = |stack: &&&Stack| apart(stack).1.is_empty();
    let outside = samples(counting.iter().filter(inside).copied());
    let all = samples(counting.iter().copied());
    ensure!(outside * 2 >= all, "{counting:?}");
    Ok(())
}

#[test]
fn the_kernel_s_frames_lie_above_those_that_have_called_it() {
    on_every_python(
        "the_kernel_s_frames_lie_above_those_that_have_called_it",
        &["kernel.py"],
        &["--kernel", "-d", "5", "-r", "499"],
        |_, target, recording| check(target, recording, false),
    );
}

#[test]
fn the_kernel_s_frames_lie_above_native_ones() {
    with_python("the_kernel_s_frames_lie_above_native_ones", |python| {
        let target = python.start(&["kernel.py"])?;
        let pid = target.pid.to_string();
        let recording = record(&["-k", "-n", "-d", "5", "-r", "499", "-p", &pid])?;
        check(&target, &recording, true)
    });
}

#[test]
fn names_that_the_kernel_hides_are_said_to_be_with_what_shows_them() {
    const TEST: &str = "names_that_the_kernel_hides_are_said_to_be_with_what_shows_them";
    // Where this allows it, they are hidden from nobody: `kallsyms_show_value`, kernel/ksyms_common.c.
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    if paranoid.is_ok_and(|level| level.trim().parse().is_ok_and(|level: i32| level <= 1)) {
        return skip(TEST, "perf_event_paranoid lets everybody see them");
    }
    with_python(TEST, |python| {
        let target = python.start(&["kernel.py"])?;
        let folder = TempDir::new()?;
        let path = folder.path().join("profile.txt");
        let stats = folder.path().join("stats.json");
        let mut command = Command::new("setpriv");
        command.args(["--inh-caps=-all", "--bounding-set=-syslog"]);
        command
            .arg(binary())
            .args(["record", "-k", "-f", "raw", "-d", "2", "-r", "499"]);
        command
            .args(["-p", &target.pid.to_string(), "-o"])
            .arg(&path)
            .arg("--stats")
            .arg(&stats);
        let recording = finished(Running::start(&mut command)?.wait()?, &path)?;
        let stacks = recording.of(target.pid);
        let told: Value = serde_json::from_slice(&fs::read(&stats)?)?;
        let frames = &told["kernel_frames"];
        ensure!(
            frames["asked"] == true && frames["samples"].as_u64() > Some(0),
            "{frames}"
        );
        let missing = frames["missing"]["hidden"] == frames["samples"];
        ensure!(missing, "all names are hidden: {frames}");
        let hidden = "[unknown: kernel frames, their names are hidden]";
        for stack in stacks.iter().filter(|stack| has(stack, hidden)) {
            let (before, kernel) = apart(stack);
            ensure!(kernel.len() == 1 && !before.is_empty(), "{stack:?}");
        }
        ensure!(stacks.iter().any(|stack| has(stack, hidden)), "{stacks:?}");
        ensure!(
            !stacks.iter().any(|stack| has(stack, "do_syscall_64")),
            "{stacks:?}"
        );
        let said = &recording.stderr;
        for part in [
            "their names are hidden",
            "without CAP_SYSLOG",
            "--cap-add SYSLOG",
        ] {
            ensure!(said.contains(part), "{part} is not in {said}");
        }
        Ok(())
    });
}
