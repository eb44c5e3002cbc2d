//! Processes that are gone soon: how much of scripts that live for a moment has names, and what a
//! storm of forks costs and loses.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::measure;
use super::profilers::{Profiler, Recording, Whom};
use super::table::{Table, figure, verdict};
use super::workload::{Target, Work, script};
use super::{Plan, say};

const SCRIPTS: usize = 200;
/// Each works for so long under its stack.
const SECONDS: &str = "0.06";
const RATE: u32 = 99;
/// Storms that go on at once.
const STORMS: usize = 4;

/// The table of both.
pub(super) fn measure(plan: &Plan) -> Result<Table> {
    let mut table = Table::new(
        "**Gone soon**, `--all-python` at 99 Hz; CPU of pyebpf in percent of a core:",
        &["what", "processes a second", "samples", "CPU", "to reach"],
    );
    say(&format!("gone soon: {SCRIPTS} scripts"));
    table.row(scripts(plan)?);
    say("gone soon: a storm of forks");
    table.row(storm(plan)?);
    table.note(format!(
        "{SCRIPTS} scripts of {SECONDS} s of CPU one after another: samples whose every frame has its \
         name, in percent of those seconds times the rate. The storm: {STORMS} Pythons fork children \
         that end at once; whole stacks in percent of all that were read or lost."
    ));
    Ok(table)
}

fn scripts(plan: &Plan) -> Result<Vec<String>> {
    let recording = Recording::start(&plan.tools, Profiler::Pyebpf, Whom::All, RATE, &[])?;
    let pid = recording.pid();
    let (begin, before) = (Instant::now(), measure::cpu_time(pid)?);
    let mut worked = 0.0;
    for _ in 0..SCRIPTS {
        let mut command = Command::new(&plan.python);
        command.arg("-S").arg(script()).args(["brief", SECONDS]);
        let output = command.stderr(Stdio::inherit()).output();
        let output = output.context("cannot run a script")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let seconds: f64 = said.trim().parse().with_context(|| format!("{said:?}"))?;
        worked += seconds;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = (measure::cpu_time(pid)? - before).as_secs_f64();
    recording.finish(|| ())?;
    let text = fs::read_to_string(plan.tools.profile()).context("cannot read the profile")?;
    let named = 100.0 * named(&text) as f64 / (worked * f64::from(RATE));
    Ok(vec![
        "scripts of 60 ms".to_owned(),
        figure(Some(SCRIPTS as f64 / seconds), 0),
        figure(Some(named), 1),
        figure(Some(100.0 * cpu / seconds), 1),
        verdict("≥ 95 with all names", named >= 95.0),
    ])
}

/// How many samples of a raw profile show a script at work, whole and with all names.
fn named(raw: &str) -> u64 {
    let work = |stack: &str| stack.contains(";brief (") && !stack.contains(";[");
    let lines = raw.lines().filter_map(|line| line.rsplit_once(' '));
    let counts = lines.filter(|(stack, _)| work(stack));
    counts
        .filter_map(|(_, count)| count.parse::<u64>().ok())
        .sum()
}

fn storm(plan: &Plan) -> Result<Vec<String>> {
    let work = Work {
        mode: "storm",
        depth: 12,
        each_its_own: false,
        cpu: None,
        real_time: false,
    };
    let recording = Recording::start(&plan.tools, Profiler::Pyebpf, Whom::All, RATE, &[])?;
    let storms: Vec<Target> = (0..STORMS)
        .map(|_| Target::start(&plan.python, work))
        .collect::<Result<_>>()?;
    let pid = recording.pid();
    let reading =
        || -> Result<(f64, u64)> { Ok((measure::cpu_time(pid)?.as_secs_f64(), measure::forks()?)) };
    let (begin, before) = (Instant::now(), reading()?);
    thread::sleep(Duration::from_secs_f64(plan.own));
    let (seconds, after) = (begin.elapsed().as_secs_f64(), reading()?);
    drop(storms);
    let stats = recording.finish(|| ())?.stats;
    let whole = stats["complete_percent"].as_f64();
    let sums = stats["unaccounted"].as_object();
    let hold = sums
        .with_context(|| format!("no sums in {stats}"))?
        .is_empty();
    Ok(vec![
        "a storm of forks".to_owned(),
        figure(Some((after.1 - before.1) as f64 / seconds), 0),
        figure(whole, 1),
        figure(Some(100.0 * (after.0 - before.0) / seconds), 1),
        verdict("every sample accounted for", hold),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_stacks_with_all_names_count() {
        let raw = "process 7:\"work.py\";<module> (work.py:9);brief (work.py:4) 5\n\
                   process 8:\"work.py\";[truncated: deep];brief (work.py:4) 2\n\
                   process 8:\"work.py\";[unknown: gone];brief (work.py:4) 3\n\
                   process 9:\"work.py\";<module> (work.py:1) 1\n\
                   process 9:\"work.py\";<module> (work.py:9);brief (work.py:5) 1\n";
        assert_eq!(named(raw), 6);
    }
}
