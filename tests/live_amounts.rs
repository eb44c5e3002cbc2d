//! What a sample stands for, and that every one that is due is taken, at low rates, too.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::pythons;
use pyebpf_tests::raw::samples;
use pyebpf_tests::recording::{Running, pyebpf, record};
use pyebpf_tests::workload::{Target, folder};
use pyebpf_tests::{can_profile, turn};
use serde_json::Value;
use tempfile::TempDir;

/// How far a sampling period may be from the nominal one, as a share of its rate.
const OFF: std::ops::RangeInclusive<f64> = 0.039..=0.151;

/// Runs a test of one process that works all the time, on one CPU, before all others.
fn with_busy(test: &str, body: impl FnOnce(&Target) -> Result<()>) {
    if !can_profile(test) {
        return;
    }
    let Some(python) = pythons::any(test) else {
        return;
    };
    let _turn = turn();
    let mut command = Command::new("setsid");
    let works = python.command(&folder(), &["lifecycle.py", "works"]);
    command.arg(works.get_program()).args(works.get_args());
    let result = Target::start(command)
        .and_then(|target| first_on_one_cpu(target.pid).and_then(|()| body(&target)));
    if let Err(error) = result {
        panic!("{}: {error:#}", python.name);
    }
}

/// Gives the process the first of the CPUs that it may run on, and precedence there: the tests of
/// this file are about the clock of one CPU and not about what else wants it.
fn first_on_one_cpu(pid: u32) -> Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .context("no list of CPUs")?;
    let first = allowed.trim().split([',', '-']).next().unwrap_or_default();
    let pid = &pid.to_string();
    for command in [["taskset", "-pc", first, pid], ["renice", "-20", "-p", pid]] {
        let status = Command::new(command[0])
            .args(&command[1..])
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("cannot start {}", command[0]))?;
        ensure!(status.success(), "{command:?}: {status}");
    }
    // Where each session has a share of its own, precedence holds within the session alone.
    let session = format!("/proc/{pid}/autogroup");
    if Path::new(&session).exists() {
        std::fs::write(&session, "-20").with_context(|| format!("cannot write {session}"))?;
    }
    Ok(())
}

#[test]
fn a_sample_weighs_what_the_period_of_its_cpu_was() {
    with_busy("a_sample_weighs_what_the_period_of_its_cpu_was", |target| {
        // Above 100 Hz a CPU gets a new period every second.
        const RATE: f64 = 200.0;
        let folder = TempDir::new()?;
        let path = folder.path().join("out.json");
        let pid = target.pid.to_string();
        let mut command = pyebpf(&["record", "-d", "6", "-r", "200", "-p", &pid, "-o"]);
        let ended = Running::start(command.arg(&path))?.wait()?;
        ensure!(ended.status.success(), "{}", ended.stderr);
        let file: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        let profiles = file["profiles"].as_array().context("no profiles")?;
        let weights = profiles
            .iter()
            .map(|profile| profile["weights"].as_array().context("no weights"))
            .collect::<Result<Vec<_>>>()?;
        let weights = weights
            .into_iter()
            .flatten()
            .map(|weight| weight.as_u64().context("a weight is a number"))
            .collect::<Result<Vec<_>>>()?;
        for weight in &weights {
            let off = (1e9 / RATE / *weight as f64 - 1.0).abs();
            ensure!(OFF.contains(&off), "no period near {RATE} Hz: {weight} ns");
        }
        let different: BTreeSet<_> = weights.iter().collect();
        ensure!(different.len() > 2, "periods change, weights {different:?}");
        // Longer and shorter periods alternate.
        let total = weights.iter().sum::<u64>() as f64 / 1e9;
        let nominal = weights.len() as f64 / RATE;
        ensure!(
            (total / nominal - 1.0).abs() < 0.05,
            "{} samples weigh {total:.3} s, at {RATE} Hz {nominal:.3} s",
            weights.len()
        );
        Ok(())
    });
}

#[test]
fn a_low_rate_takes_the_samples_that_are_due() {
    with_busy("a_low_rate_takes_the_samples_that_are_due", |target| {
        const SECONDS: f64 = 10.0;
        let pid = target.pid.to_string();
        let (start, used) = (Instant::now(), cpu_seconds(target.pid)?);
        let recording = record(&["-d", "10", "-r", "1", "-p", &pid])?;
        let used = cpu_seconds(target.pid)? - used;
        // Of the CPU time that it used, the part that was recorded: it works all the time.
        let due = SECONDS * used / start.elapsed().as_secs_f64();
        let taken = samples(&recording.of(target.pid));
        ensure!(
            taken as f64 >= 0.7 * due,
            "{taken} samples at 1 Hz of {due:.1} s of CPU time\n{}",
            recording.stderr
        );
        Ok(())
    });
}

/// The CPU time that a process has used, in seconds: fields 14 and 15 of `/proc/PID/stat`.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before them may hold spaces, and ends with the last parenthesis.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let ticks = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().context("a time is a number"))
        .sum::<Result<u64>>()?;
    // SAFETY: sysconf takes a number and gives one.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks as f64 / per_second as f64)
}
