//! Whether Pythons are found by what happens: a program that becomes Python late, children that never
//! begin a program, many processes in a short time, and events that were lost.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::pythons::Python;
use pyebpf_tests::raw::{self, Stack};
use pyebpf_tests::recording::{Ended, Running, pyebpf};
use pyebpf_tests::skip;
use tempfile::TempDir;

use crate::{has, with_python};

/// A program that becomes Python by `dlopen` after two seconds of work.
const EMBEDDER: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>

int main(int count, char **arguments) {
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do clock_gettime(CLOCK_MONOTONIC, &now); while (now.tv_sec < start.tv_sec + 2);
    void *library = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
    if (!library) { fputs(dlerror(), stderr); return 1; }
    ((void (*)(int))dlsym(library, "Py_InitializeEx"))(0);
    return ((int (*)(const char *))dlsym(library, "PyRun_SimpleString"))(arguments[2]);
}
"#;

/// A process that is killed and waited for when this is dropped.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A recording of all Python that runs.
struct Recording {
    running: Running,
    folder: TempDir,
}

impl Recording {
    fn start(seconds: &str) -> Result<Recording> {
        let folder = TempDir::new()?;
        let path = folder.path().join("out.txt");
        let mut command = pyebpf(&["record", "--all-python", "-r", "199", "-d", seconds]);
        command.args(["-f", "raw", "-o"]).arg(path);
        let running = Running::start(&mut command)?;
        // Until it samples: what begins from now on is seen beginning.
        sleep(Duration::from_millis(1000));
        Ok(Recording { running, folder })
    }

    fn finish(self) -> Result<(Vec<Stack>, Ended)> {
        let ended = self.running.wait()?;
        ensure!(ended.status.success(), "{}", ended.stderr);
        let text = std::fs::read_to_string(self.folder.path().join("out.txt"))?;
        Ok((raw::parse(&text)?, ended))
    }

    /// How often it has waited until now.
    fn waits(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running.pid()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Ok(line.context("no such line")?.trim().parse()?)
    }
}

/// What pyebpf says of samples that it lost. On a machine that is overloaded events may be lost, too,
/// which is another matter: they are made good.
fn lost_samples(said: &str) -> Vec<&str> {
    let is_loss = |line: &&str| line.contains("lost:") || line.contains("that had ended");
    said.lines().filter(is_loss).collect()
}

/// A program that embeds the Python, and the library that it loads.
fn embedder(test: &str, python: &Python, folder: &TempDir) -> Result<Option<(PathBuf, PathBuf)>> {
    let libraries = python.program().ancestors().nth(2).context("a prefix")?;
    let name = format!("libpython3.{}", python.minor);
    let library = std::fs::read_dir(libraries.join("lib"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with(&name) && file.ends_with(".so.1.0")
        });
    let Some(library) = library else {
        skip(test, "this Python has no libpython");
        return Ok(None);
    };
    let (source, program) = (folder.path().join("a.c"), folder.path().join("embedder"));
    std::fs::write(&source, EMBEDDER)?;
    let built = Command::new("gcc")
        .arg("-o")
        .args([&program, &source])
        .arg("-ldl")
        .status();
    if !built.is_ok_and(|status| status.success()) {
        skip(test, "there is no C compiler gcc");
        return Ok(None);
    }
    Ok(Some((program, library)))
}

#[test]
fn finds_a_python_that_is_loaded_late() {
    const TEST: &str = "finds_a_python_that_is_loaded_late";
    with_python(TEST, |python| {
        let folder = TempDir::new()?;
        let Some((program, library)) = embedder(TEST, python, &folder)? else {
            return Ok(());
        };
        let recording = Recording::start("5")?;
        let mut command = Command::new(program);
        command.arg(library).stdin(Stdio::null());
        command.arg("def embedded():\n    while True: pass\nembedded()");
        command.env(
            "PYTHONHOME",
            python.program().ancestors().nth(2).context("a prefix")?,
        );
        let _guard = Guard(command.spawn()?);
        let (stacks, ended) = recording.finish()?;
        ensure!(
            stacks.iter().any(|stack| has(stack, "embedded")),
            "{stacks:?}\n{}",
            ended.stderr
        );
        Ok(())
    });
}

#[test]
fn finds_a_shell_that_becomes_python() {
    with_python("finds_a_shell_that_becomes_python", |python| {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 2; exec \"$0\" -c \"$1\""]);
        command.arg(python.program());
        command.arg("def become():\n    while True: pass\nbecome()");
        let _guard = Guard(command.spawn()?);
        let (stacks, ended) = Recording::start("4")?.finish()?;
        ensure!(
            stacks.iter().any(|stack| has(stack, "become")),
            "{stacks:?}\n{}",
            ended.stderr
        );
        Ok(())
    });
}

/// A name that two children have for the same address would be a wrong one.
#[test]
fn names_children_that_never_exec_each_by_its_own_code() {
    with_python(
        "names_children_that_never_exec_each_by_its_own_code",
        |python| {
            let _target = python.start(&["family.py", "server", "2"])?;
            let (stacks, ended) = Recording::start("5")?.finish()?;
            let mut children = std::collections::BTreeSet::new();
            for stack in &stacks {
                let own = stack
                    .frames
                    .iter()
                    .find_map(|frame| frame.name.strip_prefix("child_"));
                let (Some(own), Some(pid)) = (own, stack.process) else {
                    continue;
                };
                ensure!(
                    own == pid.to_string(),
                    "process {pid} runs child_{own}: {stack:?}"
                );
                children.insert(pid);
            }
            ensure!(
                children.len() >= 4,
                "only {children:?} were named\n{}",
                ended.stderr
            );
            Ok(())
        },
    );
}

#[test]
fn a_storm_of_forks_loses_nothing_and_wakes_nobody() {
    with_python(
        "a_storm_of_forks_loses_nothing_and_wakes_nobody",
        |python| {
            let recording = Recording::start("5")?;
            let target = python.start(&["family.py", "storm"])?;
            sleep(Duration::from_millis(500));
            let before = recording.waits()?;
            sleep(Duration::from_secs(3));
            let waits = recording.waits()? - before;
            let said = target.finish()?;
            let children = said["children"].as_u64().context("it counts")?;
            let (_, ended) = recording.finish()?;
            ensure!(lost_samples(&ended.stderr).is_empty(), "{}", ended.stderr);
            // Its own timer and what else begins on the machine wake it up to 200 times a second.
            ensure!(
                children < 2000 || waits < 1200,
                "it woke up {waits} times in 3 s for about {children} children"
            );
            let shell = Recording::start("4")?;
            let mut storm = Command::new("sh");
            storm.args(["-c", "while :; do (:); done"]);
            let guard = Guard(storm.spawn()?);
            sleep(Duration::from_millis(500));
            let before = shell.waits()?;
            sleep(Duration::from_secs(2));
            let waits = shell.waits()? - before;
            drop(guard);
            let (_, ended) = shell.finish()?;
            ensure!(lost_samples(&ended.stderr).is_empty(), "{}", ended.stderr);
            ensure!(waits < 800, "it woke up {waits} times in 2 s for a shell");
            Ok(())
        },
    );
}

#[test]
fn finds_what_began_while_events_were_lost() {
    with_python("finds_what_began_while_events_were_lost", |python| {
        let recording = Recording::start("6")?;
        recording.running.signal(libc::SIGSTOP)?;
        let target = python.start(&["lifecycle.py", "works"])?;
        // More mappings than any ring holds, on every CPU.
        for _ in 0..2 {
            let map = "import mmap\nf = open('/bin/sh', 'rb')\nfor _ in range(4000):\n    \
                       mmap.mmap(f.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)\n";
            let cpus = std::thread::available_parallelism()?.get();
            for cpu in 0..cpus {
                let mut command = Command::new("taskset");
                command.args(["-c", &cpu.to_string()]).arg(python.program());
                let status = command.args(["-c", map]).status()?;
                ensure!(status.success(), "{command:?}: {status}");
            }
        }
        recording.running.signal(libc::SIGCONT)?;
        let pid = target.pid;
        let (stacks, ended) = recording.finish()?;
        ensure!(ended.stderr.contains("looked at anew"), "{}", ended.stderr);
        let seen = stacks
            .iter()
            .any(|stack| stack.process.is_none_or(|of| of == pid) && has(stack, "in_parent"));
        ensure!(seen, "{stacks:?}\n{}", ended.stderr);
        Ok(())
    });
}
