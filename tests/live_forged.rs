//! Targets that forge their own interpreter: chains that bite their tail, pointers into the kernel,
//! strings without end. Each gives an outcome that says so or a frame without a name, never a wrong
//! one; and a target beside them is profiled as if they were not there.

use anyhow::{Context as _, Result, bail, ensure};
use pyebpf::cpython::Build;
use pyebpf_tests::matrix::{Expected, same_frames};
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::raw::{Frame, Stack, samples};
use pyebpf_tests::recording::{Recording, record};
use pyebpf_tests::workload::Target;
use pyebpf_tests::{Parts, can_profile, skip, turn};
use serde_json::json;

use crate::{expected_stack, only_the_known_stack};

/// How a forged chain must be shown.
#[derive(Clone, Copy, Debug)]
enum Shown {
    /// Truncated for this reason, and the newest frames, so many, are right.
    Truncated(&'static str, usize),
    /// As deep as a sample can be; all frames are `spin` and `level`.
    TooDeep,
    /// Nothing of it but this marker.
    Unreadable(&'static str),
    /// All frames are right but the forged one, which has no name; or the chain ends at it.
    Nameless,
    /// All frames are right but the forged one, which has its name and no line.
    Lineless,
    /// All names are right; the forged frame may be on any line.
    AnyLine,
    /// No stack at all.
    NoStack,
    /// Whole and right, or truncated.
    Either,
}

/// What `forged.py` forges, and how that must be shown.
const FORGERIES: [(&str, Shown); 18] = [
    ("cycle", Shown::TooDeep),
    ("cycle of one", Shown::TooDeep),
    (
        "caller in the kernel",
        Shown::Truncated("caller's frame unreadable", 5),
    ),
    (
        "caller nowhere",
        Shown::Truncated("caller's frame unreadable", 5),
    ),
    (
        "caller at the end",
        Shown::Truncated("caller's frame unreadable", 5),
    ),
    (
        "newest in the kernel",
        Shown::Unreadable("unreadable: newest frame"),
    ),
    ("code in the kernel", Shown::Nameless),
    ("code is none", Shown::Nameless),
    ("name in the kernel", Shown::Nameless),
    ("name without end", Shown::Nameless),
    ("negative name", Shown::Nameless),
    ("name of no kind", Shown::Nameless),
    ("file without end", Shown::Nameless),
    ("table without end", Shown::Lineless),
    ("table of garbage", Shown::AnyLine),
    ("instruction anywhere", Shown::AnyLine),
    ("threads in a ring", Shown::NoStack),
    ("flips", Shown::Either),
];

/// The frame that is forged, counted from the newest.
const FORGED: usize = 4;

#[test]
fn a_forged_interpreter_is_never_believed_and_hurts_no_other() {
    const TEST: &str = "a_forged_interpreter_is_never_believed_and_hurts_no_other";
    if !can_profile(TEST) {
        return;
    }
    let _turn = turn();
    let mut parts = Parts::default();
    // How a version is forged and read does not depend on where it is from.
    let mut pythons = pythons::all(TEST);
    pythons.sort_by_key(|python| (python.minor, python.free_threaded));
    pythons.dedup_by_key(|python| (python.minor, python.free_threaded));
    for python in pythons {
        match offsets(&python) {
            None => skip(
                &format!("{TEST} on {}", python.name),
                "its layout is not in a table",
            ),
            Some(offsets) => {
                if let Err(error) = on(&python, &offsets, &mut parts) {
                    parts.note(&python.name, Err(error));
                }
            }
        }
    }
    parts.finish();
}

/// The offsets that the workload forges with.
fn offsets(python: &Python) -> Option<String> {
    let minor = u8::try_from(python.minor).ok()?;
    let layout = pyebpf::cpython::layout(Build::new(3, minor, python.free_threaded))?;
    let offsets = json!({
        "bytes_size": layout.bytes_size,
        "cframe_frame": layout.cframe_frame,
        "chain": layout.chain,
        "code_filename": layout.code_filename,
        "code_linetable": layout.code_linetable,
        "code_name": layout.code_name,
        "frame_code": layout.frame_code,
        "frame_instruction": layout.frame_instruction,
        "frame_previous": layout.frame_previous,
        "str_ascii": layout.str_ascii,
        "str_length": layout.str_length,
        "str_state": layout.str_state,
        "thread_frame": layout.thread_frame,
        "thread_id": layout.thread_id,
        "thread_next": layout.thread_next,
    });
    Some(offsets.to_string())
}

fn on(python: &Python, offsets: &str, parts: &mut Parts) -> Result<()> {
    let good = python.start(&["known_stack.py"])?;
    let mut forged = Vec::new();
    for (name, shown) in FORGERIES {
        let target = python.start(&["forged.py", name, offsets]);
        let target = target.with_context(|| name.to_owned())?;
        // So many at work would keep the others from starting.
        target.signal(libc::SIGSTOP)?;
        forged.push((name, shown, target));
    }
    let mut arguments = vec!["-d", "3", "-r", "999", "--full-filenames"];
    let pids = forged.iter().map(|(.., target)| target).chain([&good]);
    let pids: Vec<String> = pids.map(|target| target.pid.to_string()).collect();
    for pid in &pids {
        arguments.extend(["-p", pid]);
    }
    for (.., target) in &forged {
        target.signal(libc::SIGCONT)?;
    }
    let recording = record(&arguments)?;
    for (name, shown, target) in &forged {
        let result = check(&recording, target, *shown);
        parts.note(&format!("{}, {name}", python.name), result);
    }
    let result = only_the_known_stack(&recording, &good);
    parts.note(&format!("{}, the one beside them", python.name), result);
    ensure!(!recording.stderr.contains("lost: "), "{}", recording.stderr);
    Ok(())
}

fn check(recording: &Recording, target: &Target, shown: Shown) -> Result<()> {
    let mut expected = expected_stack(target)?;
    let stacks = recording.of(target.pid);
    if matches!(shown, Shown::NoStack) {
        ensure!(stacks.is_empty(), "{:?}", stacks[0]);
        return Ok(());
    }
    let at = expected.len() - 1 - FORGED;
    match shown {
        Shown::AnyLine => expected[at].2.clear(),
        Shown::Lineless => expected[at].2 = vec![0],
        _ => {}
    }
    ensure!(samples(&stacks) >= 5, "only {} samples", samples(&stacks));
    for stack in &stacks {
        check_stack(stack, &expected, shown).with_context(|| brief(stack))?;
    }
    Ok(())
}

fn check_stack(stack: &Stack, expected: &[Expected], shown: Shown) -> Result<()> {
    let marker = stack.marker.as_deref();
    match shown {
        Shown::Truncated(why, frames) => {
            ensure!(marker == Some(&format!("truncated: {why}")), "not {why}");
            same_frames(&stack.frames, &expected[expected.len() - frames..])
        }
        Shown::TooDeep => {
            let deep = marker.is_some_and(|marker| marker.starts_with("truncated: deeper"));
            ensure!(deep && stack.frames.len() == 1024, "not too deep");
            let known = |frame: &Frame| ["spin", "level"].contains(&frame.name.as_str());
            ensure!(stack.frames.iter().all(known), "another function");
            Ok(())
        }
        Shown::Unreadable(why) => {
            ensure!(marker == Some(why) && stack.frames.is_empty(), "not {why}");
            Ok(())
        }
        Shown::Nameless if marker.is_some() => {
            same_frames(&stack.frames, &expected[expected.len() - FORGED..])
        }
        Shown::Nameless => nameless(&stack.frames, expected),
        Shown::Lineless => {
            ensure!(marker.is_none(), "marked");
            same_frames(&stack.frames, expected)
        }
        Shown::AnyLine => {
            ensure!(marker.is_none(), "marked");
            any_line(&stack.frames, expected)
        }
        Shown::Either => match marker {
            None => same_frames(&stack.frames, expected),
            Some(marker) => {
                ensure!(marker.starts_with("truncated: "), "not truncated");
                Ok(())
            }
        },
        Shown::NoStack => bail!("a stack"),
    }
}

/// All frames but the forged one are as expected, and that has no name.
fn nameless(frames: &[Frame], expected: &[Expected]) -> Result<()> {
    ensure!(frames.len() == expected.len(), "{} frames", frames.len());
    let at = expected.len() - 1 - FORGED;
    let forged = &frames[at];
    ensure!(
        forged.name.starts_with("[unknown"),
        "it is named {forged:?}"
    );
    same_frames(&frames[..at], &expected[..at])?;
    same_frames(&frames[at + 1..], &expected[at + 1..])
}

/// Likewise, and that has its name, on whatever line.
fn any_line(frames: &[Frame], expected: &[Expected]) -> Result<()> {
    ensure!(frames.len() == expected.len(), "{} frames", frames.len());
    let at = expected.len() - 1 - FORGED;
    ensure!(
        frames[at].name == expected[at].0 && frames[at].file == expected[at].1,
        "it is named {:?}",
        frames[at]
    );
    same_frames(&frames[..at], &expected[..at])?;
    same_frames(&frames[at + 1..], &expected[at + 1..])
}

/// What a failure shows of a stack: not all of its thousand frames.
fn brief(stack: &Stack) -> String {
    let newest = stack.frames.iter().rev().take(7);
    let names: Vec<&str> = newest.map(|frame| frame.name.as_str()).collect();
    format!(
        "{} frames, marked {:?}, the newest are {names:?}",
        stack.frames.len(),
        stack.marker
    )
}
