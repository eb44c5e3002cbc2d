//! What a profiler itself uses, CPU and memory, while it records busy targets; and whether it takes
//! every sample that is due.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::measure::{self, median};
use super::profilers::{Profiler, Recording, Told, Whom};
use super::table::{Table, figure, verdict};
use super::workload::{Target, Work};
use super::{Plan, say};

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// The sampling period wobbles by up to 15 %, evenly to both sides over time. What is left of it at
/// the end of a recording of one second makes "due" uncertain by so many percent.
const WOBBLE: f64 = 20.0;

/// One recording to be made.
#[derive(Debug)]
struct Case {
    profiler: Profiler,
    processes: usize,
    depth: usize,
    rate: u32,
    /// Percent of a core that it may use.
    limit: Option<f64>,
}

const CASES: [Case; 8] = [
    case(Profiler::Pyebpf, 1, 12, 99, Some(2.0)),
    case(Profiler::PySpy, 1, 12, 99, None),
    case(Profiler::PySpyNonblocking, 1, 12, 99, None),
    case(Profiler::Pyebpf, 16, 12, 99, Some(10.0)),
    case(Profiler::Pyebpf, 16, 200, 99, Some(10.0)),
    case(Profiler::Pyebpf, 1, 1000, 999, None),
    case(Profiler::PySpy, 1, 1000, 999, None),
    case(Profiler::PySpyNonblocking, 1, 1000, 999, None),
];

const fn case(
    profiler: Profiler,
    processes: usize,
    depth: usize,
    rate: u32,
    limit: Option<f64>,
) -> Case {
    Case {
        profiler,
        processes,
        depth,
        rate,
        limit,
    }
}

/// What a recording used.
#[derive(Clone, Copy, Debug)]
struct Use {
    /// Percent of a core, from the first sample to the order to end.
    cpu: f64,
    /// Seconds of CPU before and after that: loading, reading symbols first, writing.
    around: f64,
    /// Bytes, the most that was seen.
    memory: u64,
    /// Bytes of the kernel's maps.
    maps: u64,
    /// Percent of the samples that were due.
    taken: f64,
    /// Whether it said that samples were lost.
    lost: bool,
}

/// The table of what profilers use.
pub(super) fn measure(plan: &Plan) -> Result<Table> {
    let mut found: BTreeMap<usize, Vec<Use>> = BTreeMap::new();
    let rounds = plan.rounds.div_ceil(3);
    for round in 1..=rounds {
        for (place, case) in CASES.iter().enumerate() {
            let name = case.profiler.name();
            say(&format!("own use: {name}, round {round} of {rounds}"));
            found.entry(place).or_default().push(record(plan, case)?);
        }
    }
    Ok(table(plan, &found))
}

fn record(plan: &Plan, case: &Case) -> Result<Use> {
    let last = measure::cpus()?.checked_sub(1);
    let work = Work {
        mode: "busy",
        depth: case.depth,
        each_its_own: false,
        // The period wobbles the other way on the next CPU: one target stays where it is.
        cpu: last.filter(|_| case.processes == 1),
        real_time: false,
    };
    let targets: Vec<Target> = (0..case.processes)
        .map(|_| Target::start(&plan.python, work))
        .collect::<Result<_>>()?;
    let whom = Whom::Pids(targets.iter().map(Target::pid).collect());
    let busy = || -> Result<f64> {
        let times = targets.iter().map(|target| measure::cpu_time(target.pid()));
        times.map(|time| Ok(time?.as_secs_f64())).sum()
    };
    let recording = Recording::start(&plan.tools, case.profiler, whom, case.rate, &[])?;
    let pid = recording.pid();
    let mut memory = 0;
    let mut look = || memory = memory.max(measure::memory(pid).unwrap_or(0));
    let maps = measure::map_memory(pid);

    let (started, own, theirs) = (Instant::now(), measure::cpu_time(pid)?, busy()?);
    while started.elapsed() < Duration::from_secs_f64(plan.own) {
        look();
        thread::sleep(LOOK);
    }
    let seconds = started.elapsed().as_secs_f64();
    let during = measure::cpu_time(pid)?.saturating_sub(own).as_secs_f64();
    let worked = busy()? - theirs;
    let age = recording.started.elapsed().as_secs_f64();
    let told = recording.finish(&mut look)?;
    let due = match case.profiler {
        // A clock that stands still while the target does not run.
        Profiler::Pyebpf | Profiler::PyebpfNative | Profiler::Perf => worked * f64::from(case.rate),
        // A clock on the wall, which ran before we looked.
        Profiler::PySpy | Profiler::PySpyNonblocking | Profiler::PySpyNative => {
            age * f64::from(case.rate)
        }
    };
    Ok(Use {
        cpu: 100.0 * during / seconds,
        around: told.cpu_time.as_secs_f64() - during,
        memory,
        maps,
        taken: 100.0 * samples(&told)? / due,
        lost: told.text.contains("lost:"),
    })
}

/// How many samples the profiler says that it took.
fn samples(told: &Told) -> Result<f64> {
    if let Some(samples) = told.stats["samples"].as_f64() {
        return Ok(samples);
    }
    let words: Vec<&str> = told.text.split_ascii_whitespace().collect();
    let number = words.windows(2).find_map(|words| match words {
        ["Samples:", count] => count.parse().ok(),
        _ => None,
    });
    number.with_context(|| format!("there is no number of samples in:\n{}", told.text))
}

fn table(plan: &Plan, found: &BTreeMap<usize, Vec<Use>>) -> Table {
    let mut table = Table::new(
        "**The profiler itself**: CPU in percent of a core while it records, seconds of CPU before \
         and after that; memory in MB; samples in percent of those that were due:",
        &[
            "profiler",
            "processes",
            "frames",
            "rate",
            "CPU",
            "once",
            "PSS",
            "kernel",
            "samples",
            "to reach",
        ],
    );
    let wobble = WOBBLE / plan.own;
    for (place, case) in CASES.iter().enumerate() {
        let uses = found.get(&place).map_or(&[][..], Vec::as_slice);
        let of = |what: fn(&Use) -> f64| median(&uses.iter().map(what).collect::<Vec<_>>());
        let megabytes = |bytes: Option<f64>| figure(bytes.map(|bytes| bytes / 1e6), 0);
        let peak = uses.iter().map(|used| used.memory as f64).reduce(f64::max);
        let maps = of(|used| used.maps as f64).filter(|&bytes| bytes > 0.0);
        let taken = of(|used| used.taken);
        let mut marks = Vec::new();
        if case.profiler == Profiler::Pyebpf {
            if let (Some(limit), Some(cpu)) = (case.limit, of(|used| used.cpu)) {
                marks.push(verdict(&format!("CPU ≤ {limit}"), cpu <= limit));
            }
            let fits = peak.is_some_and(|peak| peak <= 60e6);
            marks.push(verdict("PSS ≤ 60", fits));
            let all = taken.is_some_and(|taken| taken >= 100.0 - wobble)
                && !uses.iter().any(|used| used.lost);
            marks.push(verdict("every sample", all));
        }
        table.row(vec![
            case.profiler.name().to_owned(),
            case.processes.to_string(),
            case.depth.to_string(),
            format!("{} Hz", case.rate),
            figure(of(|used| used.cpu), 1),
            figure(of(|used| used.around), 2),
            megabytes(peak),
            megabytes(maps),
            figure(taken, 1),
            marks.join("; "),
        ]);
    }
    table.note(format!(
        "Recordings of {} s, medians of {}; PSS is the most that was ever seen. The ring buffer's \
         pages are in PSS as far as they were read, and in the kernel's memory. Due are CPU seconds of the \
         target times rate for pyebpf, whose period wobbles (± {} % over such a recording), \
         and seconds times rate for py-spy.",
        plan.own,
        plan.rounds.div_ceil(3),
        figure(Some(wobble), 0),
    ));
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn samples_are_read_from_what_profilers_say() {
        let told = |text: &str, stats| Told {
            text: text.to_owned(),
            stats,
            cpu_time: Duration::ZERO,
        };
        let ours = told("", json!({"samples": 2901}));
        assert_eq!(samples(&ours).ok(), Some(2901.0));
        let said = "py-spy> Wrote raw flamegraph data to 'x'. Samples: 1997 Errors: 3\n";
        assert_eq!(samples(&told(said, json!(null))).ok(), Some(1997.0));
        assert!(samples(&told("nothing", json!(null))).is_err());
    }
}
