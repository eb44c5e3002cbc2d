//! Whether processes that come, go and change are followed, and only those that are asked for.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::raw::{self, Stack, samples};
use pyebpf_tests::recording::{Ended, Running, finished, pyebpf, record};
use pyebpf_tests::workload;
use pyebpf_tests::{can_profile, skip, turn};
use tempfile::TempDir;

use crate::{has, with_python};

fn with(stacks: &[Stack], function: &str) -> u64 {
    samples(stacks.iter().filter(|stack| has(stack, function)))
}

/// Samples of this process with this function; the profile must have process frames.
fn of_process(stacks: &[Stack], pid: u32, function: &str) -> u64 {
    samples(
        stacks
            .iter()
            .filter(|stack| stack.process == Some(pid) && has(stack, function)),
    )
}

#[test]
fn ends_when_the_target_has_exited() {
    with_python("ends_when_the_target_has_exited", |python| {
        let mut target = python.start(&["lifecycle.py", "exits", "3"])?;
        let pid = target.pid.to_string();
        let file = TempDir::new()?;
        let path = file.path().join("out.txt");
        let start = Instant::now();
        let mut command = pyebpf(&["record", "-d", "90", "-f", "raw", "-p", &pid, "-o"]);
        let running = Running::start(command.arg(&path))?;
        // It stays a zombie, still named by its pid, unless someone waits for it.
        target.child.wait()?;
        let ended = running.wait()?;
        ensure!(ended.status.success(), "{}", ended.stderr);
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "it waited for the duration"
        );
        let stacks = raw::parse(&std::fs::read_to_string(&path)?)?;
        ensure!(with(&stacks, "work") > 0, "{stacks:?}\n{}", ended.stderr);
        Ok(())
    });
}

#[test]
fn follows_an_exec_to_another_python() {
    const TEST: &str = "follows_an_exec_to_another_python";
    with_python(TEST, |python| {
        let other = pythons::all(TEST)
            .into_iter()
            .find(|other| other.minor == 12 || other.name.starts_with("system"));
        let Some(other) = other else {
            skip(TEST, "there is only one Python");
            return Ok(());
        };
        let program = other.program().to_str().context("a path of text")?;
        let target = python.start(&["lifecycle.py", "execs", program])?;
        let recording = record(&["-d", "4", "-r", "199", "-p", &target.pid.to_string()])?;
        for stack in &recording.stacks {
            ensure!(
                !(has(stack, "before_exec") && has(stack, "after_exec")),
                "both lives in one stack: {stack:?}"
            );
        }
        let (before, after) = (
            with(&recording.stacks, "before_exec"),
            with(&recording.stacks, "after_exec"),
        );
        ensure!(
            before > 0 && after > 0,
            "{before} samples before and {after} after the exec\n{}",
            recording.stderr
        );
        Ok(())
    });
}

#[test]
fn picks_up_a_python_that_starts_later() {
    with_python("picks_up_a_python_that_starts_later", |python| {
        let folder = TempDir::new()?;
        let path = folder.path().join("out.txt");
        let mut command = pyebpf(&["record", "--all-python", "-d", "4", "-f", "raw", "-o"]);
        let running = Running::start(command.arg(&path))?;
        sleep(Duration::from_millis(1500));
        let target = python.start(&["lifecycle.py", "works"])?;
        let ended = running.wait()?;
        ensure!(ended.status.success(), "{}", ended.stderr);
        let stacks = raw::parse(&std::fs::read_to_string(&path)?)?;
        let single = stacks.iter().all(|stack| stack.process.is_none());
        let seen = if single {
            with(&stacks, "in_parent")
        } else {
            of_process(&stacks, target.pid, "in_parent")
        };
        ensure!(seen > 0, "{stacks:?}\n{}", ended.stderr);
        Ok(())
    });
}

#[test]
fn shows_children_only_when_asked_to() {
    with_python("shows_children_only_when_asked_to", |python| {
        for mode in ["spawns", "forks"] {
            // One child is there when the recording begins, another comes while it runs.
            let target = python.start(&["lifecycle.py", mode])?;
            let pid = target.pid.to_string();
            let child = target.said["child"].as_u64().context("no child is told")?;
            let child = u32::try_from(child)?;
            let family = record(&["-d", "4", "-r", "199", "-s", "-p", &pid])?;
            let (parents, children, late) = (
                of_process(&family.stacks, target.pid, "in_parent"),
                of_process(&family.stacks, child, "in_child"),
                with(&family.stacks, "in_late_child"),
            );
            ensure!(
                parents > 0 && children > 0 && late > 0,
                "{mode}: {parents} samples of the parent, {children} of the child, {late} of the \
                 late child\n{}",
                family.stderr
            );
            drop(target);
            let target = python.start(&["lifecycle.py", mode])?;
            let alone = record(&["-d", "4", "-r", "199", "-p", &target.pid.to_string()])?;
            ensure!(
                with(&alone.stacks, "in_parent") > 0,
                "{mode}: {}",
                alone.stderr
            );
            let others = with(&alone.stacks, "in_child") + with(&alone.stacks, "in_late_child");
            ensure!(others == 0, "{mode}: {others} samples of children");
        }
        Ok(())
    });
}

/// Runs one Python, waits for a file, runs another one, and becomes a third.
const SHELL: &str = r#"
"$0" -c "$2" &
while ! [ -e "$1" ]; do sleep 0.1; done
timeout 1 "$0" -c "$3"
exec "$0" -c "$4"
"#;

#[test]
fn follows_a_named_shell_to_the_pythons_that_it_starts() {
    with_python(
        "follows_a_named_shell_to_the_pythons_that_it_starts",
        |python| {
            let folder = TempDir::new()?;
            let (go, path) = (folder.path().join("go"), folder.path().join("out.txt"));
            let names = ["there", "later", "itself"];
            let programs = names.map(|name| format!("def {name}():\n  while True: pass\n{name}()"));
            let mut shell = Command::new("sh");
            shell.args(["-c", SHELL]).arg(python.program()).arg(&go);
            let mut shell = shell.args(programs).process_group(0).spawn()?;
            let pid = shell.id();
            let recorded = || -> Result<()> {
                let mut command = pyebpf(&["record", "-s", "-d", "5", "-f", "raw", "-r", "199"]);
                command.args(["-p", &pid.to_string(), "-o"]).arg(&path);
                let running = Running::start(&mut command)?;
                let begins = running.wait_until_it_samples();
                std::fs::write(&go, "")?;
                let recording = finished(running.wait()?, &path)?;
                begins?;
                let (stacks, said) = (&recording.stacks, &recording.stderr);
                for name in names {
                    ensure!(with(stacks, name) > 0, "{name}: {said}");
                }
                ensure!(of_process(stacks, pid, "itself") > 0, "{stacks:?}");
                Ok(())
            };
            let result = recorded();
            let group = libc::pid_t::try_from(pid)?;
            // SAFETY: kill takes no pointers; the group's leader, our child, has not been waited for.
            unsafe { libc::kill(-group, libc::SIGKILL) };
            shell.wait()?;
            result
        },
    );
}

/// Runs `pyebpf record FLAGS -o FILE -- PYTHON lifecycle.py MODE…`.
fn run_command(python: &Python, flags: &[&str], mode: &[&str]) -> Result<(Ended, Vec<Stack>)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("out.txt");
    let mut command = pyebpf(&["record", "-f", "raw", "-r", "199"]);
    command.args(flags).arg("-o").arg(&path).arg("--");
    command.arg(python.program()).arg("-B");
    command
        .arg(workload::folder().join("lifecycle.py"))
        .args(mode);
    let ended = Running::start(&mut command)?.wait()?;
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("no profile: {}\n{}", ended.status, ended.stderr))?;
    Ok((ended, raw::parse(&text)?))
}

#[test]
fn passes_on_the_exit_code_of_a_command() {
    with_python("passes_on_the_exit_code_of_a_command", |python| {
        let (ended, stacks) = run_command(python, &[], &["exits", "1"])?;
        ensure!(
            ended.status.code() == Some(3),
            "{}\n{}",
            ended.status,
            ended.stderr
        );
        ensure!(with(&stacks, "work") > 0, "{stacks:?}");
        ensure!(
            String::from_utf8_lossy(&ended.stdout).contains("\"pid\""),
            "the command's own output is kept"
        );
        Ok(())
    });
}

#[test]
fn ends_a_command_that_outlives_the_duration() {
    with_python("ends_a_command_that_outlives_the_duration", |python| {
        let start = Instant::now();
        let (ended, stacks) = run_command(python, &["-d", "2"], &["works"])?;
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "it was not ended"
        );
        ensure!(
            ended.status.code() == Some(0),
            "the profile is written: {}",
            ended.status
        );
        ensure!(
            with(&stacks, "in_parent") > 0,
            "{stacks:?}\n{}",
            ended.stderr
        );
        let said: serde_json::Value = serde_json::from_slice(&ended.stdout)?;
        let pid = &said["pid"];
        ensure!(
            !std::path::Path::new(&format!("/proc/{pid}")).exists(),
            "process {pid} still runs"
        );
        Ok(())
    });
}

#[test]
fn starts_a_command_as_the_user_behind_sudo() {
    const TEST: &str = "starts_a_command_as_the_user_behind_sudo";
    if !can_profile(TEST) {
        return;
    }
    let _turn = turn();
    let result = (|| -> Result<()> {
        let folder = TempDir::new()?;
        // The invoking user must be able to write where the profile goes.
        let own = Command::new("chown")
            .arg("65534:65534")
            .arg(folder.path())
            .status()?;
        ensure!(own.success(), "chown: {own}");
        let path = folder.path().join("out.txt");
        let mut command = pyebpf(&["record", "-f", "raw", "-o"]);
        command
            .arg(&path)
            .args(["--", "/bin/sh", "-c", "id -u; id -g"]);
        command.env("SUDO_UID", "65534").env("SUDO_GID", "65534");
        command.env("SUDO_USER", "nobody");
        let ended = Running::start(&mut command)?.wait()?;
        ensure!(ended.status.success(), "{}\n{}", ended.status, ended.stderr);
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        ensure!(said == "65534\n65534\n", "the command ran as {said:?}");
        let owner = std::fs::metadata(&path)?.uid();
        ensure!(owner == 65534, "the profile belongs to {owner}");
        Ok(())
    })();
    if let Err(error) = result {
        panic!("{error:#}");
    }
}
