//! A sample into the profile: whose it is, what its frames are called, how it is counted.

use std::time::Instant;

use profiler_ebpf::{Outcome, Sample};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    cpython::threads,
    profile::{FrameId, Process, ProcessId, Profile, StackId, ThreadId},
    sample::{self, Captured, Frames},
    symbolize::{Naming, Symbols},
    tally::{Shown, Tally, shown},
    target::{Incarnation, Targets},
};

/// Most threads that a profile tells apart; those of a process that come later are one.
const THREADS_MAX: usize = 1 << 16;

/// Most samples that wait for names.
const WAITING_MAX: usize = 4096;

/// Where samples go, named.
pub trait Sink {
    /// Takes a sample of `process`, whose thread and stack are those of `profile`.
    fn take(&mut self, profile: &mut Profile, process: &Incarnation, seen: Seen);
}

/// A sample that is to be shown.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The incarnation that it is of.
    pub incarnation: u32,
    pub thread: ThreadId,
    pub stack: StackId,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Nanoseconds that it stands for.
    pub weight: u64,
    /// Whether nothing of its stack is missing.
    pub complete: bool,
}

/// Counts each sample in the profile itself.
#[derive(Debug, Default)]
pub struct Whole;

impl Sink for Whole {
    fn take(&mut self, profile: &mut Profile, _: &Incarnation, seen: Seen) {
        profile.record(seen.time, seen.thread, seen.stack, seen.weight);
    }
}

/// A profile in the making.
pub struct Recorder<S = Whole> {
    /// Names and stacks; and samples, unless they go elsewhere.
    pub profile: Profile,
    pub tally: Tally,
    pub symbols: Symbols,
    pub sink: S,
    /// Whether samples that do not hold the GIL are left out.
    gil_only: bool,
    /// By incarnation.
    processes: FxHashMap<u32, ProcessId>,
    /// By incarnation and thread id.
    threads: FxHashMap<(u32, u32), ThreadId>,
    threads_made: usize,
    /// Incarnations with threads that have come since Python's names were read.
    nameless: FxHashSet<u32>,
    /// Samples with frames that have no name, yet.
    waiting: Vec<(Sample, Outcome)>,
    /// Working memory: a stack, newest frame first.
    frames: Vec<FrameId>,
}

impl<S: Sink> Recorder<S> {
    /// Records into `sink`, with the names in `profile`; with `gil_only` samples that do not hold the GIL
    /// are left out.
    pub fn new(profile: Profile, gil_only: bool, sink: S) -> Recorder<S> {
        Recorder {
            profile,
            tally: Tally::default(),
            symbols: Symbols::default(),
            sink,
            gil_only,
            processes: FxHashMap::default(),
            threads: FxHashMap::default(),
            threads_made: 0,
            nameless: FxHashSet::default(),
            waiting: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// Takes in the frames of samples that are to come.
    pub fn take_stack(&mut self, targets: &Targets, id: u32, hash: u64, frames: Frames) {
        // Of a process that is forgotten samples are not shown either: they are counted.
        if let Some(target) = targets.get(id) {
            let process = (target.pid, &*target.interpreter);
            self.symbols.take_stack(id, process, hash, frames);
            if let Some(modules) = targets.modules(id) {
                self.symbols.take_modules(id, modules);
            }
        }
    }

    /// Takes in what the kernel copied of a code object.
    pub fn take_code(&mut self, targets: &Targets, code: Captured) {
        if let Some(target) = targets.get(code.target) {
            let process = (target.pid, &*target.interpreter);
            self.symbols.take_code(process, code);
        }
    }

    /// Takes one sample of one of `targets`. If it has frames without a name it waits for the end of
    /// the ring buffer.
    pub fn take(&mut self, targets: &Targets, sample: &Sample, outcome: Outcome) {
        let wait = self.waiting.len() < WAITING_MAX;
        self.take_or_wait(targets, sample, outcome, wait);
    }

    /// The ring buffer has been read to its end, which began at `start`.
    pub fn drained(&mut self, targets: &Targets, start: Instant) {
        self.take_waiting(targets);
        self.symbols.drained(start);
        self.symbols.listen();
    }

    /// Takes the samples that wait for names as they are.
    pub fn take_waiting(&mut self, targets: &Targets) {
        let mut waiting = std::mem::take(&mut self.waiting);
        for (sample, outcome) in waiting.drain(..) {
            self.take_or_wait(targets, &sample, outcome, false);
        }
        self.waiting = waiting;
    }

    fn take_or_wait(&mut self, targets: &Targets, sample: &Sample, outcome: Outcome, wait: bool) {
        let Some(target) = targets.get(sample.target) else {
            self.tally.forgotten += 1;
            return;
        };
        self.frames.clear();
        let process = (target.pid, &*target.interpreter);
        let naming = match sample.stack {
            0 => Naming::Named,
            hash => self.symbols.name(
                sample.target,
                process,
                &mut self.profile,
                hash,
                wait,
                &mut self.frames,
            ),
        };
        match naming {
            Naming::Named => self.tally.with_stack += u64::from(sample.stack != 0),
            Naming::Wait => return self.waiting.push((*sample, outcome)),
            Naming::NoStack => {
                self.tally.without_stack += 1;
                return;
            }
        }
        self.tally.outcomes[outcome as usize] += 1;
        let marker = match shown(outcome) {
            Shown::Whole => None,
            Shown::Marked(label) => Some(self.profile.marker(label)),
            Shown::Not(_) => return,
        };
        if self.gil_only && sample.gil == 0 {
            self.tally.without_gil += 1;
            return;
        }
        self.frames.extend(marker);
        let id = self.profile.stack(self.frames.iter().rev().copied());
        let comm = || sample::comm(sample);
        let thread = self.thread(target, sample.target, sample.tid, comm);
        let seen = Seen {
            incarnation: sample.target,
            thread,
            stack: id,
            time: sample.time,
            weight: sample.weight.into(),
            complete: marker.is_none(),
        };
        self.sink.take(&mut self.profile, target, seen);
    }

    /// Begins with an empty profile, if this one has used up half of its memory, or an eighth of its
    /// threads, with what is known of their processes. The sink is told before:
    /// ids that it keeps mean something else afterwards.
    pub fn renew(&mut self, tell: impl FnOnce(&mut S, &Profile, &Symbols)) {
        let full = self.profile.is_half_full()
            || self.threads_made > THREADS_MAX / 8
            || self.symbols.is_half_full();
        if full {
            tell(&mut self.sink, &self.profile, &self.symbols);
            let new = self.profile.renewed();
            let old = std::mem::replace(&mut self.profile, new);
            self.symbols.renew(&old, &mut self.profile);
            self.processes.clear();
            self.threads.clear();
            self.threads_made = 0;
        }
    }

    /// Puts the names of native code that were found by now into the profile, at its end.
    pub fn name_natives(&mut self) {
        self.symbols.put_names_in(&mut self.profile);
    }

    /// Gives new threads the names that Python has for them.
    pub fn name_threads(&mut self, targets: &Targets) {
        for id in self.nameless.drain() {
            let Some(target) = targets.get(id) else {
                continue;
            };
            for (tid, name) in threads::names(target.pid, &target.interpreter) {
                if let Some(&thread) = self.threads.get(&(id, tid)) {
                    self.profile.set_thread_name(thread, name);
                }
            }
        }
    }

    /// Forgets what was known of processes that `targets` has forgotten.
    pub fn forget(&mut self, targets: &Targets) {
        let known = |id| targets.get(id).is_some();
        self.symbols.retain(known);
        self.processes.retain(|&id, _| known(id));
        self.threads.retain(|&(id, _), _| known(id));
    }

    fn thread(
        &mut self,
        target: &Incarnation,
        id: u32,
        tid: u32,
        comm: impl FnOnce() -> String,
    ) -> ThreadId {
        if let Some(&thread) = self.threads.get(&(id, tid)) {
            return thread;
        }
        let full = self.threads_made >= THREADS_MAX;
        let (tid, comm) = if full {
            (0, "other threads".to_owned())
        } else {
            (tid, comm())
        };
        if let Some(&thread) = self.threads.get(&(id, tid)) {
            return thread;
        }
        let profile = &mut self.profile;
        let process = *self
            .processes
            .entry(id)
            .or_insert_with(|| profile.add_process(process(target)));
        let thread = profile.add_thread(process, tid, comm);
        self.threads_made += 1;
        self.threads.insert((id, tid), thread);
        self.nameless.insert(id);
        thread
    }
}

fn process(target: &Incarnation) -> Process {
    let about = &*target.about;
    Process {
        pid: target.pid,
        command_line: about.command_line.clone(),
        cgroup: about.cgroup.clone(),
        container: about.container.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use bytemuck::Zeroable as _;
    use profiler_ebpf::Frame;

    use super::*;
    use crate::{
        cpython::Interpreter,
        profile::{Meta, Shape},
    };

    #[test]
    fn a_sample_whose_stack_is_nowhere_is_counted_and_not_shown() {
        let targets = Targets::of_one(5, std::process::id(), Interpreter::of_test());
        let meta = Meta {
            started: SystemTime::UNIX_EPOCH,
            rate: 99,
            command: String::new(),
            duration: Duration::ZERO,
        };
        let mut recorder = Recorder::new(Profile::new(meta, Shape::default(), false), false, Whole);
        let frames = || Frames::from(&[Frame::default()][..]);
        recorder.take_stack(&targets, 5, 77, frames());
        // That of a target that nobody knows is nobody's.
        recorder.take_stack(&targets, 6, 78, frames());
        let mut sample = Sample::zeroed();
        for (target, stack) in [(5, 77), (5, 78), (6, 78), (5, 0)] {
            (sample.target, sample.stack) = (target, stack);
            recorder.take(&targets, &sample, Outcome::Complete);
        }
        assert_eq!(recorder.profile.total().samples, 1);
        // The frame has no name, which may yet come.
        recorder.take_waiting(&targets);
        let Recorder { tally, profile, .. } = &recorder;
        assert_eq!((tally.without_stack, tally.forgotten), (1, 1));
        assert_eq!(tally.outcomes.iter().sum::<u64>(), 2);
        assert_eq!(profile.total().samples, 2);
    }
}
