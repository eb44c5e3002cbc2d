//! Whether stacks are true: exactly the frames that are there, no pair that can't be, no name that
//! belongs to another code object.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use pyebpf_tests::raw::{Stack, samples};
use pyebpf_tests::recording::record;
use pyebpf_tests::workload;
use pyebpf_tests::workload::Target;
use pyebpf_tests::{can_profile, pythons, turn};
use tempfile::TempDir;

use crate::{
    Expected, expected_stack, on_every_python, on_these, on_those, only_the_known_stack,
    same_frames,
};

#[test]
fn shows_exactly_the_stack_that_is_there() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let strange = folder.path().join(r"répertoire; Жук \ 𐐀");
    fs::create_dir(&strange).expect("a folder can be made");
    let script = "módulo Ж.py";
    fs::copy(
        workload::folder().join("known_stack.py"),
        strange.join(script),
    )
    .expect("the workload can be copied");
    on_these(
        "shows_exactly_the_stack_that_is_there",
        &|python| Target::start(python.command(&strange, &[script])),
        &[&["-d", "3", "-r", "199", "--full-filenames"]],
        |_, target, recordings| only_the_known_stack(&recordings[0], target),
    );
}

#[test]
fn shows_the_stacks_of_python_2() {
    let test = "shows_the_stacks_of_python_2";
    if !can_profile(test) {
        return;
    }
    let Some(python) = pythons::old(test) else {
        return;
    };
    let _turn = turn();
    let result = python.start(&["old_stack.py"]).and_then(|target| {
        let expected: Vec<Vec<Expected>> = serde_json::from_value(target.said["stacks"].clone())?;
        let pid = target.pid.to_string();
        let flags = [
            "-d",
            "3",
            "-r",
            "199",
            "--threads",
            "--full-filenames",
            "-p",
            &pid,
        ];
        let recording = record(&flags)?;
        let stacks = recording.of(target.pid);
        // One thread has the GIL at most; the other one works without it, and is found all the same.
        for (name, expected) in ["MainThread", "größe"].into_iter().zip(&expected) {
            let of_thread = stacks.iter().filter(|stack| {
                let thread = stack.thread.as_ref();
                thread.is_some_and(|thread| thread.name == name)
            });
            let mut seen = 0;
            for stack in of_thread {
                ensure!(stack.marker.is_none(), "marked {:?}", stack.marker);
                same_frames(&stack.frames, expected)?;
                seen += stack.count;
            }
            ensure!(seen >= 10, "only {seen} samples of {name}: {stacks:?}");
        }
        ensure!(
            stacks.iter().all(|stack| stack.thread.is_some()),
            "a stack of no thread"
        );
        Ok(())
    });
    if let Err(error) = result {
        panic!("{}: {error:#}", python.name);
    }
}

#[test]
fn shows_a_recursion_900_deep_whole() {
    on_every_python(
        "shows_a_recursion_900_deep_whole",
        &["deep.py", "900"],
        &["-d", "2", "-r", "199", "--full-filenames"],
        |_, target, recording| {
            let expected = expected_stack(target)?;
            let stacks = recording.of(target.pid);
            ensure!(samples(&stacks) >= 10, "only {} samples", samples(&stacks));
            for stack in &stacks {
                ensure!(stack.marker.is_none(), "marked {:?}", stack.marker);
                same_frames(&stack.frames, &expected)?;
            }
            Ok(())
        },
    );
}

#[test]
fn says_that_a_recursion_beyond_1024_frames_is_truncated() {
    on_every_python(
        "says_that_a_recursion_beyond_1024_frames_is_truncated",
        &["deep.py", "3000"],
        &["-d", "2", "-r", "199", "--full-filenames"],
        |_, target, recording| {
            let told = expected_stack(target)?;
            let expected = told
                .get(told.len() - 1024..)
                .context("more than 1024 frames")?;
            let stacks = recording.of(target.pid);
            ensure!(samples(&stacks) >= 10, "only {} samples", samples(&stacks));
            for stack in &stacks {
                let marker = stack.marker.as_deref().unwrap_or("nothing");
                ensure!(marker.starts_with("truncated: "), "marked {marker:?}");
                same_frames(&stack.frames, expected)?;
            }
            Ok(())
        },
    );
}

/// As kernels before 5.17 do it; newer ones can, too. On one Python of a version: of each shape of
/// frame chains there is an even and an odd one.
#[test]
fn steps_by_calls_as_it_does_by_a_loop() {
    on_those(
        "steps_by_calls_as_it_does_by_a_loop",
        &|python| {
            let newest = python.name.starts_with("sid") && python.minor == 14;
            newest || python.name.starts_with("pyenv") && (9..=13).contains(&python.minor)
        },
        &|python| {
            let depth = ["900", "3000"][python.minor as usize % 2];
            python.start(&["deep.py", depth])
        },
        &[&[
            "--steps",
            "calls",
            "-d",
            "2",
            "-r",
            "199",
            "--full-filenames",
        ]],
        |python, target, recordings| {
            let told = expected_stack(target)?;
            let expected = &told[told.len().saturating_sub(1024)..];
            let good = ["whole", "truncated: "][python.minor as usize % 2];
            let stacks = recordings[0].of(target.pid);
            ensure!(samples(&stacks) >= 10, "only {} samples", samples(&stacks));
            for stack in &stacks {
                let marker = stack.marker.as_deref().unwrap_or("whole");
                ensure!(marker.starts_with(good), "marked {marker:?}");
                same_frames(&stack.frames, expected)?;
            }
            let said = &recordings[0].stderr;
            ensure!(!said.contains("were cut"), "a call failed: {said}");
            Ok(())
        },
    );
}

#[test]
fn shows_no_caller_of_a_function_that_can_not_call_it() {
    on_every_python(
        "shows_no_caller_of_a_function_that_can_not_call_it",
        &["pairs.py"],
        &["-d", "6", "-r", "1999", "--full-filenames"],
        |python, target, recording| {
            let table = Table::of(target)?;
            let stacks = recording.of(target.pid);
            let all = samples(&stacks);
            let unmarked: Vec<Stack> = stacks
                .into_iter()
                .filter(|stack| stack.marker.is_none())
                .collect();
            for stack in &unmarked {
                table.check(stack, python.minor >= 10)?;
            }
            let whole = samples(&unmarked);
            ensure!(
                all >= 200 && whole * 100 >= all * 95,
                "{whole} whole stacks of {all}"
            );
            Ok(())
        },
    );
}

/// What `pairs.py` says of its functions.
#[derive(serde::Deserialize)]
struct Table {
    file: String,
    callers: HashMap<String, Vec<String>>,
    lines: HashMap<String, (u32, u32)>,
}

impl Table {
    fn of(target: &Target) -> Result<Table> {
        serde_json::from_value(target.said.clone()).context("the workload tells its functions")
    }

    /// From 3.10 on, what a compiler adds (the end of an `except` or `with`) has no line; no such
    /// instruction is a call, so only the newest frame can be there.
    fn check(&self, stack: &Stack, some_have_no_line: bool) -> Result<()> {
        let mut caller = None;
        for (index, frame) in stack.frames.iter().enumerate() {
            ensure!(frame.file == self.file, "{frame:?} is of another file");
            match (caller, self.callers.get(&frame.name)) {
                (None, None) => ensure!(frame.name == "<module>", "{frame:?} is the root"),
                (Some(caller), Some(callers)) if callers.contains(caller) => {}
                _ => bail!("{caller:?} calls {frame:?} in {:?}", names(stack)),
            }
            let newest = index + 1 == stack.frames.len();
            if let Some((first, last)) = self.lines.get(&frame.name) {
                ensure!(
                    (*first..=*last).contains(&frame.line)
                        || frame.line == 0 && newest && some_have_no_line,
                    "{frame:?} is not within {first} to {last}"
                );
            }
            caller = Some(&frame.name);
        }
        ensure!(caller.is_some(), "a stack without a frame");
        Ok(())
    }
}

#[test]
fn never_gives_a_function_the_name_of_one_that_is_gone() {
    on_every_python(
        "never_gives_a_function_the_name_of_one_that_is_gone",
        &["churn.py"],
        &["-d", "5", "-r", "999", "--full-filenames"],
        |_, target, recording| {
            let stacks = recording.of(target.pid);
            let mut named = 0;
            for stack in stacks.iter().filter(|stack| stack.marker.is_none()) {
                if check_templates(stack)? {
                    named += stack.count;
                }
            }
            ensure!(named > 0, "no function of a template was ever named");
            ensure!(samples(&stacks) >= 100, "{} samples", samples(&stacks));
            Ok(())
        },
    );
}

/// Checks one stack of `churn.py`; gives whether it names a function of a template.
fn check_templates(stack: &Stack) -> Result<bool> {
    // Which template this stack is about; the main program's own frames are never dropped.
    let (file, shift) = match stack.frames.get(2).map(|frame| frame.name.as_str()) {
        Some("draw_a") => ("/templates/template_a.html", 0),
        Some("draw_b") => ("/templates/template_b.html", 500),
        Some(_) => bail!("{:?} is not called by main", stack.frames[2]),
        None => return Ok(false),
    };
    let mut number = None;
    let mut depth = 0;
    for frame in stack.frames.iter().skip(3) {
        if frame.name == "compiled" && depth == 0 {
            continue;
        }
        if frame.name.starts_with("[unknown") {
            depth += 1;
            continue;
        }
        ensure!(frame.file == file, "{frame:?} under {:?}", stack.frames[2]);
        if frame.name == "<module>" {
            // It begins on line 1, or 0 from 3.11 on, and has a `def` on two more.
            let lines = [0, 1, shift + 4, shift + 10];
            ensure!(lines.contains(&frame.line), "{frame:?} is not on {lines:?}");
            continue;
        }
        let lines = match (frame.name.split_once('_'), depth) {
            (Some((kind, own)), 0 | 1) => {
                let wanted = if depth == 0 { "render" } else { "part" };
                ensure!(kind == wanted, "{frame:?} at depth {depth}");
                ensure!(
                    *number.get_or_insert(own) == own,
                    "{frame:?} among the functions of {number:?}"
                );
                if depth == 0 { 10..=11 } else { 4..=8 }
            }
            _ => bail!("{frame:?} at depth {depth}"),
        };
        ensure!(
            frame.line > shift && lines.contains(&(frame.line - shift)),
            "{frame:?} is not within {lines:?} + {shift}"
        );
        depth += 1;
    }
    Ok(number.is_some())
}

fn names(stack: &Stack) -> Vec<&str> {
    stack
        .frames
        .iter()
        .map(|frame| frame.name.as_str())
        .collect()
}
