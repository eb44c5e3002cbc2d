//! What pyebpf itself uses on a machine with very many Pythons: most of them wait while a few keep
//! every CPU busy, or all of them take turns.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::measure;
use super::profilers::{Profiler, Recording, Whom};
use super::table::{Table, figure, verdict};
use super::workload::{Target, Work};
use super::{Plan, say};

const PROCESSES: usize = 1000;
const RATE: u32 = 99;
/// Until every process that works was sampled, and its names were read.
const WARM_UP: Duration = Duration::from_secs(10);
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// What a recording of a crowd used.
#[derive(Clone, Copy, Debug)]
struct Use {
    /// Percent of a core.
    cpu: f64,
    /// Bytes, the most that was seen, with the kernel's maps.
    memory: u64,
    /// How often a second it slept and was woken.
    woken: f64,
    lost: bool,
}

/// The table of both crowds.
pub(super) fn measure(plan: &Plan) -> Result<Table> {
    let cpus = measure::cpus()?;
    let mut table = Table::new(
        "**A crowd**, `--all-python` at 99 Hz: CPU in percent of a core once every process is known, \
         most memory in MB with that of the kernel's maps, wake-ups a second:",
        &[
            "Python processes",
            "that work",
            "CPU",
            "memory",
            "wake-ups",
            "to reach",
        ],
    );
    for (working, mode) in [(cpus, "busy"), (PROCESSES, "turns")] {
        say(&format!(
            "a crowd: starting {PROCESSES} Pythons, {working} of which work"
        ));
        let used = record(plan, working, mode)?;
        table.row(row(working, used));
    }
    table.note(format!(
        "Of {} s after {} s. Where all work, each does for 2 ms of a second. pyebpf looks for records 50 \
         times a second, whatever there is.",
        plan.own,
        WARM_UP.as_secs()
    ));
    Ok(table)
}

fn record(plan: &Plan, working: usize, mode: &'static str) -> Result<Use> {
    let start = |mode| {
        let work = Work {
            mode,
            depth: 12,
            each_its_own: false,
            cpu: None,
            real_time: false,
        };
        Target::start(&plan.python, work)
    };
    let mut targets = Vec::new();
    // Those that wait first: they would start slowly beside the others.
    for number in 0..PROCESSES {
        let waits = number < PROCESSES - working;
        targets.push(start(if waits { "sleep" } else { mode })?);
    }
    let recording = Recording::start(&plan.tools, Profiler::Pyebpf, Whom::All, RATE, &[])?;
    let pid = recording.pid();
    thread::sleep(WARM_UP);
    let (begin, cpu, waits) = (
        Instant::now(),
        measure::cpu_time(pid)?,
        measure::waits(pid)?,
    );
    let mut memory = 0;
    while begin.elapsed() < Duration::from_secs_f64(plan.own) {
        memory = memory.max(measure::memory(pid).unwrap_or(0));
        thread::sleep(LOOK);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = measure::cpu_time(pid)?.saturating_sub(cpu).as_secs_f64();
    let woken = (measure::waits(pid)? - waits) as f64 / seconds;
    let maps = measure::map_memory(pid);
    let told = recording.finish(|| ())?;
    Ok(Use {
        cpu: 100.0 * cpu / seconds,
        memory: memory + maps,
        woken,
        lost: told.text.contains("lost:"),
    })
}

fn row(working: usize, used: Use) -> Vec<String> {
    let marks = [
        verdict("CPU < 2", used.cpu < 2.0),
        verdict("memory < 150", used.memory < 150_000_000),
        verdict("nothing lost", !used.lost),
    ];
    vec![
        PROCESSES.to_string(),
        working.to_string(),
        figure(Some(used.cpu), 1),
        figure(Some(used.memory as f64 / 1e6), 0),
        figure(Some(used.woken), 0),
        marks.join("; "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mark_is_judged() {
        let used = Use {
            cpu: 2.4,
            memory: 31_000_000,
            woken: 61.2,
            lost: false,
        };
        let row = row(2, used).join(" | ");
        let expected =
            "1000 | 2 | 2.4 | 31 | 61 | CPU < 2 **MISSED**; memory < 150 ok; nothing lost ok";
        assert_eq!(row, expected);
    }
}
