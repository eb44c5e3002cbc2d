//! Targets whose memory is swapped out, whose interpreter is unmapped while it is looked at, or whose
//! files are deleted: what is not there is not made up.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use pyebpf_tests::memory_pressure::{Swap, page_out, swapped_kib};
use pyebpf_tests::pythons::Python;
use pyebpf_tests::raw::samples;
use pyebpf_tests::skip;
use pyebpf_tests::start::find;
use pyebpf_tests::workload::{Target, folder};
use tempfile::TempDir;

use crate::{
    expected_stack, has, only_the_known_stack, record_during, right_or_unknown, with_python,
};

#[test]
fn what_is_swapped_out_is_missing_and_never_made_up() {
    const TEST: &str = "what_is_swapped_out_is_missing_and_never_made_up";
    with_python(TEST, |python| {
        let _swap = match Swap::on() {
            Ok(swap) => swap,
            Err(error) => {
                skip(TEST, &format!("no swap can be had: {error:#}"));
                return Ok(());
            }
        };
        let target = python.start(&["known_stack.py"])?;
        let mut swapped = 0;
        let mut refused = None;
        let pid = target.pid.to_string();
        let recording = record_during(&["-r", "499", "-p", &pid], || {
            sleep(Duration::from_millis(500));
            for _ in 0..12 {
                if let Err(error) = page_out(target.pid) {
                    refused = Some(error);
                    break;
                }
                sleep(Duration::from_millis(250));
                swapped = swapped.max(swapped_kib(target.pid)?);
            }
            Ok(())
        })?;
        if let Some(error) = refused {
            skip(TEST, &format!("pages can't be swapped out: {error:#}"));
            return Ok(());
        }
        ensure!(swapped > 500, "only {swapped} KiB were swapped out");
        let expected = expected_stack(&target)?;
        let mut marked = 0;
        for stack in &recording.stacks {
            if let Some(marker) = &stack.marker {
                let said = marker.starts_with("truncated: ") || marker.starts_with("unreadable: ");
                ensure!(said, "marked {marker:?}");
                marked += stack.count;
            } else {
                let (seen, told) = (stack.frames.len(), expected.len());
                ensure!(
                    seen == told,
                    "{seen} frames are shown as a whole stack of {told}"
                );
            }
            right_or_unknown(&stack.frames, &expected)?;
        }
        ensure!(marked > 0, "nothing was missing\n{}", recording.stderr);
        Ok(())
    });
}

/// Runs Python from a library that it loads and unloads, again and again; spins in between. Ends
/// with its parent.
const LOADER: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
int main(int count, char **words) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    printf("{\"pid\": %d}\n", getpid());
    fflush(stdout);
    for (;;) {
        double start = now();
        while (now() < start + 0.2) {}
        void *library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
        if (!library) { fprintf(stderr, "%s\n", dlerror()); return 1; }
        void (*begin)(int) = (void (*)(int)) dlsym(library, "Py_InitializeEx");
        int (*run)(const char *) = (int (*)(const char *)) dlsym(library, "PyRun_SimpleString");
        void (*end)(void) = (void (*)(void)) dlsym(library, "Py_Finalize");
        begin(0);
        run("def loaded():\n"
            "    end = time.monotonic() + 0.3\n"
            "    while time.monotonic() < end: pass\n"
            "import time\n"
            "loaded()\n");
        end();
        dlclose(library);
    }
}
"#;

#[test]
fn an_interpreter_that_is_unmapped_is_gone() {
    const TEST: &str = "an_interpreter_that_is_unmapped_is_gone";
    with_python(TEST, |python| {
        let Some(compiler) = find("cc").or_else(|| find("gcc")) else {
            skip(TEST, "there is no C compiler");
            return Ok(());
        };
        let Some(library) = library(python) else {
            skip(TEST, "no Python with a shared library is here");
            return Ok(());
        };
        let folder = TempDir::new()?;
        let (source, program) = (folder.path().join("loader.c"), folder.path().join("loader"));
        fs::write(&source, LOADER)?;
        let built = Command::new(compiler)
            .arg("-o")
            .args([&program, &source])
            .arg("-ldl")
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        ensure!(built.status.success(), "{said}");
        let mut command = Command::new(&program);
        command.arg(&library);
        let home = library.parent().and_then(|folder| folder.parent());
        command.env("PYTHONHOME", home.context("a library has a folder")?);
        let loader = Target::start(command)?;
        let steady = python.start(&["known_stack.py"])?;
        let recording = record_during(&["--all-python", "-r", "499"], || {
            sleep(Duration::from_secs(6));
            Ok(())
        })?;
        only_the_known_stack(&recording, &steady)?;
        let stacks = recording.of(loader.pid);
        let seen = samples(stacks.iter().filter(|stack| has(stack, "loaded")));
        ensure!(seen > 0, "never seen\n{}", recording.stderr);
        for stack in stacks.iter().filter(|stack| has(stack, "loaded")) {
            let names: Vec<&str> = stack
                .frames
                .iter()
                .map(|frame| frame.name.as_str())
                .collect();
            ensure!(names == ["<module>", "loaded"], "{names:?}");
        }
        Ok(())
    });
}

/// The libpython of this Python, if it has one.
fn library(python: &Python) -> Option<PathBuf> {
    let folder = python.program().ancestors().nth(2)?.join("lib");
    let prefix = format!("libpython3.{}", python.minor);
    let mut files = fs::read_dir(folder).ok()?.flatten();
    let file = files.find(|file| {
        let name = file.file_name();
        let name = name.to_string_lossy();
        name.starts_with(&prefix) && name.ends_with(".so.1.0")
    })?;
    Some(file.path())
}

#[test]
fn a_target_whose_files_are_deleted_is_profiled_all_the_same() {
    const TEST: &str = "a_target_whose_files_are_deleted_is_profiled_all_the_same";
    with_python(TEST, |python| {
        let copy = TempDir::new()?;
        for file in fs::read_dir(folder())? {
            let file = file?;
            fs::copy(file.path(), copy.path().join(file.file_name()))?;
        }
        let program = copy.path().join("python");
        fs::copy(python.program(), &program)?;
        let mut command = Command::new(&program);
        let home = python.program().ancestors().nth(2);
        command.env("PYTHONHOME", home.context("a program has a folder")?);
        if let Some(library) = library(python) {
            fs::copy(
                &library,
                copy.path().join(library.file_name().context("a name")?),
            )?;
            command.env("LD_LIBRARY_PATH", copy.path());
        }
        command.arg("-B").arg(copy.path().join("known_stack.py"));
        let target = Target::start(command)?;
        copy.close()?;
        let recording = record_during(&["--all-python", "-r", "199"], || {
            sleep(Duration::from_secs(3));
            Ok(())
        })?;
        only_the_known_stack(&recording, &target)
    });
}
