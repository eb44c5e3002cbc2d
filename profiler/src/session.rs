//! The loop: records of the kernel in, a profile out, until the time is up, the targets are gone or
//! the user has seen enough. It decides nothing about what is profiled or how it is shown.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use profiler_ebpf::NativeEnd;
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::Child,
    time::{MissedTickBehavior, interval, sleep, sleep_until},
};

use crate::{
    bpf::{Kernel, Mapping},
    cli::Limit,
    recorder::{Recorder, Sink, Whole},
    sample::{self, Record},
    signals::{Asked, Signals},
    target::{Pid, Targets},
};

/// How often the ring buffer is read when nobody says that there is something in it.
const POLL: Duration = Duration::from_millis(20);
/// The same while a program may be mapping its interpreter.
const POLL_SOON: Duration = Duration::from_millis(5);
/// How often the sampling periods change and what has ended is forgotten.
const TICK: Duration = Duration::from_secs(1);
/// For how long records are read before the loop looks at its clock and its signals again.
const DRAIN_MAX: Duration = Duration::from_millis(50);

/// For how long what is still in the ring buffer is read at the end.
const LAST_DRAIN_MAX: Duration = Duration::from_secs(2);

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

impl End {
    /// What programs call it. Names stay.
    pub fn name(self) -> &'static str {
        match self {
            End::Time => "time",
            End::Signal(Asked::Interrupt) => "interrupted",
            End::Signal(Asked::Terminate) => "terminated",
            End::TargetsGone => "targets_gone",
            End::CommandEnded => "command_ended",
        }
    }
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
pub struct Session<S = Whole> {
    pub kernel: Kernel,
    pub targets: Targets,
    pub recorder: Recorder<S>,
    /// Working memory: mappings that were read.
    mappings: Vec<Mapping>,
}

impl<S: Sink> Session<S> {
    /// A recording by `recorder`.
    pub fn new(kernel: Kernel, recorder: Recorder<S>) -> Session<S> {
        Session {
            kernel,
            targets: Targets::default(),
            recorder,
            mappings: Vec::new(),
        }
    }

    /// Samples until the end, calling `each_poll` many times a second. What the ring buffer still holds
    /// at the end is in the profile, too.
    ///
    /// # Errors
    /// When sampling can't begin; processes and CPUs that vanish later are no error.
    pub async fn run(
        &mut self,
        limit: Limit,
        mut watched: Watched<'_>,
        signals: &mut Signals,
        mut each_poll: impl FnMut(&mut Session<S>),
    ) -> Result<End> {
        self.follow_epoch();
        self.kernel.start()?;
        let started = Instant::now();
        let records = readable(self.kernel.records_fd()?).context(RECORDS)?;
        let mappings = readable(self.kernel.mappings_fd()?).context(MAPPINGS)?;
        let deadline = match limit {
            Limit::For(duration) => started.checked_add(duration),
            Limit::Unlimited => None,
        };
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut more = false;
        let mut polled = started;
        let end = loop {
            let poll = if self.targets.is_expecting() {
                POLL_SOON
            } else {
                POLL
            };
            tokio::select! {
                biased;
                asked = signals.next() => break End::Signal(asked),
                () = at(deadline) => break End::Time,
                () = ended(&mut watched) => break End::CommandEnded,
                _ = tick.tick() => {
                    self.tick();
                    if let Watched::Pids(pids) = &mut watched {
                        pids.retain(|&pid| self.targets.follows(pid));
                        if pids.is_empty() {
                            break End::TargetsGone;
                        }
                    }
                }
                guard = records.readable() => {
                    guard.context(RECORDS)?.clear_ready();
                    more = self.drain();
                }
                guard = mappings.readable() => {
                    guard.context(MAPPINGS)?.clear_ready();
                    more = self.drain();
                }
                () = sleep_until((polled + poll).into()) => {
                    polled = Instant::now();
                    more = self.drain();
                    self.kernel.flush_log();
                    each_poll(self);
                }
                () = tokio::task::yield_now(), if more => more = self.drain(),
            }
        };
        let sampled = started.elapsed();
        self.kernel.stop();
        self.drain_last(signals).await;
        self.recorder.take_waiting(&self.targets);
        self.recorder.name_threads(&self.targets);
        self.targets.notice_standstills();
        self.take_notices();
        self.recorder.tally.not_looked = self.targets.missed();
        self.recorder.tally.events_lost = self.targets.events_lost();
        self.recorder.tally.native_asked = self.kernel.walks_native();
        self.recorder.tally.without_tables = self.targets.without_tables();
        self.recorder.profile.set_duration(sampled);
        self.recorder.symbols.ask_again();
        self.wait_for_names(signals).await;
        self.recorder.name_natives();
        Ok(end)
    }

    /// Waits for the names of native code, unless the user does not want to: then what has none by
    /// now is shown by its place alone.
    async fn wait_for_names(&mut self, signals: &mut Signals) {
        while self.recorder.symbols.listen() > 0 {
            tokio::select! {
                biased;
                _ = signals.next() => break,
                () = sleep(POLL) => {}
            }
        }
    }

    /// Reads what is left, unless that takes too long or the user does not want to wait: then what
    /// is left is counted.
    async fn drain_last(&mut self, signals: &mut Signals) {
        let until = Instant::now() + LAST_DRAIN_MAX;
        while self.drain() {
            tokio::select! {
                biased;
                _ = signals.next() => break,
                () = tokio::task::yield_now() => {}
            }
            if Instant::now() >= until {
                break;
            }
        }
        let unread = &mut self.recorder.tally.unread;
        while self.kernel.next_record(&mut |bytes| {
            *unread += u64::from(sample::is_sample(bytes));
        }) {}
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

    /// Reads what the kernel has told, and looks at what that makes worth a look, for a moment; true
    /// when there may be more.
    fn drain(&mut self) -> bool {
        let start = Instant::now();
        let until = start + DRAIN_MAX;
        let mut record = None;
        while self
            .kernel
            .next_record(&mut |bytes| record = sample::decode(bytes))
        {
            match record.take() {
                Some(Record::Sample { sample, outcome }) => {
                    self.targets
                        .sampled(&mut self.kernel, sample.target, outcome);
                    self.recorder.take(&self.targets, &sample, outcome);
                }
                Some(Record::Stack {
                    target,
                    hash,
                    frames,
                }) => {
                    if frames.native_end == NativeEnd::NotLoaded {
                        self.targets.load_native(&mut self.kernel, target);
                    }
                    self.recorder
                        .take_stack(&self.targets, target, hash, frames);
                }
                Some(Record::Code(code)) => self.recorder.take_code(&self.targets, code),
                Some(Record::Process(event, process)) => {
                    self.targets.take_event(&mut self.kernel, event, &process);
                }
                None => self.recorder.tally.undecodable += 1,
            }
            self.follow_epoch();
            if Instant::now() >= until {
                return true;
            }
        }
        self.recorder.drained(&self.targets, start);
        // After the records: an exec is known before what the new program maps.
        self.kernel.read_mappings(&mut self.mappings);
        self.targets.take_mappings(self.mappings.drain(..));
        self.targets.look_around(&mut self.kernel)
    }

    /// Tells the kernel when stacks are forgotten.
    fn follow_epoch(&mut self) {
        if let Some(epoch) = self.recorder.symbols.new_epoch()
            && let Err(error) = self.kernel.set_epoch(epoch)
        {
            self.recorder.tally.notice(format!("{error:#}"));
        }
    }
}

const RECORDS: &str = "cannot wait for the ring buffer";
const MAPPINGS: &str = "cannot wait for new mappings";

fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is ours and is neither closed nor replaced before what owns it is gone.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
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
