//! Which processes are profiled and what each of them is. Learns of them from events: programs that
//! begin, fork and end, and files that are mapped as executable; reads `/proc` when one of those may
//! be a Python, at the start, and when events were lost. What their frames are called is
//! `symbolize`'s.

mod cgroup;
pub mod command;
mod events;
mod files;
pub(crate) mod fuzz;
mod groups;
mod incarnations;
mod layouts;
mod look;
mod natives;
mod process;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use profiler_ebpf::{Target, TargetState};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    bpf::{Kernel, Mapping},
    cpython::{self, Binaries, Detection},
    unwind::Modules,
};

pub use cgroup::Cgroups;
use files::Files;
pub use groups::{Ambiguous, Groups};
use incarnations::Incarnations;
pub use incarnations::{About, Incarnation};
use natives::Natives;
pub use process::{Condition, Pid, command_line, exists, process_of_thread};

/// How often a look at a process that runs may fail before it is given up until the next event.
const TRIES: u32 = 5;
/// Most notices that are kept: the processes of a machine could think of any number.
const NOTICES_MAX: usize = 100;

/// What has happened to a starting interpreter since the last tick.
#[derive(Clone, Copy, Default)]
struct Starting {
    sampled: bool,
    looked_at: bool,
}

/// Every process that is, or was, profiled.
#[derive(Default)]
pub struct Targets {
    /// Whether every process is of interest, or only those of `followed`.
    all: bool,
    /// Of all processes, only those in these are profiled.
    within: Option<Groups>,
    /// Pythons that are in none of them.
    outside: FxHashSet<Pid>,
    /// Processes that the user named, and their children where those are wanted.
    followed: FxHashSet<Pid>,
    binaries: Binaries,
    files: Files,
    incarnations: Incarnations,
    /// Incarnations that were looked at while their interpreter may not have been up.
    starting: FxHashMap<u32, Starting>,
    /// Mappings that are to be looked at.
    mappings: VecDeque<Mapping>,
    /// Processes that are to be looked at, with how often that has failed.
    unlooked: VecDeque<(Pid, u32)>,
    /// Until when a new program may be mapping its interpreter.
    expecting: Option<Instant>,
    /// Processes that ended before they were looked at, with their samples, until the next tick.
    ended: FxHashMap<Pid, u32>,
    /// How many events were lost, as far as that has been made good.
    lost: u64,
    /// How many mappings there was no time for.
    overrun: u64,
    natives: Natives,
    notices: Vec<String>,
    /// What was said of single processes, and is said once.
    said: BTreeSet<String>,
    missed: u64,
}

impl Targets {
    /// One that runs, for tests of what is made of its samples.
    #[cfg(test)]
    pub(crate) fn of_one(id: u32, pid: Pid, interpreter: cpython::Interpreter) -> Targets {
        let mut targets = Targets::default();
        targets.incarnations.add(pid, id, interpreter);
        targets
    }

    /// Profiles every Python from now on, beginning with those that run now; or every one within
    /// these control groups and containers.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn follow_all(&mut self, kernel: &mut Kernel, within: Option<Groups>) -> Result<()> {
        self.all = true;
        self.within = within;
        for pid in process::all()? {
            self.look(kernel, pid, 0);
        }
        Ok(())
    }

    /// Adds a process that the user named, and with `children` its descendants: then it need not be
    /// Python, nor ever become one.
    ///
    /// # Errors
    /// When there is no such process, or it is no Python that pyebpf knows: the message says which.
    pub fn add_named(&mut self, kernel: &mut Kernel, pid: Pid, children: bool) -> Result<()> {
        if let Some(obstacle) = Condition::of(pid).obstacle() {
            bail!("process {pid} {obstacle}: `pgrep -a python` lists those that run Python");
        }
        if let Some(process) = process_of_thread(pid) {
            bail!("{pid} is a thread of process {process}: use `--pid {process}`");
        }
        let detection = cpython::detect(pid, &mut self.binaries)
            .with_context(|| format!("cannot look at process {pid}"))?;
        match detection {
            Detection::Python(interpreter) => {
                self.followed.insert(pid);
                self.set(kernel, (pid, 0), *interpreter)?;
                if let Some(id) = self.incarnations.current(pid) {
                    self.load_native(kernel, id);
                }
            }
            Detection::NotPython if children => self.follow(kernel, pid)?,
            Detection::NotPython => bail!(
                "process {pid} ({}) runs no CPython: `pgrep -a python` lists those that do; with \
                 `--subprocesses` those are profiled that it starts",
                process::name(pid)
            ),
            Detection::Unsupported { what, why } => bail!(
                "process {pid} ({}) runs {what}, which pyebpf can't profile: {why}",
                process::name(pid)
            ),
        }
        if children {
            self.add_descendants(kernel, pid)?;
        }
        Ok(())
    }

    /// Adds the children of `pid`, and theirs, that run now.
    ///
    /// # Errors
    /// When `/proc` can't be read, or the kernel refuses a target.
    pub fn add_descendants(&mut self, kernel: &mut Kernel, pid: Pid) -> Result<()> {
        for child in process::descendants(pid)? {
            self.follow(kernel, child)?;
        }
        Ok(())
    }

    /// Follows `pid`, Python or not yet.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn follow(&mut self, kernel: &mut Kernel, pid: Pid) -> Result<()> {
        if self.incarnations.current(pid).is_some() {
            return Ok(());
        }
        self.followed.insert(pid);
        let target = Target {
            state: TargetState::Unseen as u32,
            ..Target::default()
        };
        kernel.set_target(pid, &target)?;
        self.look(kernel, pid, 0);
        Ok(())
    }

    /// Whether a process that was named, or followed, still runs.
    pub fn follows(&self, pid: Pid) -> bool {
        self.followed.contains(&pid)
    }

    /// Once a second: forgets what ended a while ago, looks again at interpreters that do not come
    /// up, and at every process when events were lost.
    pub fn tick(&mut self, kernel: &mut Kernel) {
        self.files.tick();
        self.ended.clear();
        self.incarnations.tick();
        self.look_who_moved(kernel);
        self.natives.tick(|id| self.incarnations.get(id).is_some());
        let incarnations = &self.incarnations;
        self.starting
            .retain(|&id, _| incarnations.get(id).is_some());
        let sampled: Vec<u32> = self
            .starting
            .iter_mut()
            .filter_map(|(&id, starting)| std::mem::take(starting).sampled.then_some(id))
            .collect();
        for id in sampled {
            self.complete(kernel, id);
        }
        let lost = kernel.events_lost().map(|lost| lost + self.overrun);
        if let Ok(lost) = lost
            && lost != self.lost
        {
            self.lost = lost;
            self.make_good();
        }
    }

    /// How many events of processes were lost, and made good by a look at all processes.
    pub fn events_lost(&self) -> u64 {
        self.lost
    }

    /// The process that a sample was taken of.
    pub fn get(&self, id: u32) -> Option<&Incarnation> {
        self.incarnations.get(id)
    }

    /// Every process that runs now and is profiled, with the id of its incarnation.
    pub fn each_running(&self) -> impl Iterator<Item = (u32, &Incarnation)> {
        self.incarnations.each_running()
    }

    /// What an incarnation runs native code from, as far as that is known.
    pub fn modules(&self, id: u32) -> Option<&Arc<Modules>> {
        self.natives.modules(id)
    }

    /// How many files have no unwind tables: there was no room for them, or they are no good.
    pub fn without_tables(&self) -> (u64, u64) {
        (self.natives.full, self.natives.refused)
    }

    /// Loads the unwind tables of an incarnation that was sampled, unless it has ended.
    pub fn load_native(&mut self, kernel: &mut Kernel, id: u32) {
        let Some(process) = self.incarnations.get(id).filter(|_| kernel.walks_native()) else {
            return;
        };
        let (pid, interpreter) = (process.pid, process.interpreter.clone());
        if self.incarnations.current(pid) != Some(id) {
            return;
        }
        let loaded = self.natives.load(kernel, (pid, id), &interpreter);
        if let Err(error) = loaded
            && exists(pid)
        {
            let name = process::name(pid);
            self.notice(format!(
                "process {pid} ({name}) has no native frames: {error:#}"
            ));
        }
    }

    /// How many profiled processes run now.
    pub fn running(&self) -> usize {
        self.incarnations.running()
    }

    /// How many processes were profiled in all, an exec's successor being another one.
    pub fn met(&self) -> u64 {
        self.incarnations.begun()
    }

    /// How many samples of Python processes came before we had looked at them.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// What there is to tell the user since the last call.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Tells the user, at the end of a recording, which of the processes that were named stand still.
    pub fn notice_standstills(&mut self) {
        let mut pids: Vec<Pid> = self.followed.iter().copied().collect();
        pids.sort_unstable();
        for pid in pids {
            if let Some((what, mend)) = Condition::of(pid).standstill(pid) {
                let name = process::name(pid);
                self.notice(format!("process {pid} ({name}) is {what}; {mend}"));
            }
        }
    }

    fn notice(&mut self, text: String) {
        if self.notices.len() < NOTICES_MAX {
            self.notices.push(text);
        }
    }
}
