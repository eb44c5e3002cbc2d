//! Time of the kernel program per sample, and for each further frame: every CPU is busy with a
//! target that nothing but real-time programs can interrupt, so that hardly an event finds anything
//! else and a short run flatters nobody.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::measure::{self, Statistics, cpus, median};
use super::profilers::{Profiler, Recording, Told, Whom};
use super::table::{Table, figure, verdict};
use super::workload::{Target, Work};
use super::{Plan, say};

const DEPTHS: [usize; 3] = [12, 100, 500];
pub(super) const RATE: u32 = 999;
/// Until the interpreter is named and caches are warm.
const WARM_UP: Duration = Duration::from_millis(300);
/// Of the program's runs so many must have found a target.
const SHARE: f64 = 0.97;

/// Which stack was measured: minor version, whether each frame is its own function, depth.
type Stack = (u32, bool, usize);

/// The table of times.
pub(super) fn measure(plan: &Plan) -> Result<Table> {
    let _statistics = Statistics::enable()?;
    let mut times: BTreeMap<Stack, Vec<f64>> = BTreeMap::new();
    let mut shares = Vec::new();
    // The median of some; each takes a while, and they differ little.
    let rounds = plan.rounds.div_ceil(3);
    for round in 1..=rounds {
        for (minor, python) in &plan.pythons {
            say(&format!(
                "kernel program: 3.{minor}, round {round} of {rounds}"
            ));
            for each_its_own in [false, true] {
                for depth in DEPTHS {
                    let work = busy("busy", depth, each_its_own);
                    let timed = sample(plan, Profiler::Pyebpf, python, work)?;
                    let stack = (*minor, each_its_own, depth);
                    times.entry(stack).or_default().push(timed.nanoseconds);
                    shares.push(timed.share);
                }
            }
        }
    }
    Ok(table(plan, &times, &shares))
}

/// Work that keeps a CPU to itself.
pub(super) fn busy(mode: &'static str, depth: usize, each_its_own: bool) -> Work {
    Work {
        mode,
        depth,
        each_its_own,
        cpu: None,
        real_time: true,
    }
}

/// How the kernel program ran for a while.
pub(super) struct Timed {
    /// Of one run.
    pub(super) nanoseconds: f64,
    /// Of its runs that found a target.
    pub(super) share: f64,
    /// At the end.
    pub(super) told: Told,
}

/// Times the program while every CPU does this work.
pub(super) fn sample(plan: &Plan, profiler: Profiler, python: &Path, work: Work) -> Result<Timed> {
    let mut targets = Vec::new();
    for cpu in 0..cpus()? {
        let cpu = Some(cpu);
        targets.push(Target::start(python, Work { cpu, ..work })?);
    }
    // Above the targets, or it would never run; it needs little.
    let before = ["chrt", "--fifo", "2"];
    let recording = Recording::start(&plan.tools, profiler, Whom::All, RATE, &before)?;
    thread::sleep(WARM_UP);
    let reading = || -> Result<(f64, f64, f64)> {
        let runs = measure::runs(recording.pid());
        let runs = runs.context("pyebpf holds no program of perf events")?;
        let mut busy = 0.0;
        for target in &targets {
            busy += measure::cpu_time(target.pid())?.as_secs_f64();
        }
        Ok((runs.time as f64, runs.count as f64, busy))
    };
    let first = reading()?;
    thread::sleep(Duration::from_secs_f64(plan.kernel));
    let last = reading()?;
    // The targets make way before pyebpf writes its profile.
    drop(targets);
    let told = recording.finish(|| ())?;
    let count = last.1 - first.1;
    let due = (last.2 - first.2) * f64::from(RATE);
    Ok(Timed {
        nanoseconds: (last.0 - first.0) / count,
        share: due / count,
        told,
    })
}

fn table(plan: &Plan, times: &BTreeMap<Stack, Vec<f64>>, shares: &[f64]) -> Table {
    let mut table = Table::new(
        "**Kernel program**, microseconds of a CPU per sample and nanoseconds for each frame beyond \
         12:",
        &[
            "CPython",
            "stack",
            "12 frames",
            "100",
            "500",
            "12 frames are to reach",
            "ns per frame",
            "to reach",
        ],
    );
    for minor in plan.pythons.keys() {
        for each_its_own in [false, true] {
            let time = |depth| median(times.get(&(*minor, each_its_own, depth))?);
            let few = time(12);
            let slope = time(500).zip(few).map(|(many, few)| (many - few) / 488.0);
            let limit = if *minor >= 11 { 50.0 } else { 100.0 };
            let micro = |time: Option<f64>| figure(time.map(|time| time / 1000.0), 2);
            let kind = ["ten functions", "each frame its own function"];
            table.row(vec![
                format!("3.{minor}"),
                kind[usize::from(each_its_own)].to_owned(),
                micro(few),
                micro(time(100)),
                micro(time(500)),
                few.map_or("–".to_owned(), |few| verdict("≤ 1.5", few <= 1500.0)),
                figure(slope, 0),
                slope.map_or("–".to_owned(), |slope| {
                    verdict(&format!("≤ {limit}"), slope <= limit)
                }),
            ]);
        }
    }
    let least = shares.iter().copied().fold(1.0, f64::min);
    table.note(format!(
        "`run_time_ns` over `run_cnt` of the program `sample` at {RATE} Hz, median of {} rounds; {} % \
         of the runs or more found a target{}.",
        plan.rounds.div_ceil(3),
        figure(Some(100.0 * least), 0),
        if least < SHARE {
            ", fewer than there should be: something else ran, and the figures flatter"
        } else {
            ""
        }
    ));
    table
}
