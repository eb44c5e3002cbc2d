//! Native frames among Python's: in the order that is known from the program, whole to the thread's
//! first frame, on every Python.

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::pythons;
use pyebpf_tests::raw::{Frame, Stack, samples};
use pyebpf_tests::recording::{Recording, record};
use pyebpf_tests::workload::Target;
use pyebpf_tests::{can_profile, skip, turn};
use serde::Deserialize;

use crate::{on_those, with_python};

/// Is this a frame of native code: with a source file or a library for its file, or without a name?
pub(crate) fn is_native(frame: &Frame) -> bool {
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

/// Is it of the function? Names are qualified from 3.11 on.
fn is_named(frame: &Frame, function: &str) -> bool {
    frame.name.rsplit('.').next() == Some(function)
}

/// The native frames that the newest frame of this function has called, up to the next of Python.
fn called<'a>(stack: &'a Stack, function: &str) -> Option<&'a [Frame]> {
    let frames = &stack.frames;
    let from = frames.iter().rposition(|frame| is_named(frame, function))? + 1;
    let length = frames[from..].iter().take_while(|frame| is_native(frame));
    frames.get(from..from + length.count())
}

/// A function that calls C, which calls another one, and the libraries between them.
#[derive(Deserialize)]
struct Call(String, String, Vec<String>);

impl Call {
    /// In a stack that has the second function all is as it must be, and the interpreter is not seen.
    fn check(&self, stack: &Stack) -> Result<()> {
        let Call(caller, callee, libraries) = self;
        let frames = called(stack, caller).with_context(|| format!("no {caller}: {stack:?}"))?;
        let next = stack
            .frames
            .iter()
            .position(|frame| is_named(frame, callee));
        let start = frames.as_ptr_range().end;
        let is_next = next.is_some_and(|next| std::ptr::eq(&raw const stack.frames[next], start));
        ensure!(is_next, "{callee} is not called by {caller}: {stack:?}");
        let mut libraries = libraries.iter().peekable();
        for frame in frames {
            let interpreter = is_of(frame, "python") || is_of(frame, "libpython");
            ensure!(!interpreter, "{frame:?} is not folded: {stack:?}");
            libraries.next_if(|library| is_of(frame, library));
        }
        let missing = libraries.next();
        ensure!(missing.is_none(), "no {missing:?} in its place: {stack:?}");
        Ok(())
    }
}

/// Those of the stacks that are so.
fn those(stacks: &[Stack], are: impl Fn(&Stack) -> bool) -> (Vec<&Stack>, u64) {
    let those: Vec<&Stack> = stacks.iter().filter(|stack| are(stack)).collect();
    let count = samples(those.iter().copied());
    (those, count)
}

pub(crate) fn check(target: &Target, recording: &Recording) -> Result<()> {
    let stacks = recording.of(target.pid);
    let all = samples(&stacks);
    ensure!(all >= 50, "only {all} samples");
    // Native frames reach to the thread's first one, and have an order with Python's.
    let is_cut = |stack: &Stack| {
        let mut names = stack.frames.iter().map(|frame| &frame.name);
        names.any(|name| name.starts_with("[unknown: native frames"))
    };
    let (cut, count) = those(&stacks, is_cut);
    ensure!(count * 100 <= all, "{count} of {all} are cut: {cut:?}");
    // What says of itself that it has no order is not held to one.
    let stacks: Vec<Stack> = stacks.into_iter().filter(|stack| !is_cut(stack)).collect();
    let only_calls = |frame: &Frame| {
        let calls = ["_PyEval_EvalFrame", "PyObject_Vectorcall"];
        calls.iter().any(|call| frame.name.starts_with(call))
    };
    let (glue, _) = those(&stacks, |stack| stack.frames.iter().any(only_calls));
    ensure!(glue.is_empty(), "the interpreter's calls: {glue:?}");
    let calls: Vec<Call> = serde_json::from_value(target.said["calls"].clone())?;
    for call in calls {
        let Call(_, callee, _) = &call;
        let (within, count) = those(&stacks, |stack| {
            stack.frames.iter().any(|frame| is_named(frame, callee))
        });
        ensure!(count >= 5, "only {count} samples in {callee}");
        within.into_iter().try_for_each(|stack| call.check(stack))?;
    }
    let leaves: Vec<(String, String)> = serde_json::from_value(target.said["leaves"].clone())?;
    for (function, library) in leaves {
        let newest = |stack: &Stack| {
            stack
                .frames
                .last()
                .is_some_and(|last| is_of(last, &library))
        };
        let (within, count) = those(&stacks, newest);
        ensure!(count >= 5, "only {count} samples in {library}");
        for stack in within {
            let called = called(stack, &function).unwrap_or_default();
            let is_end = !called.is_empty() && stack.frames.ends_with(called);
            ensure!(is_end, "{library} is not called by {function}: {stack:?}");
        }
    }
    Ok(())
}

#[test]
fn native_frames_have_their_place_among_those_of_python() {
    on_those(
        "native_frames_have_their_place_among_those_of_python",
        &|_| true,
        &|python| python.start(&["native.py"]),
        &[&["--native", "-d", "12", "-r", "499"]],
        |_, target, recordings| check(target, &recordings[0]),
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
        &[&["--native", "--steps", "calls", "-d", "8", "-r", "499"]],
        |_, target, recordings| check(target, &recordings[0]),
    );
}

#[test]
fn all_native_frames_are_those_of_the_interpreter_too() {
    const TEST: &str = "all_native_frames_are_those_of_the_interpreter_too";
    with_python(TEST, |python| {
        let target = python.start(&["native.py"])?;
        let pid = target.pid.to_string();
        let recording = record(&["--native=all", "-d", "4", "-r", "499", "-p", &pid])?;
        let stacks = recording.of(target.pid);
        let (within, count) = those(&stacks, |stack| {
            stack.frames.iter().any(|frame| is_named(frame, "compare"))
        });
        ensure!(count >= 5, "only {count} samples");
        for stack in within {
            let called = called(stack, "sort").unwrap_or_default();
            let mut libraries = called.iter().rev();
            let is_loop = |frame: &Frame| frame.name == "_PyEval_EvalFrameDefault";
            ensure!(libraries.any(is_loop), "no loop runs compare: {stack:?}");
            let ctypes = |frame: &Frame| is_of(frame, "_ctypes");
            ensure!(libraries.any(ctypes), "ctypes does not call it: {stack:?}");
            let first = stack.frames.first();
            let is_start = |frame: &Frame| ["_start", "__clone3", "clone3"].contains(&&*frame.name);
            ensure!(first.is_some_and(is_start), "no beginning: {stack:?}");
        }
        Ok(())
    });
}

#[test]
fn native_frames_have_their_place_in_python_2() {
    const TEST: &str = "native_frames_have_their_place_in_python_2";
    if !can_profile(TEST) {
        return;
    }
    let Some(python) = pythons::old(TEST) else {
        return;
    };
    let _turn = turn();
    let target = python.start(&["native.py"]).expect("it starts");
    let pid = target.pid.to_string();
    let flags = ["--native", "-d", "6", "-r", "499", "-p", &pid];
    let checked = record(&flags).and_then(|recording| check(&target, &recording));
    checked.expect("each stack is as the program says");
}

/// CPython tells of the code that it makes in a jit dump, most of it when it ends. This one has no name
/// any more: it is known by its mapping.
const JIT: &str = "
import os, time
os.unlink(f'/tmp/jit-{os.getpid()}.dump')
def hot():
    return sum(range(1000))
end = time.monotonic() + 3
while time.monotonic() < end:
    hot()
";

#[test]
fn code_that_a_jit_dump_tells_of_has_names() -> Result<()> {
    let test = "code_that_a_jit_dump_tells_of_has_names";
    if !can_profile(test) {
        return Ok(());
    }
    let mut pythons = pythons::all(test).into_iter();
    let Some(python) = pythons.find(|python| python.name == "pyenv 3.13") else {
        skip(test, "pyenv has no 3.13");
        return Ok(());
    };
    let _turn = turn();
    let program = python.program().to_str().context("a path is text")?;
    let arguments = [
        "--native=all",
        "-r",
        "499",
        "--",
        program,
        "-X",
        "perf_jit",
        "-c",
        JIT,
    ];
    let recording = record(&arguments)?;
    let told = |stack: &&Stack| {
        let mut frames = stack.frames.iter();
        frames.any(|frame| frame.name.starts_with("py::hot:"))
    };
    let named = samples(recording.stacks.iter().filter(told));
    ensure!(named > 0, "{:?}\n{}", recording.stacks, recording.stderr);
    // The dump is mapped, and is no program.
    let tables = recording
        .stderr
        .contains("files without unwind information");
    ensure!(!tables, "{}", recording.stderr);
    Ok(())
}
