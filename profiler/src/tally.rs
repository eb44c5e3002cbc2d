//! How the samples of a recording ended, every loss by name, and the summary that the user reads.

use std::fmt::Write as _;

use profiler_ebpf::{Counter, Outcome};

use crate::{
    bpf::Counts,
    profile::{Profile, escape, plural},
    symbolize::Symbols,
};

/// How many of the hottest functions the summary names.
const HOTTEST: usize = 5;

/// Most notices that are kept.
const NOTICES_MAX: usize = 100;

/// What was counted while samples were read.
#[derive(Debug, Default)]
pub struct Tally {
    /// Samples that were read, by outcome.
    pub outcomes: [u64; Outcome::ALL.len()],
    /// Left out because they did not hold the GIL.
    pub without_gil: u64,
    /// Of processes that had been forgotten already.
    pub forgotten: u64,
    /// Of Python processes, before they were looked at.
    pub not_looked: u64,
    /// Records that were none.
    pub undecodable: u64,
    /// What there is to say about single processes.
    notices: Vec<String>,
}

impl Tally {
    fn of(&self, outcomes: &[Outcome]) -> u64 {
        outcomes
            .iter()
            .map(|&outcome| self.outcomes[outcome as usize])
            .sum()
    }

    /// Samples of Python code that were read, complete or not.
    pub fn stacks(&self) -> u64 {
        self.outcomes.iter().sum::<u64>()
            - self.of(&[
                Outcome::NoThreadState,
                Outcome::NoInterpreter,
                Outcome::NoFrames,
            ])
    }

    /// The share of [`stacks`](Self::stacks) that are whole, in percent; 100 when there are none.
    fn complete_percent(&self) -> f64 {
        match self.stacks() {
            0 => 100.0,
            stacks => 100.0 * self.of(&[Outcome::Complete]) as f64 / stacks as f64,
        }
    }

    /// Adds something to say, once.
    pub fn notice(&mut self, text: String) {
        if self.notices.len() < NOTICES_MAX && !self.notices.contains(&text) {
            self.notices.push(text);
        }
    }

    /// Every sample that is not shown whole, by name, most first. `named` says that the user named
    /// the processes, so that samples before their interpreter was up are of interest.
    fn losses(&self, counts: &Counts, named: bool) -> Vec<(&'static str, u64)> {
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
        losses.extend([
            ("without the GIL", self.without_gil),
            ("of a process that had ended", self.forgotten),
            ("not understood", self.undecodable),
            (
                "lost: the ring buffer was full",
                counts.counter(Counter::RingFull),
            ),
            (
                "lost: too many processes",
                counts.counter(Counter::TargetsFull),
            ),
            (
                "before the process was looked at",
                match named {
                    true => counts.counter(Counter::NotLooked),
                    false => self.not_looked,
                },
            ),
        ]);
        if named {
            losses.push((
                "before the interpreter was up",
                counts.counter(Counter::NotPython),
            ));
        }
        losses.retain(|&(_, count)| count > 0);
        losses.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        losses
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
                self.complete_percent(),
            ));
        }
        for (name, count) in self.losses(counts, named) {
            line(format_args!("  {count:>7} {name}"));
        }
        let events = counts.counter(Counter::EventLost);
        if events > 0 {
            line(format_args!(
                "  {events:>7} starts and ends of processes were lost: the ring buffer was full"
            ));
        }
        let frames = counts.counter(Counter::FrameUnproven);
        if frames > 0 {
            line(format_args!(
                "  {frames:>7} frames whose code was not in memory: [unproven]"
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
        for notice in &self.notices {
            line(format_args!("{notice}"));
        }
        if profile.is_empty() {
            line(format_args!(
                "the profile is empty: no Python code ran that pyebpf could see"
            ));
            return text;
        }
        line(format_args!("hottest functions by own time:"));
        for (function, count) in profile.own_time().into_iter().take(HOTTEST) {
            let share = 100.0 * count.samples as f64 / total.samples as f64;
            let function = profile.function_of(function);
            let name = escape(&function.name);
            let file = escape(profile.shown_file(function));
            if file.is_empty() {
                line(format_args!("  {share:>5.1} %  {name}"));
            } else {
                line(format_args!("  {share:>5.1} %  {name} ({file})"));
            }
        }
        text
    }
}

/// How a sample with this outcome is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Whole,
    /// Under this root frame, which says what is wrong with the stack.
    Marked(&'static str),
    /// There is no Python stack to show; it is counted under this name.
    Not(&'static str),
}

/// The one place for what outcomes are called.
pub fn shown(outcome: Outcome) -> Shown {
    match outcome {
        Outcome::Complete => Shown::Whole,
        Outcome::TruncatedDepth => Shown::Marked("[truncated: deeper than 1024 frames]"),
        Outcome::TruncatedFrame => Shown::Marked("[truncated: caller's frame unreadable]"),
        Outcome::TruncatedCode => Shown::Marked("[truncated: caller not linked yet]"),
        Outcome::TruncatedEntry => Shown::Marked("[truncated: generator not linked yet]"),
        Outcome::UnreadableThread => Shown::Marked("[unreadable: thread state]"),
        Outcome::UnreadableFrame => Shown::Marked("[unreadable: newest frame]"),
        Outcome::UnreadableCode => Shown::Marked("[unreadable: newest frame not set up yet]"),
        Outcome::NoThreadState => Shown::Not("not Python: threads without a thread state"),
        Outcome::NoInterpreter => {
            Shown::Not("not Python: the interpreter was starting or had ended")
        }
        Outcome::NoFrames => Shown::Not("not Python: threads between two calls into Python"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::profile::{Meta, Shape};

    #[test]
    fn samples_that_the_timeline_had_no_room_for_are_said() {
        let meta = Meta {
            started: SystemTime::UNIX_EPOCH,
            rate: 99,
            command: String::new(),
            duration: Duration::from_secs(1),
        };
        let mut profile = Profile::new(meta, Shape::default(), true);
        let process = profile.add_process(7, String::new());
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
