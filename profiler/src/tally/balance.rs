//! Whether what the kernel program counted and what arrived in the profile agree, to the last sample.
//!
//! Each run of the kernel program ends in one outcome or one of [`Counter::ENDS`]. Each outcome is
//! of a sample that was sent or found the ring buffer full. Each sample that was sent was read, and
//! is in the profile or under a name that says why not. With native frames each that has a stack has
//! one end of these. What this finds is a fault of pyebpf's own.

use profiler_ebpf::{Counter, Outcome};

use super::{Shown, Tally, shown};
use crate::bpf::Counts;
use crate::symbolize::Symbols;

/// Two ways to count the same thing that gave different numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discrepancy {
    /// What should be the same.
    pub what: &'static str,
    pub left: u64,
    pub right: u64,
}

impl Tally {
    /// Samples that were read.
    pub fn read(&self) -> u64 {
        self.outcomes.iter().sum::<u64>() + self.forgotten + self.without_stack + self.undecodable
    }

    /// What does not add up, given what was named, what the kernel counted until it was stopped and how
    /// many samples the profile has.
    pub fn discrepancies(
        &self,
        symbols: &Symbols,
        counts: &Counts,
        in_profile: u64,
    ) -> Vec<Discrepancy> {
        let native_ended = symbols.native_ends().map(|(_, samples)| samples).sum();
        let ended = Counter::ENDS.map(|end| counts.counter(end));
        let shown = Outcome::ALL
            .into_iter()
            .filter(|&outcome| !matches!(shown(outcome), Shown::Not(_)))
            .map(|outcome| self.outcomes[outcome as usize])
            .sum();
        let pairs = [
            (
                "runs of the kernel program: begun, ended",
                counts.counter(Counter::Fired),
                ended.iter().sum::<u64>() + counts.walks(),
            ),
            (
                "samples: taken, read or lost",
                counts.walks(),
                self.read() + self.unread + counts.counter(Counter::RingFull),
            ),
            (
                "stacks: read, shown or left out",
                shown,
                in_profile + self.without_gil,
            ),
            (
                "native stacks: asked for, ended",
                match self.native_asked {
                    true => self.with_stack,
                    false => 0,
                },
                native_ended,
            ),
        ];
        pairs
            .into_iter()
            .filter(|&(_, left, right)| left != right)
            .map(|(what, left, right)| Discrepancy { what, left, right })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 runs: 60 caught nothing, 40 walks, of which 3 found the ring full, 1 came too late
    /// and 1 was not read;
    /// of 30 stacks 4 did not hold the GIL.
    fn balanced() -> (Tally, Counts) {
        let mut tally = Tally {
            forgotten: 1,
            unread: 1,
            without_gil: 4,
            ..Tally::default()
        };
        tally.outcomes[Outcome::Complete as usize] = 29;
        tally.outcomes[Outcome::TruncatedDepth as usize] = 1;
        tally.outcomes[Outcome::NoFrames as usize] = 5;
        let counts = Counts::of([
            (Counter::Fired as u32, 100),
            (Counter::NotTarget as u32, 30),
            (Counter::NotLooked as u32, 20),
            (Counter::NotPython as u32, 9),
            (Counter::NotWalked as u32, 1),
            (Counter::RingFull as u32, 3),
            (Outcome::Complete as u32, 34),
            (Outcome::TruncatedDepth as u32, 1),
            (Outcome::NoFrames as u32, 5),
        ]);
        (tally, counts)
    }

    #[test]
    fn every_run_and_every_sample_is_accounted_for() {
        let (tally, counts) = balanced();
        let symbols = Symbols::default();
        assert_eq!(tally.discrepancies(&symbols, &counts, 26), []);
    }

    #[test]
    fn one_sample_too_few_is_seen_wherever_it_went_missing() {
        let (tally, counts) = balanced();
        let whats = |tally: &Tally, counts: &Counts, profile| -> Vec<&'static str> {
            let found = tally.discrepancies(&Symbols::default(), counts, profile);
            found.into_iter().map(|found| found.what).collect()
        };
        let stacks = "stacks: read, shown or left out";
        let samples = "samples: taken, read or lost";
        let runs = "runs of the kernel program: begun, ended";
        assert_eq!(whats(&tally, &counts, 25), [stacks]);
        let mut unread = tally;
        unread.outcomes[Outcome::NoFrames as usize] -= 1;
        assert_eq!(whats(&unread, &counts, 26), [samples]);
        let (tally, _) = balanced();
        let fewer = Counts::of([(Counter::Fired as u32, 1)]);
        assert_eq!(whats(&tally, &fewer, 26), [runs, samples]);
        let (mut native, counts) = balanced();
        native.with_stack = 30;
        assert_eq!(whats(&native, &counts, 26), [""; 0]);
        native.native_asked = true;
        let asked = "native stacks: asked for, ended";
        assert_eq!(whats(&native, &counts, 26), [asked]);
    }
}
