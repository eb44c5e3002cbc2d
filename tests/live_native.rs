//! Native frames among Python's: in the order that is known from the program, whole to the thread's
//! first frame, on every Python.

use anyhow::{Context as _, Result, bail, ensure};
use pyebpf_tests::raw::{Frame, Stack, samples};
use pyebpf_tests::recording::Recording;
use pyebpf_tests::workload::Target;

use crate::{has, on_those};

/// Is this a frame of native code: with a source file or a library for its file, or without a name?
fn is_native(frame: &Frame) -> bool {
    let unnamed = frame.name.starts_with("[unknown in ");
    unnamed || !frame.name.starts_with('[') && !frame.file.ends_with(".py")
}

/// Is it of the library?
fn is_of(frame: &Frame, library: &str) -> bool {
    let unnamed = frame.name.strip_prefix("[unknown in ");
    let named = [&*frame.module, &*frame.file];
    named
        .into_iter()
        .chain(unnamed)
        .any(|module| module.starts_with(library))
}

/// The frames between `from` and `to`, or the stack's end; `None` if not all of them are native.
fn between<'a>(stack: &'a Stack, from: &str, to: Option<&str>) -> Option<&'a [Frame]> {
    let place = |name: &str| stack.frames.iter().rposition(|frame| frame.name == name);
    let end = to.map_or(Some(stack.frames.len()), place)?;
    let frames = stack.frames.get(place(from)? + 1..end)?;
    frames.iter().all(is_native).then_some(frames)
}

/// Of the stacks within `compare` each has the frames that the program says it has.
fn interleaved(stack: &Stack) -> Result<()> {
    let seen = || format!("{stack:?}");
    let callback = between(stack, "sort", Some("compare")).with_context(seen)?;
    let interpreter = |frame: &&Frame| is_of(frame, "python") || is_of(frame, "libpython");
    if let Some(frame) = callback.iter().find(interpreter) {
        bail!("{frame:?} is not folded: {}", seen());
    }
    // ctypes calls libffi, that qsort, that libffi's closure, that ctypes.
    for library in ["_ctypes", "libffi", "libc."] {
        let known = callback.iter().any(|frame| is_of(frame, library));
        ensure!(known, "no {library} between sort and compare: {}", seen());
    }
    Ok(())
}

fn check(target: &Target, recording: &Recording, told: bool) -> Result<()> {
    let stacks = recording.of(target.pid);
    ensure!(samples(&stacks) >= 50, "only {} samples", samples(&stacks));
    let cut = stacks.iter().filter(|stack| {
        let frames = stack.frames.iter();
        frames
            .map(|frame| &frame.name)
            .any(|name| name.starts_with("[unknown: native"))
    });
    let cut = samples(cut);
    ensure!(cut * 100 <= samples(&stacks), "{cut} stacks are cut");
    let checksum = |frame: &Frame| is_of(frame, "libz.");
    let in_zlib = stacks
        .iter()
        .filter(|stack| has(stack, "compare") && stack.frames.last().is_some_and(checksum));
    let in_zlib: Vec<&Stack> = in_zlib.collect();
    ensure!(samples(in_zlib.iter().copied()) >= 20, "zlib: {stacks:?}");
    for stack in in_zlib {
        let called = between(stack, "compare", None);
        ensure!(called.is_some_and(|called| !called.is_empty()), "{stack:?}");
        if told {
            interleaved(stack)?;
        }
    }
    Ok(())
}

#[test]
fn native_frames_have_their_place_among_those_of_python() {
    on_those(
        "native_frames_have_their_place_among_those_of_python",
        &|python| python.minor >= 8,
        &|python| python.start(&["native.py"]),
        &[&["--native", "-d", "6", "-r", "499"]],
        |python, target, recordings| check(target, &recordings[0], python.minor >= 11),
    );
}

/// As kernels before 5.17 do it; newer ones can, too. On some Pythons that differ in how they tell where
/// the native stack is met.
#[test]
fn native_frames_are_found_by_calls_as_by_a_loop() {
    on_those(
        "native_frames_are_found_by_calls_as_by_a_loop",
        &|python| python.name.starts_with("pyenv") && [10, 11, 12].contains(&python.minor),
        &|python| python.start(&["native.py"]),
        &[&["--native", "--steps", "calls", "-d", "4", "-r", "499"]],
        |python, target, recordings| check(target, &recordings[0], python.minor >= 11),
    );
}
