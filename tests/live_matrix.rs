//! The same known stack in every cell of the matrix: every Python that is here, started in every
//! way. With `PYEBPF_MATRIX` (see `matrix.rs`) each cell is recorded alone, and timed, and once more
//! with native frames.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pyebpf_tests::kernel_time::{self, Statistics};
use pyebpf_tests::matrix::{Cell, wanted};
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::raw::{Frame, Stack};
use pyebpf_tests::recording::{Recording, Running, finished, pyebpf, record};
use pyebpf_tests::start::{Start, Started, start};
use pyebpf_tests::{Parts, can_profile, skip, turn};
use tempfile::TempDir;

use crate::expected_stack;
use crate::live_native::is_native;

const TEST: &str = "shows_the_known_stack_however_a_python_is_started";

/// The workload of a Python: 2.7 knows little of what the others have.
fn workload(python: &Python) -> &'static [&'static str] {
    match python.name.contains(" 2.") {
        true => &["deep.py", "90"],
        false => &["known_stack.py"],
    }
}

#[test]
fn shows_the_known_stack_however_a_python_is_started() {
    if !can_profile(TEST) {
        return;
    }
    let _turn = turn();
    let mut parts = Parts::default();
    let mut pythons = pythons::all(TEST);
    pythons.extend(pythons::old(TEST));
    pythons.extend(pythons::musl(TEST));
    for how in Start::ALL {
        if let Some(why) = how.lacks() {
            skip(&format!("{TEST}: {}", how.name()), &why);
            for python in &pythons {
                let mut cell = cell(python, how);
                cell.skipped = Some(why.clone());
                parts.note("PYEBPF_MATRIX", cell.tell());
            }
        } else if wanted().is_some() {
            for python in &pythons {
                one_alone(python, how, false, &mut parts);
                one_alone(python, how, true, &mut parts);
            }
        } else {
            all_at_once(&pythons, how, &mut parts);
        }
    }
    parts.finish();
}

fn cell(python: &Python, how: Start) -> Cell {
    Cell {
        python: python.name.clone(),
        start: how.name().to_owned(),
        ..Cell::default()
    }
}

fn all_at_once(pythons: &[Python], how: Start, parts: &mut Parts) {
    let mut started = Vec::new();
    for python in pythons {
        // So many at work would keep the others from starting.
        let paused = start(how, python, workload(python)).and_then(|started| {
            started.target.signal(libc::SIGSTOP)?;
            Ok(started)
        });
        match paused {
            Ok(target) => started.push((python, target)),
            Err(error) => parts.note("start", Err(error)),
        }
    }
    let pids = started
        .iter()
        .map(|(_, started)| started.target.pid.to_string());
    let pids: Vec<String> = pids.collect();
    let mut arguments = vec!["-d", "3", "-r", "499", "--full-filenames"];
    for pid in &pids {
        arguments.extend(["-p", pid]);
    }
    for (_, started) in &started {
        let resumed = started.target.signal(libc::SIGCONT);
        parts.note("start", resumed);
    }
    match record(&arguments) {
        Ok(recording) => {
            for (python, started) in &started {
                let mut cell = cell(python, how);
                let checked = check(&mut cell, &recording, &[started]);
                parts.note(&format!("{}, {}", python.name, how.name()), checked);
            }
            parts.add(&recording.stderr);
        }
        Err(error) => parts.note(&format!("pyebpf record, {}", how.name()), Err(error)),
    }
}

/// One process for each CPU, so that most samples find one.
fn one_alone(python: &Python, how: Start, native: bool, parts: &mut Parts) {
    let mut cell = cell(python, how);
    if native {
        cell.start.push_str(" `--native`");
    }
    let result = timed(python, how, native, &mut cell);
    cell.failed = result.as_ref().err().map(|error| format!("{error:#}"));
    parts.note("PYEBPF_MATRIX", cell.tell());
    parts.note(&format!("{}, {}", python.name, cell.start), result);
}

fn timed(python: &Python, how: Start, native: bool, cell: &mut Cell) -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let started: Result<Vec<Started>> = (0..cpus)
        .map(|_| start(how, python, workload(python)))
        .collect();
    let started = started?;
    let _statistics = Statistics::enable()?;
    let folder = TempDir::new()?;
    let path = folder.path().join("profile.txt");
    let mut command = pyebpf(&["record", "-r", "999", "--full-filenames", "-f", "raw", "-o"]);
    command.arg(&path).args(native.then_some("--native"));
    for started in &started {
        command.args(["-p", &started.target.pid.to_string()]);
    }
    let running = Running::start(&mut command)?;
    running.wait_until_it_samples()?;
    sleep(Duration::from_millis(1200));
    let runs = kernel_time::runs(running.pid()).context("pyebpf holds no sampling program")?;
    running.signal(libc::SIGINT)?;
    let recording = finished(running.wait()?, &path)?;
    let started: Vec<&Started> = started.iter().collect();
    check(cell, &recording, &started).with_context(|| recording.stderr.clone())?;
    // Runs that found something else are short; theirs is added to the time of those that count.
    cell.nanoseconds = Some(runs.nanoseconds as f64 / cell.stacks as f64);
    Ok(())
}

/// All processes of a cell run the same program, so that the first one's stack is that of all.
fn check(cell: &mut Cell, recording: &Recording, started: &[&Started]) -> Result<()> {
    let mut stacks: Vec<_> = started
        .iter()
        .flat_map(|started| recording.of(started.target.pid))
        .collect();
    stacks.iter_mut().for_each(leave_python);
    let first = started.first().context("nothing was started")?;
    cell.check(&stacks, &expected_stack(&first.target)?)
}

/// Leaves the Python frames of a stack. One that lacks native frames is not whole.
fn leave_python(stack: &mut Stack) {
    let cut = |frame: &&Frame| frame.name.starts_with("[unknown: native frames");
    let marker = stack
        .frames
        .iter()
        .find(cut)
        .map(|frame| frame.name.clone());
    stack.marker = stack.marker.take().or(marker);
    stack.frames.retain(|frame| !is_native(frame));
}
