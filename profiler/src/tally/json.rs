//! The summary as JSON, for programs: what `--stats` writes. Keys stay; new ones may come.

use std::{collections::BTreeMap, path::Path};

use profiler_ebpf::{Counter, Outcome};
use serde::Serialize;

use super::{Tally, key, native::Native};
use crate::{
    bpf::Counts,
    profile::Profile,
    symbolize::{Symbols, kernel},
};

/// The whole of it.
#[derive(Debug, Serialize)]
struct Stats<'a> {
    pyebpf: &'static str,
    /// Why the recording ended.
    end: &'static str,
    /// Where the profile is, if it has a name.
    output: Option<String>,
    seconds: f64,
    rate: u32,
    /// Processes with samples.
    processes: usize,
    /// Samples in the profile.
    samples: u64,
    /// Of the Python stacks that there were, in percent.
    complete_percent: f64,
    /// Of the samples that were read.
    outcomes: BTreeMap<&'static str, u64>,
    /// Samples that are not in the profile, or not whole, for other reasons than their outcome.
    losses: BTreeMap<&'static str, u64>,
    /// What the kernel program counted.
    kernel: Kernel,
    /// Starts, forks and ends of processes and mappings of theirs that did not arrive, at least.
    events_lost: u64,
    frames_without_name: BTreeMap<String, u64>,
    native: Native,
    kernel_frames: KernelFrames,
    /// What does not add up: a fault of pyebpf.
    unaccounted: BTreeMap<&'static str, [u64; 2]>,
    advice: Option<String>,
    notices: &'a [String],
}

#[derive(Debug, Serialize)]
struct Kernel {
    runs: u64,
    not_target: u64,
    not_looked: u64,
    not_python: u64,
    not_walked: u64,
    outcomes: BTreeMap<&'static str, u64>,
    ring_full: u64,
    stacks_lost: u64,
    codes_lost: u64,
    events_lost: u64,
    targets_full: u64,
    frames_unproven: u64,
    calls_failed: u64,
}

/// What became of the kernel's frames.
#[derive(Debug, Serialize)]
struct KernelFrames {
    asked: bool,
    /// Samples that had some, or should have had.
    samples: u64,
    /// Of those, samples that lack frames or names.
    missing: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// The summary as one line of JSON, of a recording that ended so and was written there.
    pub fn json(
        &self,
        (end, output): (&'static str, Option<&Path>),
        profile: &Profile,
        symbols: &Symbols,
        counts: &Counts,
        named: bool,
    ) -> String {
        let total = profile.total().samples;
        let losses = self.losses(counts, named).into_iter();
        let discrepancies = self.discrepancies(symbols, counts, total).into_iter();
        let stats = Stats {
            pyebpf: env!("CARGO_PKG_VERSION"),
            end,
            output: output.map(|path| path.to_string_lossy().into_owned()),
            seconds: profile.meta().duration.as_secs_f64(),
            rate: profile.meta().rate,
            processes: profile.processes_with_samples(),
            samples: total,
            complete_percent: self.share(counts, named).percent(),
            outcomes: by_name(|outcome| self.outcomes[outcome as usize]),
            losses: losses.map(|loss| (loss.key, loss.count)).collect(),
            kernel: Kernel::from(counts),
            events_lost: self.events_lost,
            frames_without_name: symbols
                .unknown()
                .iter()
                .map(|(reason, &frames)| (reason.to_string(), frames))
                .collect(),
            native: self.native(symbols),
            kernel_frames: KernelFrames::from(symbols.kernel.as_ref()),
            unaccounted: discrepancies
                .map(|found| (found.what, [found.left, found.right]))
                .collect(),
            advice: self.share(counts, named).advice(),
            notices: &self.notices,
        };
        serde_json::to_string(&stats).expect("numbers and text become JSON")
    }
}

fn by_name(count: impl Fn(Outcome) -> u64) -> BTreeMap<&'static str, u64> {
    let outcomes = Outcome::ALL.into_iter();
    outcomes
        .map(|outcome| (key(outcome), count(outcome)))
        .collect()
}

impl From<Option<&kernel::Kernel>> for KernelFrames {
    fn from(kernel: Option<&kernel::Kernel>) -> KernelFrames {
        let missing = kernel.into_iter().flat_map(kernel::Kernel::missing);
        KernelFrames {
            asked: kernel.is_some(),
            samples: kernel.map_or(0, kernel::Kernel::stacks),
            missing: missing.map(|(why, stacks)| (why.key, stacks)).collect(),
        }
    }
}

impl From<&Counts> for Kernel {
    fn from(counts: &Counts) -> Kernel {
        let of = |counter| counts.counter(counter);
        Kernel {
            runs: of(Counter::Fired),
            not_target: of(Counter::NotTarget),
            not_looked: of(Counter::NotLooked),
            not_python: of(Counter::NotPython),
            not_walked: of(Counter::NotWalked),
            outcomes: by_name(|outcome| counts.outcome(outcome)),
            ring_full: of(Counter::RingFull),
            stacks_lost: of(Counter::StackLost),
            codes_lost: of(Counter::CodeLost),
            events_lost: of(Counter::EventLost),
            targets_full: of(Counter::TargetsFull),
            frames_unproven: of(Counter::FrameUnproven),
            calls_failed: of(Counter::CallFailed),
        }
    }
}
