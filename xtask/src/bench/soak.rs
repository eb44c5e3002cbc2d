//! `cargo xtask soak`: the node agent for an hour of containers that come and go. A line a minute; at the
//! end whether what it costs has grown, and whether each container has its profiles.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::agent::{Agent, Groups};
use super::workload::script;
use super::{machine, measure};
use crate::process::say;
use crate::run;

/// How long the agent is watched.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Minutes.
    #[arg(long, default_value_t = 60)]
    minutes: u32,
    /// Watch this pyebpf instead of a release build.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

const MINUTE: Duration = Duration::from_secs(60);
/// Containers that come in a minute.
const CONTAINERS: u32 = 50;
/// CPU time of a container's Python.
const SECONDS: &str = "0.4";
/// Minutes after which the agent knows what it keeps.
const WARM_UP: usize = 2;
/// By how much memory may be more at the end: pages that the allocator keeps.
const GROWTH: u64 = 8_000_000;

/// What was seen in one minute.
#[derive(Clone, Copy, Debug)]
struct Minute {
    /// Bytes.
    memory: u64,
    /// Percent of what the node has.
    cpu: f64,
    descriptors: usize,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let program = match &args.program {
        Some(program) => program.clone(),
        None => run::release()?,
    };
    let python = machine::python(&machine::pythons())?;
    let groups = Groups::empty()?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let agent = Agent::start(&program, folder.path())?;
    println!("| minute | CPU, % of the node | memory, MB | descriptors | containers |");
    println!("| --- | --- | --- | --- | --- |");
    let (mut minutes, mut number) = (Vec::new(), 0);
    for minute in 1..=args.minutes {
        let (begin, cpu) = (Instant::now(), measure::cpu_time(agent.pid())?);
        let mut running: Vec<(u32, Child)> = Vec::new();
        for _ in 0..CONTAINERS {
            number += 1;
            running.push((number, container(&groups, number, &python)?));
            thread::sleep(MINUTE / (CONTAINERS + 1));
            running.retain_mut(|(number, child)| {
                let runs = matches!(child.try_wait(), Ok(None));
                if !runs {
                    groups.remove(*number as usize);
                }
                runs
            });
        }
        for (number, mut child) in running {
            child.wait().context("cannot wait for a container")?;
            groups.remove(number as usize);
        }
        thread::sleep(MINUTE.saturating_sub(begin.elapsed()));
        let cpu = (measure::cpu_time(agent.pid())? - cpu).as_secs_f64();
        let node = begin.elapsed().as_secs_f64() * measure::cpus()? as f64;
        let seen = Minute {
            memory: measure::memory(agent.pid()).context("the agent has ended")?,
            cpu: 100.0 * cpu / node,
            descriptors: measure::descriptors_of(agent.pid()),
        };
        println!(
            "| {minute} | {:.2} | {:.1} | {} | {number} |",
            seen.cpu,
            seen.memory as f64 / 1e6,
            seen.descriptors
        );
        minutes.push(seen);
    }
    agent.end()?;
    let labelled = labelled(folder.path())?.len();
    say(&format!("{labelled} of {number} containers have profiles"));
    let grown = grown(&minutes);
    say(&format!(
        "memory has grown by {:.1} MB since minute {WARM_UP}",
        grown as f64 / 1e6
    ));
    ensure!(grown <= GROWTH, "it grows");
    ensure!(labelled == number as usize, "containers without a profile");
    Ok(())
}

/// A Python that works for a moment in a control group of its own.
fn container(groups: &Groups, number: u32, python: &Path) -> Result<Child> {
    const SCRIPT: &str = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
    let group = groups.add(number as usize)?;
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT]).arg(group).arg(python);
    command.arg("-S").arg(script()).args(["brief", SECONDS]);
    let child = command.stdout(Stdio::null()).spawn();
    child.context("cannot start a container")
}

/// The ids of containers that have profiles.
fn labelled(folder: &Path) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let text = fs::read_to_string(entry.path().join("labels.json")).unwrap_or_default();
        let labels: Value = serde_json::from_str(&text).unwrap_or_default();
        ids.extend(labels["container_id"].as_str().map(str::to_owned));
    }
    Ok(ids)
}

/// By how many bytes the last third has more memory than the first one, once the agent knows what it
/// keeps.
fn grown(minutes: &[Minute]) -> u64 {
    let settled = minutes.get(WARM_UP..).unwrap_or_default();
    let third = settled.len().div_ceil(3);
    let mean = |part: &[Minute]| {
        let sum: u64 = part.iter().map(|minute| minute.memory).sum();
        sum / (part.len() as u64).max(1)
    };
    mean(&settled[settled.len() - third..]).saturating_sub(mean(&settled[..third]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_of_what_comes_after_the_warm_up() {
        let minutes = |megabytes: &[u64]| -> Vec<Minute> {
            let minutes = megabytes.iter();
            let minute = |&megabytes| Minute {
                memory: megabytes * 1_000_000,
                cpu: 0.2,
                descriptors: 30,
            };
            minutes.map(minute).collect()
        };
        assert_eq!(grown(&minutes(&[10, 30, 40, 41, 40, 40, 41, 40])), 0);
        assert_eq!(
            grown(&minutes(&[10, 30, 40, 42, 44, 46, 48, 50])),
            8_000_000
        );
        assert_eq!(grown(&minutes(&[10])), 0);
    }
}
