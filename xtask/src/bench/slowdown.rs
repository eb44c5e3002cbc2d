//! How much slower a target gets while it is profiled: blocks of equal units of work, bare and
//! profiled in turn, in one process that stands under one stack from beginning to end.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::measure::{cpus, median, quicker_half};
use super::profilers::{Profiler, Recording, Whom};
use super::table::{Table, figure, verdict};
use super::workload::{Target, Work};
use super::{Plan, say};

const DEPTHS: [usize; 3] = [12, 200, 1000];
const RATES: [u32; 2] = [99, 999];

/// What is put between two bare blocks, and how often in a round. Nothing at all shows how far equal
/// blocks differ. Small costs take more looks than large ones.
const CONTENDERS: [(Option<Profiler>, usize); 5] = [
    (None, 3),
    (Some(Profiler::Perf), 3),
    (Some(Profiler::Pyebpf), 3),
    (Some(Profiler::PySpyNonblocking), 1),
    (Some(Profiler::PySpy), 1),
];

/// How often each is measured in a round at most.
const TURNS: usize = 3;

/// Slowdowns in percent, a number for each round; by rate, depth and place in [`CONTENDERS`].
type Slowdowns = BTreeMap<(u32, usize, usize), Vec<f64>>;

/// The table of slowdowns.
pub(super) fn measure(plan: &Plan) -> Result<Table> {
    let mut found = Slowdowns::new();
    // Interrupts of devices tend to be served by the first CPU.
    let cpu = cpus()?.checked_sub(1);
    let mut targets = Vec::new();
    for depth in DEPTHS {
        let work = Work {
            mode: "block",
            depth,
            each_its_own: false,
            cpu,
            real_time: false,
        };
        let mut target = Target::start(&plan.python, work)?;
        // It finds out how long a unit of work takes, and warms up.
        target.block(plan.block)?;
        targets.push((depth, target));
    }
    for round in 1..=plan.rounds {
        say(&format!("slowdown: round {round} of {}", plan.rounds));
        for (depth, target) in &mut targets {
            for rate in RATES {
                let mut bare = mean(target.block(plan.block)?)?;
                for turn in 0..TURNS {
                    for (place, (contender, turns)) in CONTENDERS.into_iter().enumerate() {
                        if turn >= turns {
                            continue;
                        }
                        let profiled = profiled(plan, target, contender, rate)?;
                        let after = mean(target.block(plan.block)?)?;
                        let slowdown = 100.0 * (profiled / ((bare + after) / 2.0) - 1.0);
                        let slowdowns = found.entry((rate, *depth, place));
                        slowdowns.or_default().push(slowdown);
                        bare = after;
                    }
                }
            }
        }
    }
    Ok(table(&found))
}

/// Seconds per unit of work under a profiler.
pub(super) fn profiled(
    plan: &Plan,
    target: &mut Target,
    profiler: Option<Profiler>,
    rate: u32,
) -> Result<f64> {
    let Some(profiler) = profiler else {
        return mean(target.block(plan.block)?);
    };
    let whom = Whom::Pids(vec![target.pid()]);
    let recording = Recording::start(&plan.tools, profiler, whom, rate, &[])?;
    let seconds = target.block(plan.block)?;
    recording.finish(|| ())?;
    mean(seconds)
}

pub(super) fn mean(units: Vec<f64>) -> Result<f64> {
    quicker_half(&units).context("the workload did no unit of work")
}

fn table(found: &Slowdowns) -> Table {
    let mut table = Table::new(
        "**Slowdown of a busy target**, in percent of its own speed:",
        &[
            "rate",
            "frames",
            "nothing",
            "perf",
            "pyebpf",
            "py-spy `--nonblocking`",
            "py-spy",
            "pyebpf is to reach",
        ],
    );
    for rate in RATES {
        for depth in DEPTHS {
            let middle = |place| median(found.get(&(rate, depth, place))?);
            let mut cells = vec![format!("{rate} Hz"), depth.to_string()];
            cells.extend((0..CONTENDERS.len()).map(|place| {
                let values = found.get(&(rate, depth, place));
                with_error(values.map_or(&[], Vec::as_slice))
            }));
            cells.push(judge(rate, depth, middle(1), middle(2)));
            table.row(cells);
        }
    }
    table.note(
        "Median ± its standard error. Each figure compares the time of a unit of work with that in \
         the bare blocks before and after it, by the quicker half of the units of each block, in \
         one process that is held to one CPU; \"nothing\" is a bare block between bare blocks, \
         which is to say noise. Where an error exceeds the mark, \"ok\" only says that nothing \
         larger was seen. perf is `perf record -g -p`.",
    );
    table
}

fn judge(rate: u32, depth: usize, perf: Option<f64>, ours: Option<f64>) -> String {
    let (Some(perf), Some(ours)) = (perf, ours) else {
        return "–".to_owned();
    };
    if rate < 999 {
        return verdict("≤ 0.5", ours <= 0.5);
    }
    let above = if depth < 1000 { 1.5 } else { 6.0 };
    verdict(&format!("≤ perf + {above}"), ours <= perf + above)
}

/// The median and its standard error, which the distance of the quartiles tells: for a normal
/// distribution that is 1.349 standard deviations, and a median errs 1.253 times as far as a mean.
pub(super) fn with_error(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len().div_ceil(2);
    let lower = median(&sorted[..half]);
    let upper = median(&sorted[sorted.len() - half..]);
    let error = upper.zip(lower).map(|(upper, lower)| {
        let deviation = (upper - lower) / 1.349;
        1.253 * deviation / (sorted.len() as f64).sqrt()
    });
    let digits = |value: f64| if value.abs() < 100.0 { 1 } else { 0 };
    let text = |value: Option<f64>| figure(value, value.map_or(0, digits));
    format!("{} ± {}", text(median(&sorted)), text(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marks_depend_on_rate_and_depth() {
        assert_eq!(judge(99, 12, Some(0.1), Some(0.5)), "≤ 0.5 ok");
        assert_eq!(judge(99, 12, Some(9.0), Some(0.6)), "≤ 0.5 **MISSED**");
        assert_eq!(judge(999, 200, Some(2.0), Some(3.5)), "≤ perf + 1.5 ok");
        assert!(judge(999, 200, Some(2.0), Some(3.6)).contains("MISSED"));
        assert_eq!(judge(999, 1000, Some(2.0), Some(8.0)), "≤ perf + 6 ok");
        assert_eq!(judge(999, 12, None, Some(8.0)), "–");
    }

    #[test]
    fn the_error_of_a_median_shrinks_with_the_root_of_their_number() {
        let five = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(with_error(&five), "3.0 ± 0.8");
        assert_eq!(with_error(&five.repeat(4)), "3.0 ± 0.4");
        assert_eq!(with_error(&[200.4]), "200 ± 0.0");
        assert_eq!(with_error(&[]), "– ± –");
    }
}
