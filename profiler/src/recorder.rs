//! A sample into the profile: whose it is, what its frames are called, how it is counted.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    cpython::threads,
    profile::{FrameId, ProcessId, Profile, ThreadId},
    sample::{self, Stack},
    symbolize::Symbols,
    tally::{Shown, Tally, shown},
    target::{Incarnation, Targets},
};

/// Most threads that a profile tells apart; those of a process that come later are one.
const THREADS_MAX: usize = 1 << 16;

/// A profile in the making.
pub struct Recorder {
    pub profile: Profile,
    pub tally: Tally,
    pub symbols: Symbols,
    /// Whether samples that do not hold the GIL are left out.
    gil_only: bool,
    /// By incarnation.
    processes: FxHashMap<u32, ProcessId>,
    /// By incarnation and thread id.
    threads: FxHashMap<(u32, u32), ThreadId>,
    threads_made: usize,
    /// Incarnations with threads that have come since Python's names were read.
    nameless: FxHashSet<u32>,
    /// Working memory: a stack, newest frame first.
    frames: Vec<FrameId>,
}

impl Recorder {
    /// Records into `profile`; with `gil_only` samples that do not hold the GIL are left out.
    pub fn new(profile: Profile, gil_only: bool) -> Recorder {
        Recorder {
            profile,
            tally: Tally::default(),
            symbols: Symbols::default(),
            gil_only,
            processes: FxHashMap::default(),
            threads: FxHashMap::default(),
            threads_made: 0,
            nameless: FxHashSet::default(),
            frames: Vec::new(),
        }
    }

    /// Takes one sample of one of `targets`.
    pub fn take(&mut self, targets: &Targets, stack: &Stack) {
        let sample = &stack.sample;
        let Some(target) = targets.get(sample.target) else {
            self.tally.forgotten += 1;
            return;
        };
        self.tally.outcomes[stack.outcome as usize] += 1;
        let marker = match shown(stack.outcome) {
            Shown::Whole => None,
            Shown::Marked(label) => Some(self.profile.marker(label)),
            Shown::Not(_) => return,
        };
        if self.gil_only && sample.gil == 0 {
            self.tally.without_gil += 1;
            return;
        }
        self.frames.clear();
        self.symbols.name(
            sample.target,
            (target.pid, &target.interpreter),
            &mut self.profile,
            &stack.frames,
            &mut self.frames,
        );
        self.frames.extend(marker);
        let id = self.profile.stack(self.frames.iter().rev().copied());
        let comm = || sample::comm(sample);
        let thread = self.thread(target, sample.target, sample.tid, comm);
        self.profile.record(sample.time, thread, id, sample.weight);
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
            .or_insert_with(|| profile.add_process(target.pid, target.command_line.clone()));
        let thread = profile.add_thread(process, tid, comm);
        self.threads_made += 1;
        self.threads.insert((id, tid), thread);
        self.nameless.insert(id);
        thread
    }
}
