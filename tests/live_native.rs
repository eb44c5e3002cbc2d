//! Native frames among Python's: in the order that is known from the program, whole to the thread's
//! first frame, on every Python.

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::raw::{Frame, Stack, samples};
use pyebpf_tests::recording::Recording;
use pyebpf_tests::workload::Target;

use crate::{has, on_those};

/// The file that a native frame is of; `None` for one of Python.
fn module(frame: &Frame) -> Option<&str> {
    match frame.name.strip_prefix("[unknown in ") {
        Some(rest) => Some(rest.split_once('+').map_or(rest, |(module, _)| module)),
        None if frame.name.starts_with("[unknown") => None,
        // A name with its module.
        None => (!frame.file.ends_with(".py") && frame.line == 0).then_some(&*frame.file),
    }
}

/// The files of native frames between two Python frames, from root to leaf; `None` is the stack's end.
fn between<'a>(stack: &'a Stack, from: Option<&str>, to: Option<&str>) -> Option<Vec<&'a str>> {
    let place = |name: &str| stack.frames.iter().rposition(|frame| frame.name == name);
    let start = from.map_or(Some(0), |from| Some(place(from)? + 1))?;
    let end = to.map_or(Some(stack.frames.len()), place)?;
    stack.frames.get(start..end)?.iter().map(module).collect()
}

fn is_python(module: &str) -> bool {
    module.starts_with("python") || module.starts_with("libpython")
}

/// Of the stacks within `compare` each has the frames that the program says it has.
fn interleaved(stack: &Stack) -> Result<()> {
    let seen = || format!("{stack:?}");
    let callback = between(stack, Some("sort"), Some("compare")).with_context(seen)?;
    ensure!(
        !callback.iter().any(|module| is_python(module)),
        "the interpreter is not folded: {}",
        seen()
    );
    // ctypes calls libffi, that qsort, that libffi's closure, that ctypes.
    for library in ["_ctypes", "libffi", "libc"] {
        let known = callback.iter().any(|module| module.starts_with(library));
        ensure!(known, "no {library} between sort and compare: {}", seen());
    }
    let first = stack.frames.first().with_context(seen)?;
    let first = module(first).with_context(seen)?;
    ensure!(
        first.starts_with("python") || first.starts_with("libc"),
        "begins in {first}: {}",
        seen()
    );
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
    let in_zlib: Vec<&Stack> = stacks
        .iter()
        .filter(|stack| {
            has(stack, "compare")
                && stack
                    .frames
                    .last()
                    .and_then(module)
                    .is_some_and(|it| it.starts_with("libz"))
        })
        .collect();
    ensure!(samples(in_zlib.iter().copied()) >= 20, "zlib: {stacks:?}");
    for stack in in_zlib {
        let called = between(stack, Some("compare"), None);
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
