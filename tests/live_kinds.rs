//! Stacks of what is more than a plain interpreter: subinterpreters, compiled code, greenlets, and
//! programs that are no Python but run one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::recording::record;
use pyebpf_tests::workload::{Target, folder};
use pyebpf_tests::{can_profile, skip, turn};

use crate::{expected_stack, on_those, only_the_known_stack, same_frames};

const FLAGS: [&str; 5] = ["-d", "4", "-r", "199", "--full-filenames"];

/// One build of each version: what differs between builds is not what these tests are about.
fn plain(python: &Python) -> bool {
    python.name.starts_with("pyenv") || python.name.starts_with("sid") && python.minor >= 14
}

#[test]
fn a_stack_in_a_subinterpreter_is_shown() {
    on_those(
        "a_stack_in_a_subinterpreter_is_shown",
        &|python| plain(python) && python.minor >= 8,
        &|python| python.start(&["subinterpreter.py", "spin"]),
        &[&FLAGS],
        |_, target, recordings| only_the_known_stack(&recordings[0], target),
    );
}

#[test]
fn a_stack_in_a_subinterpreter_is_shown_without_the_gil() {
    for place in ["inside", "idle"] {
        on_those(
            "a_stack_in_a_subinterpreter_is_shown_without_the_gil",
            &|python| plain(python) && python.minor >= 8,
            &|python| python.start(&["subinterpreter.py", place]),
            &[&FLAGS],
            |_, target, recordings| only_the_known_stack(&recordings[0], target),
        );
    }
}

#[test]
fn compiled_code_leaves_the_stack_whole() {
    on_those(
        "compiled_code_leaves_the_stack_whole",
        // Debian builds these with a compiler that is off.
        &|python| plain(python) && python.minor >= 14,
        &|python| {
            let mut command = python.command(&folder(), &["jit.py"]);
            command.env("PYTHON_JIT", "1");
            let target = Target::start(command)?;
            ensure!(target.said["jit"] == true, "it does not compile");
            Ok(target)
        },
        &[&FLAGS],
        |_, target, recordings| {
            let expected = expected_stack(target)?;
            let stacks = recordings[0].of(target.pid);
            let (mut whole, mut all) = (0, 0);
            for stack in &stacks {
                ensure!(stack.marker.is_none(), "marked {:?}", stack.marker);
                // It was caught between two calls.
                let depth = stack.frames.len().min(expected.len());
                same_frames(&stack.frames, &expected[..depth])?;
                all += stack.count;
                whole += if depth == expected.len() {
                    stack.count
                } else {
                    0
                };
            }
            ensure!(all >= 10 && whole * 10 >= all * 9, "{whole} of {all}");
            Ok(())
        },
    );
}

#[test]
fn the_stack_of_a_greenlet_is_whole_at_its_root() {
    const TEST: &str = "the_stack_of_a_greenlet_is_whole_at_its_root";
    for root in ["function", "generator"] {
        on_those(
            TEST,
            &|python| match greenlet(python) {
                // There it looks like one that is about to be resumed.
                Some(_) if root == "generator" => python.minor != 11,
                Some(_) => true,
                None => {
                    if python.name.starts_with("pyenv") {
                        skip(&format!("{TEST} on {}", python.name), "no greenlet is here");
                    }
                    false
                }
            },
            &|python| {
                let mut command = python.command(&folder(), &["greenlets.py", root]);
                command.env("PYTHONPATH", greenlet(python).unwrap_or_default());
                Target::start(command)
            },
            &[&FLAGS],
            |_, target, recordings| only_the_known_stack(&recordings[0], target),
        );
    }
}

/// Where greenlet is kept for a Python of pyenv.
fn greenlet(python: &Python) -> Option<PathBuf> {
    let minor = python.name.strip_prefix("pyenv ")?;
    let folder = pythons::cache()?.join("greenlet").join(minor);
    folder.join("greenlet").is_dir().then_some(folder)
}

#[test]
fn a_python_on_musl_is_profiled() {
    const TEST: &str = "a_python_on_musl_is_profiled";
    if !can_profile(TEST) {
        return;
    }
    let Some(python) = pythons::musl(TEST) else {
        return;
    };
    let _turn = turn();
    if let Err(error) = within(python.command(&folder(), &["known_stack.py"])) {
        panic!("{error:#}");
    }
}

#[test]
fn a_python_within_another_program_is_profiled() {
    const TEST: &str = "a_python_within_another_program_is_profiled";
    if !can_profile(TEST) {
        return;
    }
    let _turn = turn();
    let script = folder().join("known_stack.py");
    let run = format!(
        "python exec(compile(open({0:?}).read(), {0:?}, 'exec'), {{'__name__': '__main__'}})",
        script.to_string_lossy()
    );
    // Debian's is linked with libpython.
    let gdb = Path::new("/usr/bin/gdb");
    if !gdb.exists() {
        return skip(TEST, "there is no gdb");
    }
    let mut command = Command::new(gdb);
    command.args(["-q", "-batch", "-ex", &run]);
    if let Err(error) = within(command) {
        panic!("{error:#}");
    }
}

fn within(command: Command) -> Result<()> {
    let target = Target::start(command)?;
    let pid = target.pid.to_string();
    let recording = record(&[&FLAGS[..], &["-p", &pid]].concat())?;
    only_the_known_stack(&recording, &target)
}
