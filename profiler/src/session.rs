//! The loop: records of the kernel in, a profile out, until the time is up, the targets are gone or
//! the user has seen enough. It decides nothing about what is profiled or how it is shown.

use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::Child,
    time::{MissedTickBehavior, interval, sleep_until},
};

use crate::{
    bpf::Kernel,
    cli::Limit,
    recorder::Recorder,
    sample::{self, Record},
    signals::{Asked, Signals},
    target::{Pid, Targets, exists},
};

/// How often the ring buffer is read when nobody says that there is something in it.
const POLL: Duration = Duration::from_millis(20);
/// How often the sampling periods change and what has ended is forgotten.
const TICK: Duration = Duration::from_secs(1);
/// For how long records are read before the loop looks at its clock and its signals again.
const DRAIN_MAX: Duration = Duration::from_millis(50);

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its time was up.
    Time,
    /// The user asked.
    Signal(Asked),
    /// Every process that the user named has ended.
    TargetsGone,
    /// The command that pyebpf started has ended.
    CommandEnded,
}

/// Which processes a recording is about, for its end.
#[derive(Debug)]
pub enum Watched<'a> {
    /// All Python: it ends by time or signal alone.
    Everything,
    /// It ends with the last of these.
    Pids(Vec<Pid>),
    /// It ends with this program.
    Command(&'a mut Child),
}

/// One recording.
pub struct Session {
    pub kernel: Kernel,
    pub targets: Targets,
    pub recorder: Recorder,
}

impl Session {
    /// A recording by `recorder`.
    pub fn new(kernel: Kernel, recorder: Recorder) -> Session {
        Session {
            kernel,
            targets: Targets::default(),
            recorder,
        }
    }

    /// Samples until the end, calling `progress` several times a second. What the ring buffer
    /// still holds at the end is in the profile, too.
    ///
    /// # Errors
    /// When sampling can't begin; processes and CPUs that vanish later are no error.
    pub async fn run(
        &mut self,
        limit: Limit,
        mut watched: Watched<'_>,
        signals: &mut Signals,
        mut progress: impl FnMut(&Session),
    ) -> Result<End> {
        self.kernel.start()?;
        let started = Instant::now();
        // SAFETY: the descriptor is ours and is neither closed nor replaced before `ready` is gone.
        let ready = unsafe {
            AsyncFd::register_with_interest(self.kernel.records_fd()?, Interest::READABLE)
        }
        .context("cannot wait for the ring buffer")?;
        let deadline = match limit {
            Limit::For(duration) => started.checked_add(duration),
            Limit::Unlimited => None,
        };
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut more = false;
        let end = loop {
            tokio::select! {
                biased;
                asked = signals.next() => break End::Signal(asked),
                () = at(deadline) => break End::Time,
                () = ended(&mut watched) => break End::CommandEnded,
                _ = tick.tick() => {
                    self.tick();
                    if let Watched::Pids(pids) = &mut watched {
                        pids.retain(|&pid| exists(pid));
                        if pids.is_empty() {
                            break End::TargetsGone;
                        }
                    }
                }
                _ = poll.tick() => {
                    more = self.drain(Some(DRAIN_MAX));
                    self.kernel.flush_log();
                    progress(self);
                }
                guard = ready.readable() => {
                    guard.context("cannot wait for the ring buffer")?.clear_ready();
                    more = self.drain(Some(DRAIN_MAX));
                }
                () = tokio::task::yield_now(), if more => more = self.drain(Some(DRAIN_MAX)),
            }
        };
        self.kernel.stop();
        self.drain(None);
        self.recorder.name_threads(&self.targets);
        self.take_notices();
        self.recorder.tally.not_looked = self.targets.missed();
        self.recorder.profile.set_duration(started.elapsed());
        Ok(end)
    }

    fn tick(&mut self) {
        if let Err(error) = self.kernel.tick() {
            self.recorder.tally.notice(format!("{error:#}"));
        }
        self.recorder.name_threads(&self.targets);
        self.targets.tick(&mut self.kernel);
        self.recorder.forget(&self.targets);
        self.take_notices();
    }

    fn take_notices(&mut self) {
        for notice in self.targets.take_notices() {
            self.recorder.tally.notice(notice);
        }
    }

    /// Reads what the ring buffer holds, for at most `time`; true when there may be more.
    fn drain(&mut self, time: Option<Duration>) -> bool {
        let until = time.map(|time| Instant::now() + time);
        let mut record = None;
        while self
            .kernel
            .next_record(&mut |bytes| record = sample::decode(bytes))
        {
            match record.take() {
                Some(Record::Sample(stack)) => self.recorder.take(&self.targets, &stack),
                Some(Record::Process { event, pid, detail }) => {
                    self.targets
                        .take_event(&mut self.kernel, event, pid, detail);
                }
                None => self.recorder.tally.undecodable += 1,
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return true;
            }
        }
        false
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn ended(watched: &mut Watched<'_>) {
    if let Watched::Command(child) = watched {
        // An error means that it was waited for before: it has ended.
        let _: io::Result<_> = child.wait().await;
    } else {
        std::future::pending().await
    }
}
