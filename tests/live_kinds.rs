//! Stacks of what is more than a plain interpreter: subinterpreters, compiled code, greenlets, and
//! programs that are no Python but run one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::recording::{pyebpf, record};
use pyebpf_tests::workload::{Target, folder};
use pyebpf_tests::{can_profile, skip, turn};
use tempfile::TempDir;

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
    // There it looks like one that is about to be resumed.
    for (root, excepted) in [("function", None), ("generator", Some(11))] {
        in_greenlets(TEST, "greenlet", root, excepted);
    }
}

#[test]
fn a_stack_in_gevent_is_whole() {
    in_greenlets("a_stack_in_gevent_is_whole", "gevent", "gevent", None);
}

/// The known stack of `greenlets.py` with this argument, for the Pythons that the package is here for.
fn in_greenlets(test: &str, package: &str, argument: &str, excepted: Option<u32>) {
    on_those(
        test,
        &|python| match installed(package, python) {
            Some(_) => excepted != Some(python.minor),
            None => {
                if python.name.starts_with("pyenv") {
                    skip(
                        &format!("{test} on {}", python.name),
                        &format!("no {package} is here"),
                    );
                }
                false
            }
        },
        &|python| {
            let mut command = python.command(&folder(), &["greenlets.py", argument]);
            command.env("PYTHONPATH", installed(package, python).unwrap_or_default());
            Target::start(command)
        },
        &[&FLAGS],
        |_, target, recordings| only_the_known_stack(&recordings[0], target),
    );
}

/// Where a package is kept for a Python of pyenv.
fn installed(package: &str, python: &Python) -> Option<PathBuf> {
    let minor = python.name.strip_prefix("pyenv ")?;
    let folder = pythons::cache()?.join(package).join(minor);
    folder.join(package).is_dir().then_some(folder)
}

/// A program that was made of `known_stack.py`.
fn frozen(test: &str, program: &str) -> Option<Command> {
    if !can_profile(test) {
        return None;
    }
    let found = pythons::cache().map(|cache| cache.join("frozen").join(program));
    let found = found.filter(|program| program.is_file());
    if found.is_none() {
        skip(test, &format!("no {program} is here"));
    }
    found.map(Command::new)
}

#[test]
fn a_program_of_pyinstaller_in_one_file_is_profiled() {
    const TEST: &str = "a_program_of_pyinstaller_in_one_file_is_profiled";
    let Some(mut command) = frozen(TEST, "pyinstaller/known_stack") else {
        return;
    };
    let _turn = turn();
    let check = || {
        // It unpacks itself there, and the program that does is killed before it can tidy up.
        let unpacked = TempDir::new()?;
        command.env("TMPDIR", unpacked.path());
        let target = Target::start_within(command)?;
        ensure!(target.pid != target.child.id(), "it is one process");
        profiled(&target)?;
        let pid = target.pid;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        ensure!(maps.contains("/_MEI"), "nothing is unpacked");
        // As when something tidies up for it.
        fs::remove_dir_all(unpacked.path())?;
        fs::create_dir(unpacked.path())?;
        profiled(&target)
    };
    if let Err(error) = check() {
        panic!("{error:#}");
    }
}

#[test]
fn a_program_of_nuitka_is_shown_as_far_as_it_can_be_and_called_what_it_is() {
    const TEST: &str = "a_program_of_nuitka_is_shown_as_far_as_it_can_be_and_called_what_it_is";
    let Some(command) = frozen(TEST, "nuitka/known_stack.bin") else {
        return;
    };
    let _turn = turn();
    let check = || {
        let target = Target::start(command)?;
        let pid = target.pid.to_string();
        let recording = record(&[&FLAGS[..], &["-p", &pid]].concat())?;
        let expected = expected_stack(&target)?;
        let expected: Vec<&str> = expected.iter().map(|frame| frame.0.as_str()).collect();
        let stacks = recording.of(target.pid);
        ensure!(!stacks.is_empty(), "no sample\n{}", recording.stderr);
        for stack in &stacks {
            let names: Vec<&str> = stack.frames.iter().map(|frame| &*frame.name).collect();
            ensure!(names == expected, "{names:?}");
        }
        let said = "the program is compiled by Nuitka: ";
        ensure!(recording.stderr.contains(said), "{}", recording.stderr);
        let doctor = pyebpf(&["doctor", "--pid", &pid]).output()?;
        let doctor = String::from_utf8_lossy(&doctor.stdout);
        ensure!(doctor.contains(said), "{doctor}");
        Ok(())
    };
    if let Err(error) = check() {
        panic!("{error:#}");
    }
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
    profiled(&Target::start(command)?)
}

fn profiled(target: &Target) -> Result<()> {
    let pid = target.pid.to_string();
    let recording = record(&[&FLAGS[..], &["-p", &pid]].concat())?;
    only_the_known_stack(&recording, target)
}
