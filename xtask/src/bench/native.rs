//! What native frames cost: time of the kernel program for stacks of Python over C, slowdown beside
//! py-spy's `--native`, and memory where very many libraries are mapped.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::kernel::{self, Timed, busy};
use super::measure::{self, median};
use super::profilers::{Profiler, Recording, Told, Whom};
use super::slowdown::{mean, profiled, with_error};
use super::table::{Table, figure, verdict};
use super::workload::{Target, Work};
use super::{Plan, say};

/// How many Python frames the stacks have.
const PYTHON_FRAMES: usize = 12;
/// Workloads that call C ever deeper.
const NESTED: [&str; 4] = ["nested-0", "nested-3", "nested-20", "nested-40"];
/// For how many native frames there is a mark, and which, microseconds; and for each further one,
/// nanoseconds.
const FRAMES: f64 = 25.0;
const TIME_MAX: f64 = 8.0;
const FURTHER_MAX: f64 = 200.0;

/// Processes whose libraries are all mapped at once.
const PROCESSES: usize = 500;
/// Files of code that each has mapped at least.
const LIBRARIES: usize = 40;
const MEMORY_MAX: f64 = 300.0;
/// Until each process was sampled and its libraries were read.
const WARM_UP: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(200);

/// The table of times.
pub(super) fn kernel(plan: &Plan) -> Result<Table> {
    let _statistics = measure::Statistics::enable()?;
    let mut times: BTreeMap<(u32, usize), Vec<Timed>> = BTreeMap::new();
    let rounds = plan.rounds.div_ceil(3);
    for round in 1..=rounds {
        for (minor, python) in &plan.pythons {
            say(&format!(
                "kernel program with native frames: 3.{minor}, round {round} of {rounds}"
            ));
            for (place, mode) in NESTED.into_iter().enumerate() {
                let work = busy(mode, PYTHON_FRAMES, false);
                let timed = kernel::sample(plan, Profiler::PyebpfNative, python, work)?;
                times.entry((*minor, place)).or_default().push(timed);
            }
        }
    }
    let mut table = Table::new(
        "**Kernel program with native frames**, microseconds of a CPU per sample of 12 Python frames \
         and so many native ones, and nanoseconds for each further native frame:",
        &[
            "CPython",
            "native frames: µs",
            "25 frames are to reach",
            "ns per frame",
            "to reach",
        ],
    );
    for minor in plan.pythons.keys() {
        let mut points = Vec::new();
        for place in 0..NESTED.len() {
            let timed = times.get(&(*minor, place)).map_or(&[][..], Vec::as_slice);
            let frames: Option<Vec<f64>> = timed.iter().map(|it| frames(&it.told)).collect();
            let times: Vec<f64> = timed.iter().map(|it| it.nanoseconds / 1000.0).collect();
            let frames = frames.and_then(|frames| median(&frames));
            points.extend(frames.zip(median(&times)));
        }
        ensure!(
            points.len() == NESTED.len(),
            "pyebpf does not tell how many native frames its samples had"
        );
        table.row(row(*minor, &points));
    }
    table.note(format!(
        "As the table of the kernel program above, which is without native frames. Each more deeply \
         nested list takes json's encoder another call or two. Median of {rounds} rounds."
    ));
    Ok(table)
}

/// Native frames of a sample on average, by what pyebpf told.
fn frames(told: &Told) -> Option<f64> {
    let frames = told.stats["native"]["frames"].as_f64()?;
    let samples = told.stats["samples"].as_f64()?;
    (samples > 0.0).then(|| frames / samples)
}

fn row(minor: u32, points: &[(f64, f64)]) -> Vec<String> {
    let text = points
        .iter()
        .map(|&(frames, time)| format!("{frames:.0}: {time:.2}"));
    let (Some(&(least, fast)), Some(&(most, slow))) = (points.first(), points.last()) else {
        return Vec::new();
    };
    let slope = 1000.0 * (slow - fast) / (most - least);
    let at_mark = fast + slope / 1000.0 * (FRAMES - least).max(0.0);
    vec![
        format!("3.{minor}"),
        text.collect::<Vec<_>>().join(", "),
        verdict(&format!("≤ {TIME_MAX}"), at_mark <= TIME_MAX),
        figure(Some(slope), 0),
        verdict(&format!("≤ {FURTHER_MAX}"), slope <= FURTHER_MAX),
    ]
}

/// The table of slowdowns.
pub(super) fn slowdown(plan: &Plan) -> Result<Table> {
    const CONTENDERS: [(Option<Profiler>, u32); 4] = [
        (None, 999),
        (Some(Profiler::PyebpfNative), 999),
        (Some(Profiler::PyebpfNative), 99),
        (Some(Profiler::PySpyNative), 99),
    ];
    const WORK: [(&str, &str); 2] = [("Python", "block"), ("C, 20 calls deep", "coded-20")];
    let mut targets = Vec::new();
    for (_, mode) in WORK {
        let work = Work {
            mode,
            depth: PYTHON_FRAMES,
            each_its_own: false,
            cpu: measure::cpus()?.checked_sub(1),
            real_time: false,
        };
        let mut target = Target::start(&plan.python, work)?;
        target.block(plan.block)?;
        targets.push(target);
    }
    let mut found: [[Vec<f64>; CONTENDERS.len()]; WORK.len()] = Default::default();
    for round in 1..=plan.rounds {
        say(&format!(
            "slowdown with native frames: round {round} of {}",
            plan.rounds
        ));
        for (target, found) in targets.iter_mut().zip(&mut found) {
            let mut bare = mean(target.block(plan.block)?)?;
            for (&(profiler, rate), found) in CONTENDERS.iter().zip(found) {
                let time = profiled(plan, target, profiler, rate)?;
                let after = mean(target.block(plan.block)?)?;
                found.push(100.0 * (time / ((bare + after) / 2.0) - 1.0));
                bare = after;
            }
        }
    }
    let mut table = Table::new(
        "**Slowdown with native frames**, of a busy target under 12 Python frames, in percent of its \
         own speed:",
        &[
            "work in",
            "nothing",
            "pyebpf `--native`, 999 Hz",
            "the same, 99 Hz",
            "py-spy `--native`, 99 Hz",
            "to reach at 999 Hz",
        ],
    );
    for ((name, _), found) in WORK.iter().zip(&found) {
        let (ours, theirs) = (median(&found[1]), median(&found[3]));
        let mark = ours
            .zip(theirs)
            .map(|(ours, theirs)| verdict("less than py-spy at 99 Hz", ours < theirs));
        let mut cells = vec![(*name).to_owned()];
        cells.extend(found.iter().map(|found| with_error(found)));
        cells.push(mark.unwrap_or_default());
        table.row(cells);
    }
    table.note("As the table of slowdowns above.");
    Ok(table)
}

/// The table of memory.
pub(super) fn memory(plan: &Plan) -> Result<Table> {
    say(&format!("memory: starting {PROCESSES} Pythons"));
    let work = Work {
        mode: "libraries",
        depth: PYTHON_FRAMES,
        each_its_own: false,
        cpu: None,
        real_time: false,
    };
    let targets = (0..PROCESSES).map(|_| Target::start(&plan.python, work));
    let targets: Vec<Target> = targets.collect::<Result<_>>()?;
    let first = targets.first().context("there are targets")?;
    let libraries = measure::mapped_code(first.pid())?;
    let recording = Recording::start(&plan.tools, Profiler::PyebpfNative, Whom::All, 99, &[])?;
    let (begin, mut most) = (Instant::now(), 0);
    while begin.elapsed() < WARM_UP {
        most = most.max(measure::memory(recording.pid()).unwrap_or(0));
        thread::sleep(LOOK);
    }
    let maps = measure::map_memory(recording.pid());
    // The names of native code are read to the end then.
    let pid = recording.pid();
    let told = recording.finish(|| most = most.max(measure::memory(pid).unwrap_or(0)))?;
    let mut table = Table::new(
        "**Memory with native frames**, `--all-python --native` at 99 Hz, MB:",
        &[
            "Python processes",
            "files of code of each",
            "sampled",
            "memory",
            "of that the kernel's maps",
            "to reach",
        ],
    );
    let all = (most + maps) as f64 / 1e6;
    table.row(vec![
        PROCESSES.to_string(),
        libraries.to_string(),
        told.stats["processes"].to_string(),
        figure(Some(all), 0),
        figure(Some(maps as f64 / 1e6), 0),
        verdict(
            &format!("≤ {MEMORY_MAX}"),
            all <= MEMORY_MAX && libraries >= LIBRARIES,
        ),
    ]);
    table.note("The most that was seen, while names were read at the end included.");
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marks_are_for_25_frames_and_each_further_one() {
        let row = |points: &[(f64, f64)]| row(12, points).join(" | ");
        assert_eq!(
            row(&[(20.0, 5.0), (60.0, 9.0)]),
            "3.12 | 20: 5.00, 60: 9.00 | ≤ 8 ok | 100 | ≤ 200 ok"
        );
        assert_eq!(
            row(&[(20.0, 7.5), (60.0, 17.5)]),
            "3.12 | 20: 7.50, 60: 17.50 | ≤ 8 **MISSED** | 250 | ≤ 200 **MISSED**"
        );
    }
}
