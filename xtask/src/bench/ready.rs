//! How long `pyebpf record --all-python` takes, from its start until its clocks run, on a machine
//! with many Python processes.

use anyhow::Result;

use super::measure::median;
use super::profilers::{Profiler, Recording, Whom};
use super::table::{Table, figure, verdict};
use super::workload::{Target, Work};
use super::{Plan, say};

const PROCESSES: usize = 200;

/// The table of one row.
pub(super) fn measure(plan: &Plan) -> Result<Table> {
    say(&format!("ready: starting {PROCESSES} Pythons"));
    let work = Work {
        mode: "sleep",
        depth: 12,
        each_its_own: false,
        cpu: None,
        real_time: false,
    };
    let pythons: Vec<_> = plan.pythons.values().collect();
    let targets: Vec<Target> = (0..PROCESSES)
        .map(|number| {
            let python = pythons.get(number % pythons.len().max(1));
            Target::start(python.copied().unwrap_or(&plan.python), work)
        })
        .collect::<Result<_>>()?;
    let mut times = Vec::new();
    for _ in 0..plan.rounds {
        let recording = Recording::start(&plan.tools, Profiler::Pyebpf, Whom::All, 99, &[])?;
        times.push(recording.ready_after.as_secs_f64());
        recording.finish(|| ())?;
    }
    drop(targets);
    Ok(table(&times, pythons.len().max(1)))
}

fn table(times: &[f64], versions: usize) -> Table {
    let mut table = Table::new(
        "**Ready to sample**, seconds from the start of `pyebpf record --all-python`:",
        &[
            "Python processes",
            "versions",
            "median",
            "longest",
            "to reach",
        ],
    );
    let middle = median(times);
    let longest = times.iter().copied().reduce(f64::max);
    table.row(vec![
        PROCESSES.to_string(),
        versions.to_string(),
        figure(middle, 2),
        figure(longest, 2),
        middle.map_or("–".to_owned(), |middle| verdict("≤ 1", middle <= 1.0)),
    ]);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_judged() {
        let text = table(&[0.3, 0.4, 1.7], 5).markdown();
        assert!(
            text.contains("| 200 | 5 | 0.40 | 1.70 | ≤ 1 ok |"),
            "{text}"
        );
    }
}
