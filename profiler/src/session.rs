//! The loop: records of the kernel in, a [`Profile`] out, until the time is up, the targets are
//! gone or the user has seen enough. It decides nothing about what is profiled or how it is shown.

use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use profiler_ebpf::Outcome;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::Child,
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep_until},
};

use crate::{
    bpf::Kernel,
    cli::Limit,
    cpython::threads,
    profile::{FrameId, Profile, ThreadId},
    sample::{self, Record, Stack},
    symbolize::Symbols,
    tally::Tally,
    target::{Pid, Targets},
};

/// How often the ring buffer is read when nothing in it is urgent.
const POLL: Duration = Duration::from_millis(20);
/// How often the sampling periods change and what has ended is forgotten.
const TICK: Duration = Duration::from_secs(1);

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its time was up.
    Time,
    /// SIGINT or SIGTERM.
    Signal,
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

/// SIGINT and SIGTERM, from the moment that this exists.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes the signals over from their default, which is to end the program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn catch() -> Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt()).context("cannot catch SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot catch SIGTERM")?,
        })
    }

    /// The next of either.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// One recording.
pub struct Session {
    pub kernel: Kernel,
    pub targets: Targets,
    pub profile: Profile,
    pub tally: Tally,
    gil_only: bool,
    /// By incarnation.
    symbols: FxHashMap<u32, Symbols>,
    /// By incarnation and thread id.
    threads: FxHashMap<(u32, u32), ThreadId>,
    /// Incarnations with threads that have come since Python's names were read.
    nameless: FxHashSet<u32>,
    /// Working memory of `take_sample`: a stack, newest frame first.
    frames: Vec<FrameId>,
    round: u32,
}

impl Session {
    /// A recording into `profile`; with `gil_only` samples that do not hold the GIL are left out.
    pub fn new(kernel: Kernel, profile: Profile, gil_only: bool) -> Session {
        Session {
            kernel,
            targets: Targets::default(),
            profile,
            tally: Tally::default(),
            gil_only,
            symbols: FxHashMap::default(),
            threads: FxHashMap::default(),
            nameless: FxHashSet::default(),
            frames: Vec::new(),
            round: 0,
        }
    }

    /// Samples until the end, calling `progress` several times a second. What the ring buffer
    /// still holds at the end is in the profile, too.
    ///
    /// # Errors
    /// When the kernel refuses something; processes that vanish are no error.
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
        let end = loop {
            tokio::select! {
                _ = signals.next() => break End::Signal,
                () = at(deadline) => break End::Time,
                () = ended(&mut watched) => break End::CommandEnded,
                guard = ready.readable() => {
                    guard.context("cannot wait for the ring buffer")?.clear_ready();
                    self.drain()?;
                }
                _ = poll.tick() => {
                    self.drain()?;
                    self.kernel.flush_log();
                    progress(self);
                }
                _ = tick.tick() => {
                    self.tick()?;
                    if let Watched::Pids(pids) = &mut watched {
                        pids.retain(|&pid| crate::target::exists(pid));
                        if pids.is_empty() {
                            break End::TargetsGone;
                        }
                    }
                }
            }
        };
        self.kernel.stop();
        self.drain()?;
        self.name_threads();
        self.tally.not_looked = self.targets.missed();
        self.profile.set_duration(started.elapsed());
        Ok(end)
    }

    fn tick(&mut self) -> Result<()> {
        self.round = self.round.wrapping_add(1);
        self.kernel.tune(self.round)?;
        self.name_threads();
        self.targets.tick(&mut self.kernel);
        let targets = &self.targets;
        self.symbols.retain(|&id, _| targets.get(id).is_some());
        self.threads.retain(|&(id, _), _| targets.get(id).is_some());
        for notice in self.targets.take_notices() {
            self.tally.notices.push(notice.0);
        }
        Ok(())
    }

    /// Gives new threads the names that Python has for them.
    fn name_threads(&mut self) {
        for id in self.nameless.drain() {
            let Some(target) = self.targets.get(id) else {
                continue;
            };
            for (tid, name) in threads::names(target.pid, &target.interpreter) {
                if let Some(&thread) = self.threads.get(&(id, tid)) {
                    self.profile.set_thread_name(thread, name);
                }
            }
        }
    }

    /// Reads what the ring buffer holds.
    fn drain(&mut self) -> Result<()> {
        let mut record = None;
        while self
            .kernel
            .next_record(&mut |bytes| record = sample::decode(bytes))
        {
            match record.take() {
                Some(Record::Sample(stack)) => self.take_sample(&stack),
                Some(Record::Process { event, pid, detail }) => {
                    self.targets
                        .take_event(&mut self.kernel, event, pid, detail)?;
                }
                None => self.tally.undecodable += 1,
            }
        }
        Ok(())
    }

    fn take_sample(&mut self, stack: &Stack) {
        let sample = &stack.sample;
        let Some(target) = self.targets.get(sample.target) else {
            self.tally.forgotten += 1;
            return;
        };
        self.tally.outcomes[stack.outcome as usize] += 1;
        let marker = match shown(stack.outcome) {
            Shown::Whole => None,
            Shown::Marked(label) => Some(self.profile.marker(label)),
            Shown::Not => return,
        };
        if self.gil_only && sample.gil == 0 {
            self.tally.without_gil += 1;
            return;
        }
        let symbols = self
            .symbols
            .entry(sample.target)
            .or_insert_with(|| Symbols::new(target.pid, &target.interpreter));
        self.frames.clear();
        for frame in &stack.frames {
            self.frames.extend(symbols.frame(&mut self.profile, frame));
        }
        self.frames.extend(marker);
        let id = self.profile.stack(self.frames.iter().rev().copied());
        let thread = match self.threads.get(&(sample.target, sample.tid)) {
            Some(&thread) => thread,
            None => {
                let process = self.process(sample.target);
                let thread = self
                    .profile
                    .add_thread(process, sample.tid, sample::comm(sample));
                self.threads.insert((sample.target, sample.tid), thread);
                self.nameless.insert(sample.target);
                thread
            }
        };
        self.profile.record(sample.time, thread, id, sample.weight);
    }

    /// The profile's process for an incarnation that has no thread there yet, or another one.
    fn process(&mut self, id: u32) -> crate::profile::ProcessId {
        let sibling = self.threads.iter().find(|((of, _), _)| *of == id);
        if let Some((_, &thread)) = sibling {
            return self.profile.thread(thread).process;
        }
        let (pid, command_line) = self
            .targets
            .get(id)
            .map(|target| (target.pid, target.command_line.clone()))
            .unwrap_or_default();
        self.profile.add_process(pid, command_line)
    }
}

/// How a sample with this outcome is shown.
enum Shown {
    Whole,
    /// Under a root frame that says what is wrong.
    Marked(&'static str),
    /// There is no Python stack to show; it is counted.
    Not,
}

fn shown(outcome: Outcome) -> Shown {
    match outcome {
        Outcome::Complete => Shown::Whole,
        Outcome::TruncatedDepth => Shown::Marked("[truncated: deeper than 1024 frames]"),
        Outcome::TruncatedFrame => Shown::Marked("[truncated: caller's frame unreadable]"),
        Outcome::TruncatedCode => Shown::Marked("[truncated: caller not linked yet]"),
        Outcome::TruncatedEntry => Shown::Marked("[truncated: generator not linked yet]"),
        Outcome::UnreadableThread => Shown::Marked("[unreadable: thread state]"),
        Outcome::UnreadableFrame => Shown::Marked("[unreadable: newest frame]"),
        Outcome::UnreadableCode => Shown::Marked("[unreadable: newest frame not set up yet]"),
        Outcome::NoThreadState | Outcome::NoInterpreter | Outcome::NoFrames => Shown::Not,
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
