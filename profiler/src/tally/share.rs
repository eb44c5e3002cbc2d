//! Which share of the Python stacks is whole, which reason leads among the rest, and what to do.

use profiler_ebpf::Outcome;

use super::{Loss, Shown, Tally, outcomes, shown};
use crate::bpf::Counts;

/// Below this share of whole stacks, in percent, the user is told what to do.
const ENOUGH: f64 = 99.0;

/// Whole stacks among all that there were.
#[derive(Debug)]
pub(super) struct Share {
    whole: u64,
    all: u64,
    /// Why most of the others are not: its name, how many, what to do.
    leading: Option<(&'static str, u64, &'static str)>,
}

impl Share {
    /// In percent; 100 when there were none.
    pub(super) fn percent(&self) -> f64 {
        match self.all {
            0 => 100.0,
            all => 100.0 * self.whole as f64 / all as f64,
        }
    }

    /// What leads and what to do about it, where that is worth a line.
    pub(super) fn advice(&self) -> Option<String> {
        let (name, count, advice) = self.leading?;
        (self.percent() < ENOUGH).then(|| {
            let share = 100.0 * count as f64 / self.all as f64;
            format!(
                "only {:.1} % of the Python stacks are whole; {share:.1} % are {name}: {advice}",
                self.percent()
            )
        })
    }
}

impl Tally {
    /// Of the stacks that were read and of those that are known to be lost.
    pub(super) fn share(&self, counts: &Counts, named: bool) -> Share {
        let broken = Outcome::ALL.into_iter().filter_map(|outcome| {
            let Shown::Marked(label) = shown(outcome) else {
                return None;
            };
            let name = label.trim_matches(['[', ']']);
            Some((
                name,
                self.outcomes[outcome as usize],
                outcomes::advice(outcome)?,
            ))
        });
        let losses = self.losses(counts, named);
        let lost = losses.iter().filter_map(
            |&Loss {
                 name,
                 count,
                 advice,
                 ..
             }| Some((name, count, advice?)),
        );
        let reasons: Vec<_> = broken.chain(lost).collect();
        let whole = self.outcomes[Outcome::Complete as usize];
        Share {
            whole,
            all: whole + reasons.iter().map(|&(_, count, _)| count).sum::<u64>(),
            leading: reasons.into_iter().max_by_key(|&(_, count, _)| count),
        }
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::Counter;

    use super::*;

    fn tally(outcomes: &[(Outcome, u64)]) -> Tally {
        let mut tally = Tally::default();
        for &(outcome, count) in outcomes {
            tally.outcomes[outcome as usize] = count;
        }
        tally
    }

    #[test]
    fn the_leading_reason_is_told_below_99_percent_only() {
        let most = [(Outcome::Complete, 990), (Outcome::TruncatedDepth, 10)];
        assert_eq!(tally(&most).share(&Counts::default(), true).advice(), None);
        let fewer = tally(&[
            (Outcome::Complete, 980),
            (Outcome::TruncatedDepth, 15),
            (Outcome::UnreadableFrame, 5),
            (Outcome::NoFrames, 5000),
        ]);
        let text = fewer.share(&Counts::default(), true).advice().unwrap();
        let start = "only 98.0 % of the Python stacks are whole; 1.5 % are truncated: deeper than \
                     1024 frames: only the innermost";
        assert!(text.starts_with(start), "{text}");
    }

    #[test]
    fn what_never_arrived_is_no_whole_stack_either() {
        let tally = tally(&[(Outcome::Complete, 50)]);
        let counts = Counts::of([(Counter::RingFull as u32, 50)]);
        let share = tally.share(&counts, true);
        assert_eq!(share.percent(), 50.0);
        assert!(share.advice().unwrap().contains("--buffer"));
    }

    #[test]
    fn what_ran_before_it_was_looked_at_is_no_whole_stack_either() {
        let mut tally = tally(&[(Outcome::Complete, 75)]);
        tally.not_looked = 25;
        let share = tally.share(&Counts::default(), false);
        assert_eq!(share.percent(), 75.0);
        assert!(share.advice().unwrap().contains("short scripts"));
        // Of named processes it is not known that they are of Python.
        assert_eq!(tally.share(&Counts::default(), true).percent(), 100.0);
    }

    #[test]
    fn nothing_at_all_needs_no_advice() {
        let share = Tally::default().share(&Counts::default(), true);
        assert_eq!((share.percent(), share.advice()), (100.0, None));
    }

    #[test]
    fn every_marked_stack_has_advice_and_its_key_begins_like_its_label() {
        for outcome in Outcome::ALL {
            let advice = outcomes::advice(outcome);
            match shown(outcome) {
                Shown::Marked(label) => {
                    assert!(advice.is_some(), "{label}");
                    let kind = label.trim_start_matches('[').split(':').next().unwrap();
                    assert!(outcomes::key(outcome).starts_with(kind), "{label}");
                }
                Shown::Whole | Shown::Not(_) => assert_eq!(advice, None),
            }
        }
    }
}
