//! How the samples of a recording ended, every loss by name, and the summary that the user reads.

mod balance;
mod json;
mod native;
mod outcomes;
mod share;

use std::{collections::BTreeMap, fmt::Write as _};

use profiler_ebpf::{Counter, Outcome};

use crate::{
    bpf::Counts,
    profile::{Profile, plural},
    symbolize::{Symbols, kernel::Kernel},
};

pub use balance::Discrepancy;
pub use outcomes::{Shown, key, shown};

/// How many of the hottest functions the summary names.
const HOTTEST: usize = 5;

/// Most notices that are kept.
const NOTICES_MAX: usize = 100;

const RING_FULL: &str = "pyebpf did not get to read its buffer in time: give it a larger one with \
     `--buffer 64M`, more of a CPU with `nice -n -10 pyebpf …`, or take fewer samples with `--rate`";
const READ_LATE: &str = "they were read seconds after their process had ended, on a machine that is \
     overloaded: take fewer samples with `--rate`, or give pyebpf more of a CPU with `nice -n -10`";
const NOT_LOOKED: &str = "a Python that begins is walked once pyebpf has seen what it is: short scripts \
     on busy CPUs lose their beginning; give pyebpf more of a CPU with `nice -n -10 pyebpf …`";
const FORGOTTEN_STACK: &str = "pyebpf had no memory left for so many different stacks: name fewer \
     processes with `--pid`, or take fewer samples with `--rate`";
const TARGETS_FULL: &str =
    "more processes run than pyebpf keeps: name those of interest with `--pid`";
const FAULT: &str = "a fault of pyebpf: please report it";

/// Samples that were lost for one reason, or left out for one.
struct Loss {
    /// What programs call it. Names stay.
    key: &'static str,
    name: &'static str,
    count: u64,
    /// What to do about it, where each is a stack that was wanted.
    advice: Option<&'static str>,
}

/// What was counted while samples were read.
#[derive(Debug, Default)]
pub struct Tally {
    /// Samples that were read, by outcome.
    pub outcomes: [u64; Outcome::ALL.len()],
    /// Left out because they did not hold the GIL.
    pub without_gil: u64,
    /// Of processes that had been forgotten already.
    pub forgotten: u64,
    /// Their stack was not known, or no more.
    pub without_stack: u64,
    /// Of Python processes, before they were looked at.
    pub not_looked: u64,
    /// Records that were none.
    pub undecodable: u64,
    /// Still in the ring buffer when there was no more time.
    pub unread: u64,
    /// Events of processes that did not arrive, for which all processes were looked at.
    pub events_lost: u64,
    /// Whether native frames were asked for.
    pub native_asked: bool,
    /// Samples whose stack was known, and named.
    pub with_stack: u64,
    /// How many files have no unwind tables: there was no room for them, or they are no good.
    pub without_tables: (u64, u64),
    /// What there is to say about single processes.
    notices: Vec<String>,
}

impl Tally {
    /// Adds something to say, once.
    pub fn notice(&mut self, text: String) {
        if self.notices.len() < NOTICES_MAX && !self.notices.contains(&text) {
            self.notices.push(text);
        }
    }

    /// What was to be said since the last call, which may be said again.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Samples that did not get far enough to be shown or to have their outcome counted. `named` says
    /// that the user named the processes, so that samples before their interpreter was up are of
    /// interest.
    fn losses(&self, counts: &Counts, named: bool) -> Vec<Loss> {
        let loss = |key, name, count, advice| Loss {
            key,
            name,
            count,
            advice,
        };
        vec![
            loss("without_gil", "without the GIL", self.without_gil, None),
            loss(
                "forgotten",
                "of a process that had ended",
                self.forgotten,
                Some(READ_LATE),
            ),
            loss(
                "without_stack",
                "lost: their stack was forgotten",
                self.without_stack,
                Some(FORGOTTEN_STACK),
            ),
            loss(
                "undecodable",
                "not understood",
                self.undecodable,
                Some(FAULT),
            ),
            loss(
                "unread",
                "lost: not read before the end",
                self.unread,
                Some(RING_FULL),
            ),
            loss(
                "ring_full",
                "lost: the ring buffer was full",
                counts.counter(Counter::RingFull),
                Some(RING_FULL),
            ),
            loss(
                "targets_full",
                "lost: too many processes",
                counts.counter(Counter::TargetsFull),
                Some(TARGETS_FULL),
            ),
            loss(
                "not_looked",
                "before the process was looked at",
                match named {
                    true => counts.counter(Counter::NotLooked),
                    false => self.not_looked,
                },
                // Where processes are named these may be of any program that they began.
                (!named).then_some(NOT_LOOKED),
            ),
            loss(
                "not_python",
                "before the interpreter was up",
                match named {
                    true => counts.counter(Counter::NotPython),
                    false => 0,
                },
                None,
            ),
        ]
    }

    /// Every sample that is not shown whole, by name, most first.
    fn named_losses(&self, counts: &Counts, named: bool) -> Vec<(&'static str, u64)> {
        let mut losses: Vec<(&'static str, u64)> = Outcome::ALL
            .into_iter()
            .filter_map(|outcome| {
                let name = match shown(outcome) {
                    Shown::Whole => return None,
                    Shown::Marked(label) => label.trim_matches(['[', ']']),
                    Shown::Not(name) => name,
                };
                Some((name, self.outcomes[outcome as usize]))
            })
            .collect();
        let others = self.losses(counts, named).into_iter();
        losses.extend(others.map(|loss| (loss.name, loss.count)));
        losses.retain(|&(_, count)| count > 0);
        losses.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        losses
    }

    /// Outcomes and losses that there were, by the name that programs know them by.
    pub fn counters(&self, symbols: &Symbols, counts: &Counts, named: bool) -> Vec<(String, u64)> {
        let outcomes = Outcome::ALL
            .into_iter()
            .map(|outcome| (key(outcome), self.outcomes[outcome as usize]));
        let losses = self.losses(counts, named).into_iter();
        outcomes
            .chain(losses.map(|loss| (loss.key, loss.count)))
            .map(|(key, count)| (key.to_owned(), count))
            .chain(self.native_counters(symbols))
            .chain(kernel_counters(symbols))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// Samples that were read, by how they ended, by the name that programs know it by.
    pub fn by_outcome(&self) -> BTreeMap<&'static str, u64> {
        let outcomes = Outcome::ALL.into_iter();
        outcomes
            .map(|outcome| (key(outcome), self.outcomes[outcome as usize]))
            .collect()
    }

    /// Samples of a recording of all processes that are not in the profile, or not whole, for other
    /// reasons than their outcome; likewise.
    pub fn by_loss(&self, counts: &Counts) -> BTreeMap<&'static str, u64> {
        let losses = self.losses(counts, false).into_iter();
        losses.map(|loss| (loss.key, loss.count)).collect()
    }

    /// Samples that found no room on their way.
    pub fn lost(counts: &Counts) -> u64 {
        counts.counter(Counter::RingFull) + counts.counter(Counter::TargetsFull)
    }

    /// The summary of a recording, for stderr.
    pub fn summary(
        &self,
        profile: &Profile,
        symbols: &Symbols,
        counts: &Counts,
        named: bool,
    ) -> String {
        let mut text = String::new();
        let mut line = |args: std::fmt::Arguments<'_>| {
            writeln!(text, "{args}").expect("writing to a string");
        };
        let total = profile.total();
        let seconds = profile.meta().duration.as_secs_f64();
        if profile.is_empty() {
            line(format_args!("no samples in {seconds:.1} s"));
        } else {
            line(format_args!(
                "{} of {} in {seconds:.1} s, {:.1} % with a complete stack",
                plural(total.samples, "sample", "samples"),
                plural(
                    profile.processes_with_samples() as u64,
                    "process",
                    "processes"
                ),
                self.share(counts, named).percent(),
            ));
        }
        for (name, count) in self.named_losses(counts, named) {
            line(format_args!("  {count:>7} {name}"));
        }
        let events = self.events_lost;
        if events > 0 {
            line(format_args!(
                "  {events:>7} events of processes were lost: all processes were looked at anew"
            ));
        }
        let frames = counts.counter(Counter::FrameUnproven);
        if frames > 0 {
            line(format_args!(
                "  {frames:>7} frames whose code was not in memory: [unproven]"
            ));
        }
        let calls = counts.counter(Counter::CallFailed);
        if calls > 0 {
            line(format_args!(
                "  {calls:>7} stacks were cut: this kernel allows the program no more steps"
            ));
        }
        let untimed = profile.untimed();
        if untimed > 0 {
            line(format_args!(
                "  {untimed:>7} not in the order of time: more samples than its memory holds"
            ));
        }
        for (reason, frames) in symbols.unknown() {
            line(format_args!(
                "  {frames:>7} frames without a name: {reason}"
            ));
        }
        for (count, what) in self.native_losses(symbols) {
            line(format_args!("  {count:>7} {what}"));
        }
        for (why, stacks) in symbols.kernel.iter().flat_map(Kernel::missing) {
            let why = why.text;
            line(format_args!(
                "  {stacks:>7} stacks without some of the kernel's frames: {why}"
            ));
        }
        for found in self.discrepancies(symbols, counts, total.samples) {
            line(format_args!(
                "a fault of pyebpf, please report it: {} do not agree, {} and {}",
                found.what, found.left, found.right
            ));
        }
        if let Some(advice) = self.share(counts, named).advice() {
            line(format_args!("{advice}"));
        }
        for notice in &self.notices {
            line(format_args!("{notice}"));
        }
        if profile.is_empty() {
            let why = match self.not_looked {
                0 => "no Python code ran that pyebpf could see",
                _ => "what ran of Python was gone before pyebpf had looked at it",
            };
            line(format_args!("the profile is empty: {why}"));
            return text;
        }
        line(format_args!("hottest functions by own time:"));
        for (function, count) in profile.own_time().into_iter().take(HOTTEST) {
            let share = 100.0 * count.samples as f64 / total.samples as f64;
            line(format_args!("  {share:>5.1} %  {function}"));
        }
        text
    }
}

/// What there was of the kernel's frames, for pprof's comments.
fn kernel_counters(symbols: &Symbols) -> impl Iterator<Item = (String, u64)> {
    symbols.kernel.iter().flat_map(|kernel| {
        let missing = kernel.missing();
        let missing = missing.map(|(why, stacks)| (format!("kernel_frames_{}", why.key), stacks));
        [("kernel_frames".to_owned(), kernel.stacks())]
            .into_iter()
            .chain(missing)
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::profile::{Meta, Process, Shape};

    #[test]
    fn samples_that_the_timeline_had_no_room_for_are_said() {
        let meta = Meta {
            started: SystemTime::UNIX_EPOCH,
            rate: 99,
            command: String::new(),
            duration: Duration::from_secs(1),
        };
        let mut profile = Profile::new(meta, Shape::default(), true);
        let process = profile.add_process(Process::default());
        let thread = profile.add_thread(process, 8, String::new());
        let stack = profile.stack([]);
        profile.limit_timeline(1);
        let summary = |profile: &Profile| {
            let tally = Tally::default();
            tally.summary(profile, &Symbols::default(), &Counts::default(), false)
        };
        profile.record(0, thread, stack, 10);
        let whole = summary(&profile);
        assert!(!whole.contains("order of time"), "{whole}");
        profile.record(1, thread, stack, 10);
        let text = summary(&profile);
        let expected = "        1 not in the order of time: more samples than its memory holds\n";
        assert!(text.contains(expected), "{text}");
    }
}
