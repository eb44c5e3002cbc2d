//! The shapes of a profile: file names, lines, process frames, and the default format.

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::pythons;
use pyebpf_tests::recording::{Running, pyebpf, record};
use pyebpf_tests::workload::Target;
use pyebpf_tests::{can_profile, turn};
use tempfile::TempDir;

use crate::{Expected, expected_stack, same_frames};

/// Runs the check on a workload with a known stack.
fn with_known_stack(test: &str, check: impl FnOnce(&Target, &str) -> Result<()>) {
    if !can_profile(test) {
        return;
    }
    let Some(python) = pythons::any(test) else {
        return;
    };
    let _turn = turn();
    let result = python
        .start(&["known_stack.py"])
        .and_then(|target| check(&target, &target.pid.to_string()));
    if let Err(error) = result {
        panic!("{}: {error:#}", python.name);
    }
}

/// The expected stack with other files and lines.
fn reshaped(
    target: &Target,
    reshape: impl Fn(String, Vec<u32>) -> (String, Vec<u32>),
) -> Result<Vec<Expected>> {
    let stack = expected_stack(target)?.into_iter();
    Ok(stack
        .map(|Expected(name, file, lines)| {
            let (file, lines) = reshape(file, lines);
            Expected(name, file, lines)
        })
        .collect())
}

/// The file name below the folder of its package: the workload has none, asyncio is one.
fn short(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    let package = file.contains("/asyncio/");
    if package {
        format!("asyncio/{name}")
    } else {
        name.to_owned()
    }
}

#[test]
fn file_names_are_short_unless_asked_for() {
    with_known_stack("file_names_are_short_unless_asked_for", |target, pid| {
        let expected = reshaped(target, |file, lines| (short(&file), lines))?;
        let recording = record(&["-d", "1", "-r", "199", "-p", pid])?;
        ensure!(!recording.stacks.is_empty(), "{}", recording.stderr);
        for stack in &recording.stacks {
            same_frames(&stack.frames, &expected)?;
            ensure!(
                stack.process.is_none(),
                "a single process has a process frame"
            );
            ensure!(
                stack.thread.is_none(),
                "a thread frame that nobody asked for"
            );
        }
        Ok(())
    });
}

#[test]
fn lines_can_be_left_out() {
    with_known_stack("lines_can_be_left_out", |target, pid| {
        let expected = reshaped(target, |file, _| (short(&file), vec![0]))?;
        let recording = record(&["-d", "1", "-r", "199", "--nolineno", "-p", pid])?;
        ensure!(!recording.stacks.is_empty(), "{}", recording.stderr);
        for stack in &recording.stacks {
            same_frames(&stack.frames, &expected)?;
        }
        Ok(())
    });
}

#[test]
fn lines_of_a_function_can_be_folded() {
    with_known_stack("lines_of_a_function_can_be_folded", |target, pid| {
        let recording = record(&["-d", "1", "-r", "199", "-F", "-p", pid])?;
        let [stack] = recording.stacks.as_slice() else {
            anyhow::bail!("{} stacks instead of one", recording.stacks.len());
        };
        let expected = expected_stack(target)?;
        ensure!(stack.frames.len() == expected.len(), "{:?}", stack.frames);
        let leaf = stack.frames.last().context("a stack without frames")?;
        let Expected(name, _, lines) = expected.last().context("no stack is told")?;
        let first = lines.first().context("the leaf has lines")?;
        // The spin is 12 lines below the line of its `def`.
        ensure!(
            leaf.name == *name && leaf.line + 12 == *first,
            "{leaf:?} is not the first line of {name}"
        );
        Ok(())
    });
}

#[test]
fn each_extension_gives_its_format() {
    with_known_stack("each_extension_gives_its_format", |_, pid| {
        let folder = TempDir::new()?;
        let formats: [(&str, &[u8]); 3] = [
            ("out.svg", b"<?xml"),
            ("out.json", b"{"),
            ("out.pb.gz", &[0x1f, 0x8b]),
        ];
        for (name, start) in formats {
            let path = folder.path().join(name);
            let mut command = pyebpf(&["record", "-d", "1", "-p", pid, "-o"]);
            let ended = Running::start(command.arg(&path))?.wait()?;
            ensure!(ended.status.success(), "{name}: {}", ended.stderr);
            let written = std::fs::read(&path)?;
            ensure!(
                written.starts_with(start) && written.len() > 200,
                "{name}: {} bytes",
                written.len()
            );
        }
        let picture = std::fs::read_to_string(folder.path().join("out.svg"))?;
        ensure!(
            picture.contains("spin (known_stack.py:"),
            "no function in the picture"
        );
        Ok(())
    });
}
