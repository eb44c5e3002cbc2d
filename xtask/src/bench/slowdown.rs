//! How much slower a target gets while it is profiled: blocks of equal units of work, bare and
//! profiled in turn, in one process that stands under one stack from beginning to end.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::measure::{cpus, median, middle_mean};
use super::profilers::{Profiler, Recording, Whom};
use super::table::{Table, figure, verdict};
use super::workload::{Target, Work};
use super::{Plan, say};

const DEPTHS: [usize; 3] = [12, 200, 1000];
const RATES: [u32; 2] = [99, 999];

/// What is put between two bare blocks. Nothing at all shows how far equal blocks differ.
const CONTENDERS: [Option<Profiler>; 5] = [
    None,
    Some(Profiler::Perf),
    Some(Profiler::Pyebpf),
    Some(Profiler::PySpyNonblocking),
    Some(Profiler::PySpy),
];

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
                for (place, contender) in CONTENDERS.into_iter().enumerate() {
                    let profiled = profiled(plan, target, contender, rate)?;
                    let after = mean(target.block(plan.block)?)?;
                    let slowdown = 100.0 * (profiled / ((bare + after) / 2.0) - 1.0);
                    found
                        .entry((rate, *depth, place))
                        .or_default()
                        .push(slowdown);
                    bare = after;
                }
            }
        }
    }
    Ok(table(&found))
}

/// Seconds per unit of work under a profiler.
fn profiled(
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

fn mean(units: Vec<f64>) -> Result<f64> {
    middle_mean(&units).context("the workload did no unit of work")
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
                with_spread(values.map_or(&[], Vec::as_slice))
            }));
            cells.push(judge(rate, depth, middle(1), middle(2)));
            table.row(cells);
        }
    }
    table.note(
        "Median of the rounds ± half the distance of their quartiles. \"nothing\" is a bare block \
         between bare blocks: what this machine's noise alone comes to. perf is `perf record -g -p`.",
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

fn with_spread(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = median(&sorted);
    let quartile = |lower: bool| {
        let half = sorted.len().div_ceil(2);
        median(if lower {
            &sorted[..half]
        } else {
            &sorted[sorted.len() - half..]
        })
    };
    let spread = quartile(false)
        .zip(quartile(true))
        .map(|(upper, lower)| (upper - lower) / 2.0);
    let digits = |value: f64| if value.abs() < 100.0 { 1 } else { 0 };
    format!(
        "{} ± {}",
        figure(middle, middle.map_or(0, digits)),
        figure(spread, spread.map_or(0, digits))
    )
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
    fn the_spread_is_half_the_distance_of_the_quartiles() {
        assert_eq!(with_spread(&[1.0, 2.0, 3.0, 4.0, 5.0]), "3.0 ± 1.0");
        assert_eq!(with_spread(&[200.4]), "200 ± 0.0");
        assert_eq!(with_spread(&[]), "– ± –");
    }
}
