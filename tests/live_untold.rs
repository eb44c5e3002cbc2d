//! Native frames through code that tells nothing of its frames: what CPython runs its functions through
//! for perf, and what a program has made itself.

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::raw::{Frame, Stack, samples};
use pyebpf_tests::workload::{Target, folder};
use serde::Deserialize;

use crate::live_native;
use crate::on_those;

#[test]
fn what_python_runs_functions_through_for_perf_is_passed() {
    on_those(
        "what_python_runs_functions_through_for_perf_is_passed",
        &|python| python.minor >= 12,
        &|python| {
            let mut command = python.command(&folder(), &["native.py"]);
            command.env("PYTHONPERFSUPPORT", "1");
            Target::start(command)
        },
        &[&["--native", "-d", "8", "-r", "499"]],
        |_, target, recordings| {
            let told = format!("/proc/{0}/root/tmp/perf-{0}.map", target.pid);
            let told = std::fs::read_to_string(&told).context(told)?;
            ensure!(told.contains("py::sort:"), "Python has made no code");
            live_native::check(target, &recordings[0])?;
            let stacks = recordings[0].of(target.pid);
            let has = |stack: &Stack, start: &str| {
                let mut frames = stack.frames.iter();
                frames.any(|frame: &Frame| frame.name.starts_with(start))
            };
            let made = stacks.iter().find(|stack| has(stack, "py::"));
            ensure!(made.is_none(), "{made:?}");
            // Python's own needs no guess. What libffi makes for a callback of ctypes does, and the
            // assembly of libcrypto where it is a leaf.
            let guessed = stacks.iter().filter(|stack| has(stack, "[unknown: native"));
            let guessed: Vec<&Stack> = guessed.collect();
            let (count, all) = (samples(guessed.iter().copied()), samples(&stacks));
            ensure!(count * 100 <= all, "{count} of {all}: {guessed:?}");
            Ok(())
        },
    );
}

/// A function that calls made code, the one that this calls back, and whether its caller can be found.
#[derive(Deserialize)]
struct Call(String, String, bool);

impl Call {
    fn check(&self, stacks: &[Stack]) -> Result<()> {
        let Call(caller, callee, found) = self;
        let at = |stack: &Stack, name: &str| {
            let mut frames = stack.frames.iter();
            frames.position(|frame| frame.name == name)
        };
        let within = stacks.iter().filter(|stack| at(stack, callee).is_some());
        let count = samples(within.clone());
        ensure!(count >= 5, "only {count} samples in {callee}");
        for stack in within {
            let (from, to) = (at(stack, caller), at(stack, callee));
            let (from, to) = from
                .zip(to)
                .with_context(|| format!("{caller}: {stack:?}"))?;
            let between = &stack.frames[from + 1..to];
            let marks = between.iter().filter(|frame| frame.name.starts_with('['));
            let marks = marks.filter(|frame| !frame.name.starts_with("[unknown in "));
            let marks: Vec<&str> = marks.map(|frame| &*frame.name).collect();
            let mark = match found {
                true => "[unknown: native caller, guessed]",
                false => "[unknown: native frames, an address in no file]",
            };
            let expected = [mark, "[unknown: native code in no file]"];
            ensure!(marks == expected, "{marks:?} in {stack:?}");
            let calls = between.iter().any(|frame| frame.name == "ffi_call");
            ensure!(calls == *found, "{stack:?}");
        }
        Ok(())
    }
}

#[test]
fn the_caller_of_code_in_no_file_is_guessed_and_said_to_be() {
    on_those(
        "the_caller_of_code_in_no_file_is_guessed_and_said_to_be",
        &|python| python.name.starts_with("pyenv") && python.minor >= 11,
        &|python| python.start(&["machine_code.py"]),
        &[&["--native", "-F", "-d", "5", "-r", "499"]],
        |_, target, recordings| {
            let calls: Vec<Call> = serde_json::from_value(target.said["calls"].clone())?;
            let stacks = recordings[0].of(target.pid);
            calls.iter().try_for_each(|call| call.check(&stacks))
        },
    );
}
