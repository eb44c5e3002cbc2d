//! The containers that are known and those that were asked for, by id, both bounded: what was neither
//! listed nor asked about for longest goes first. Knows nothing of who answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

use super::{Container, Known};

/// Most containers: those that are gone from the runtime stay known until others need the place.
const KNOWN_MAX: usize = 4096;
/// Most bytes of them.
const BYTES_MAX: usize = 16 << 20;
/// Most ids that are asked for at once. Anyone may make control groups whose names look like ids.
const ASKED_MAX: usize = 1024;
/// An id has 64 digits; what is longer is none.
const ID_MAX: usize = 128;
/// For how long an id is asked for when nobody answers.
const UNANSWERED: Duration = Duration::from_secs(120);
/// After how long an id that nobody knew is asked for again, each time twice that.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = UNANSWERED;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct Table {
    known: FxHashMap<String, Entry>,
    asked: FxHashMap<String, Question>,
    /// How many bytes the known ones take.
    bytes: usize,
    /// Counts uses: the older, the smaller.
    clock: u64,
    /// For how long an id is asked for that answers have not.
    patience: Duration,
    /// Why nobody can be asked.
    nobody: Option<Arc<str>>,
    /// Who does not know what is not known, for reasons.
    source: String,
}

#[derive(Debug)]
struct Entry {
    container: Arc<Container>,
    used: u64,
    size: usize,
}

/// An id that was asked for.
#[derive(Debug)]
struct Question {
    since: Instant,
    /// When it is asked for again.
    due: Instant,
    wait: Duration,
    /// Whether an answer did not have it.
    answered: bool,
    used: u64,
}

impl Default for Table {
    fn default() -> Table {
        Table {
            known: FxHashMap::default(),
            asked: FxHashMap::default(),
            bytes: 0,
            clock: 0,
            patience: UNANSWERED,
            nobody: None,
            source: String::new(),
        }
    }
}

impl Table {
    /// What is known of this container, and whether it is asked for only now.
    pub(super) fn of(&mut self, id: &str, now: Instant) -> (Known, bool) {
        self.clock += 1;
        if let Some(entry) = self.known.get_mut(id) {
            entry.used = self.clock;
            return (Known::Is(Arc::clone(&entry.container)), false);
        }
        if let Some(reason) = &self.nobody {
            return (Known::Never(Arc::clone(reason)), false);
        }
        if id.len() > ID_MAX {
            return (Known::Never("it is no container's id".into()), false);
        }
        if let Some(question) = self.asked.get_mut(id) {
            question.used = self.clock;
            let age = now.saturating_duration_since(question.since);
            let known = if question.answered && age >= self.patience {
                Known::Never(format!("{} does not know it", self.source).into())
            } else if age >= UNANSWERED {
                let seconds = UNANSWERED.as_secs();
                Known::Never(format!("{} gave no answer for {seconds} s", self.source).into())
            } else {
                Known::NotYet
            };
            return (known, false);
        }
        if self.asked.len() >= ASKED_MAX {
            let mut used: Vec<u64> = self.asked.values().map(|asked| asked.used).collect();
            let oldest = nth_smallest(&mut used, ASKED_MAX / 4);
            self.asked.retain(|_, asked| asked.used > oldest);
        }
        let question = Question {
            since: now,
            due: now,
            wait: AGAIN,
            answered: false,
            used: self.clock,
        };
        self.asked.insert(id.to_owned(), question);
        (Known::NotYet, true)
    }

    /// Who is asked from now on, and how long ids are asked for that it does not know.
    pub(super) fn asks(&mut self, source: String, patience: Duration) {
        self.nobody = None;
        self.source = source;
        self.patience = patience;
    }

    /// That nobody can be asked, and why.
    pub(super) fn asks_nobody(&mut self, reason: &str) {
        self.nobody = Some(reason.into());
        self.asked.clear();
    }

    /// Takes in what is known of these.
    pub(super) fn learn(&mut self, containers: Vec<Container>) {
        for container in containers {
            self.clock += 1;
            self.asked.remove(&container.id);
            let old = self.known.get_mut(&container.id);
            if let Some(entry) = old {
                entry.used = self.clock;
                if *entry.container != container {
                    self.bytes -= entry.size;
                    entry.size = container.size();
                    self.bytes += entry.size;
                    entry.container = Arc::new(container);
                }
                continue;
            }
            let size = container.size();
            self.bytes += size;
            let entry = Entry {
                container: Arc::new(container),
                used: self.clock,
                size,
            };
            self.known.insert(entry.container.id.clone(), entry);
            if self.known.len() > KNOWN_MAX || self.bytes > BYTES_MAX {
                self.forget();
            }
        }
    }

    /// Forgets a quarter, so that it is seldom looked for the oldest.
    fn forget(&mut self) {
        let mut used: Vec<u64> = self.known.values().map(|entry| entry.used).collect();
        let count = used.len() / 4;
        let oldest = nth_smallest(&mut used, count);
        self.known.retain(|_, entry| entry.used > oldest);
        self.bytes = self.known.values().map(|entry| entry.size).sum();
    }

    /// Notes that everything that is known was told at `asked` or later, so that what is still asked
    /// for is not.
    pub(super) fn answered(&mut self, asked: Instant) {
        for question in self.asked.values_mut() {
            if question.since <= asked {
                question.answered = true;
                question.due = asked + question.wait;
                question.wait = (question.wait * 2).min(AGAIN_MAX);
            }
        }
    }

    /// When to ask next for what is not known, unless that has been asked for long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        let patience = self.patience;
        let waiting = self.asked.values();
        let waiting = waiting.filter(|question| question.due < question.since + patience);
        waiting.map(|question| question.due).min()
    }

    /// How many are known.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// The container itself, for tests of who answers.
    #[cfg(test)]
    pub(super) fn get(&self, id: &str) -> Option<&Container> {
        Some(&*self.known.get(id)?.container)
    }
}

/// The number that `count` of these, which are all different, are at most.
fn nth_smallest(numbers: &mut [u64], count: usize) -> u64 {
    *numbers.select_nth_unstable(count.saturating_sub(1)).1
}

#[cfg(test)]
mod tests;
