//! Takes the profiles of one place there: a few at once, again when that failed, after a time that
//! doubles, or as long as the place says. While it fails they are in the spool, if there is one. Each
//! profile that comes in is sent, waits or is counted as dropped, and nothing else.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};

use super::{
    item::Item,
    places::{Place, Sent},
    queue::Queue,
    spool::Spool,
    state::{Reason, Shared},
};

/// How many are sent at once: enough for a hundred in an interval where each takes half a second.
const AT_ONCE: usize = 4;

/// How often one may fail while others succeed, before it counts as refused.
const STUBBORN: u32 = 8;

/// Times and bounds, which tests shorten.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// The first pause after a failure, and the longest; each is up to half longer or shorter.
    pub(super) pause: Duration,
    pub(super) pause_most: Duration,
    /// The longest that a place may ask for.
    pub(super) after_most: Duration,
    /// How long a place may take for one.
    pub(super) patience: Duration,
    /// When a spool that could not be written is tried again.
    pub(super) spool_again: Duration,
    /// Most bytes in memory.
    pub(super) memory: u64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            pause: Duration::from_secs(1),
            pause_most: Duration::from_secs(60),
            after_most: Duration::from_secs(600),
            patience: Duration::from_secs(10),
            spool_again: Duration::from_secs(30),
            memory: 8 << 20,
        }
    }
}

/// By when everything must be done, once the agent ends.
pub(super) type Ending = watch::Receiver<Option<Instant>>;

pub(super) struct Courier {
    place: Arc<Place>,
    queue: Arc<Queue>,
    shared: Shared,
    pace: Pace,
    spool: Option<Spool>,
    /// The spool's next try, after it could not be written.
    spool_again: Instant,
    /// On their way, with whether they are in the spool, too.
    held: BTreeMap<u64, (Item, bool)>,
    /// Failures in a row, and when the next try is.
    failures: u32,
    again: Instant,
    /// How often those that failed while others did not have done so.
    stubborn: BTreeMap<u64, u32>,
}

impl Courier {
    pub(super) fn new(
        place: Arc<Place>,
        queue: Arc<Queue>,
        shared: Shared,
        pace: Pace,
        spool: Option<Spool>,
    ) -> Courier {
        let now = Instant::now();
        if let Some(spool) = &spool {
            let (profiles, bytes) = spool.content();
            shared.wait(profiles, bytes);
        }
        Courier {
            place,
            queue,
            shared,
            pace,
            spool,
            spool_again: now,
            held: BTreeMap::new(),
            failures: 0,
            again: now,
            stubborn: BTreeMap::new(),
        }
    }

    /// Works until `ending` says by when to be done.
    pub(super) async fn run(mut self, mut ending: Ending) {
        let queue = self.queue.clone();
        let mut sends = JoinSet::new();
        let mut results = Vec::new();
        loop {
            self.spill().await;
            if sends.is_empty() && Instant::now() >= self.again {
                self.fill(true).await;
                self.send(&mut sends);
            }
            tokio::select! {
                Some(result) = sends.join_next() => {
                    results.extend(result);
                    if sends.is_empty() {
                        self.settle(std::mem::take(&mut results));
                    }
                }
                () = queue.changed.notified() => {}
                () = sleep_until(self.again), if sends.is_empty() && Instant::now() < self.again => {}
                // An agent that is gone without a word ends, too.
                _ = ending.wait_for(Option::is_some) => break,
            }
        }
        let by = ending.borrow().unwrap_or_else(Instant::now);
        self.finish(sends, results, by).await;
    }

    /// The last ones: sent, or spooled, or counted as dropped.
    async fn finish(
        mut self,
        mut sends: JoinSet<(u64, Sent)>,
        mut results: Vec<(u64, Sent)>,
        by: Instant,
    ) {
        loop {
            while let Ok(Some(result)) = tokio::time::timeout_at(by, sends.join_next()).await {
                results.extend(result);
            }
            self.settle(std::mem::take(&mut results));
            let late = Instant::now() >= by || self.failures > 0 && self.spool.is_some();
            if late || !sends.is_empty() {
                break;
            }
            // What is in the spool already is for the next start.
            self.fill(false).await;
            if self.held.is_empty() {
                break;
            }
            if Instant::now() < self.again {
                sleep_until(self.again.min(by)).await;
            }
            self.send(&mut sends);
        }
        sends.shutdown().await;
        for (number, (item, spooled)) in std::mem::take(&mut self.held) {
            match (&mut self.spool, spooled) {
                (Some(spool), true) => {
                    let gone = spool.give_back(number);
                    self.too_many(gone);
                }
                _ => self.queue.put_back(item),
            }
        }
        self.spool_again = Instant::now();
        self.failures = 1;
        self.spill().await;
        while let Some(item) = self.queue.pop() {
            let reason = match self.spool {
                Some(_) => Reason::SpoolFailed,
                None => Reason::Ended,
            };
            self.shared.lose(reason, item.size);
        }
    }

    /// Takes what is to be sent next, the oldest first.
    async fn fill(&mut self, spooled: bool) {
        while self.held.len() < AT_ONCE {
            let taken = match spooled {
                true => self.with_spool(Spool::take).await.flatten(),
                false => None,
            };
            match taken {
                Some(Ok(item)) => {
                    self.held.insert(item.number, (item, true));
                }
                Some(Err((size, error))) => {
                    self.shared.lose(Reason::SpoolBroken, size);
                    self.shared
                        .change(|state| state.spool_error = Some(format!("{error:#}")));
                }
                None => match self.queue.pop() {
                    Some(item) => {
                        self.held.insert(item.number, (item, false));
                    }
                    None => return,
                },
            }
        }
    }

    fn send(&self, sends: &mut JoinSet<(u64, Sent)>) {
        for (item, _) in self.held.values() {
            let (place, item, patience) = (self.place.clone(), item.clone(), self.pace.patience);
            sends.spawn(async move {
                let sent = timeout(patience, place.send(&item)).await;
                let sent = sent.unwrap_or_else(|_| Sent::Later {
                    why: format!("no answer within {}", humantime::format_duration(patience)),
                    after: None,
                });
                (item.number, sent)
            });
        }
    }

    /// What became of those that were sent at once.
    fn settle(&mut self, results: Vec<(u64, Sent)>) {
        let some_taken = results.iter().any(|(_, sent)| matches!(sent, Sent::Taken));
        let mut pause = None;
        for (number, sent) in results {
            let Some((item, spooled)) = self.held.remove(&number) else {
                continue;
            };
            let size = item.size;
            let (why, refused) = match sent {
                Sent::Taken => {
                    self.shared.sent(size);
                    self.forget(number, spooled);
                    continue;
                }
                Sent::Refused(why) => (why, true),
                Sent::Later { why, after } => {
                    pause = pause.max(Some(after.unwrap_or_default()));
                    let mut times = 0;
                    if some_taken && after.is_none() {
                        let before = self.stubborn.entry(number).or_default();
                        *before += 1;
                        times = *before;
                    }
                    (why, times >= STUBBORN)
                }
            };
            self.shared.change(|state| {
                state.failed += 1;
                state.retried += u64::from(!refused);
            });
            self.shared.set_error(Some(why));
            if refused {
                self.shared.lose(Reason::Refused, size);
                self.forget(number, spooled);
            } else if let (Some(spool), true) = (&mut self.spool, spooled) {
                let gone = spool.give_back(number);
                self.too_many(gone);
            } else {
                self.queue.put_back(item);
            }
        }
        match pause {
            Some(after) => {
                self.failures = if some_taken { 1 } else { self.failures + 1 };
                let after = after.min(self.pace.after_most).max(self.pause());
                self.again = Instant::now() + after;
            }
            None if some_taken => {
                self.failures = 0;
                self.stubborn.clear();
                self.shared.set_error(None);
            }
            None => {}
        }
    }

    fn forget(&mut self, number: u64, spooled: bool) {
        self.stubborn.remove(&number);
        if let (Some(spool), true) = (&mut self.spool, spooled) {
            // One unlink: not worth a thread.
            spool.remove(number);
        }
    }

    /// How long to wait after so many failures in a row.
    fn pause(&self) -> Duration {
        let doubled =
            self.pace.pause * 2_u32.saturating_pow(self.failures.saturating_sub(1).min(16));
        // Agents whose store comes back must not all be there at the same moment.
        let random = RandomState::new().hash_one(0) % 1000;
        doubled
            .min(self.pace.pause_most)
            .mul_f64(0.5 + random as f64 / 1000.0)
    }

    /// From memory to the spool: everything while the place fails, else what is too much for memory.
    async fn spill(&mut self) {
        let limit = match self.failures {
            0 => self.pace.memory / 2,
            _ => 0,
        };
        if self.spool.is_none() || self.queue.bytes() <= limit || Instant::now() < self.spool_again
        {
            return;
        }
        let mut items = Vec::new();
        while self.queue.bytes() > limit
            && let Some(item) = self.queue.pop()
        {
            items.push(item);
        }
        let add = move |spool: &mut Spool| {
            let mut gone = Vec::new();
            let mut left = items.into_iter();
            while let Some(item) = left.next() {
                let (went, written) = spool.add(&item);
                gone.extend(went);
                if let Err(error) = written {
                    return (
                        gone,
                        Some((error, [item].into_iter().chain(left).collect())),
                    );
                }
            }
            (gone, None::<(_, Vec<Item>)>)
        };
        let Some((gone, failed)) = self.with_spool(add).await else {
            return;
        };
        self.too_many(gone);
        let (full, error) = match failed {
            Some((error, left)) => {
                self.spool_again = Instant::now() + self.pace.spool_again;
                self.queue.set_full(Reason::SpoolFailed);
                for item in left {
                    self.queue.put_back(item);
                }
                (
                    Reason::SpoolFailed,
                    Some(format!("cannot write to the spool: {error}")),
                )
            }
            None => (Reason::MemoryFull, None),
        };
        self.queue.set_full(full);
        self.shared.set_spool_error(error);
    }

    /// Counts those for which the spool has no room.
    fn too_many(&self, gone: Vec<u64>) {
        for size in gone {
            self.shared.lose(Reason::SpoolFull, size);
        }
    }

    /// Does something with the spool, where waiting for a disk keeps nobody.
    async fn with_spool<T: Send + 'static>(
        &mut self,
        act: impl FnOnce(&mut Spool) -> T + Send + 'static,
    ) -> Option<T> {
        let mut spool = self.spool.take()?;
        let acted = spawn_blocking(move || {
            let result = act(&mut spool);
            (spool, result)
        });
        let (spool, result) = acted.await.ok()?;
        self.spool = Some(spool);
        Some(result)
    }
}
