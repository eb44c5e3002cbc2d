//! The processes that run Python, from one exec to the next: which of them runs under a pid now, what
//! the kernel knows of each, and what is known of those that have just ended.

use std::sync::Arc;

use anyhow::Result;
use profiler_ebpf::{KERNEL_ID, Target, TargetState};
use rustc_hash::FxHashMap;

use crate::{bpf::Kernel, cpython::Interpreter};

use super::{
    cgroup::Cgroups,
    layouts::Layouts,
    process::{self, Pid},
};

/// Ticks for which what is known of an ended process is kept: its last samples may be unread.
const TICKS_AFTER_END: u32 = 3;

/// What there is to say of a process, shared with the children that it forks.
#[derive(Debug, Default)]
pub struct About {
    pub command_line: String,
    /// Path of its control group when it was met; empty when that is not known.
    pub cgroup: String,
    /// Id of its container: 64 hexadecimal digits, or nothing.
    pub container: String,
    /// Ids of the containers that this one is in.
    pub around: Vec<String>,
}

impl About {
    /// What there is to say of process `pid` now.
    pub(super) fn of(pid: Pid) -> About {
        let groups = Cgroups::of(pid).unwrap_or_default();
        let innermost = groups.container().unwrap_or_default();
        let mut around: Vec<String> = Vec::new();
        for id in groups.containers() {
            if id != innermost && !around.iter().any(|known| known == id) {
                around.push(id.to_owned());
            }
        }
        About {
            command_line: process::command_line(pid),
            cgroup: groups.shown(),
            container: innermost.to_owned(),
            around,
        }
    }
}

/// A process that runs Python, from one exec or fork to the next exec.
#[derive(Debug)]
pub struct Incarnation {
    pub pid: Pid,
    pub about: Arc<About>,
    pub interpreter: Arc<Interpreter>,
    /// The kernel's slot for its layout.
    layout: u32,
    /// Ticks since it ended; `None` while it runs.
    ended: Option<u32>,
}

#[cfg(test)]
impl Incarnation {
    /// One that runs, of a made-up Python.
    pub(crate) fn of_test(pid: Pid, command_line: &str, container: &str) -> Incarnation {
        let about = About {
            command_line: command_line.to_owned(),
            cgroup: String::new(),
            container: container.to_owned(),
            around: Vec::new(),
        };
        Incarnation {
            pid,
            about: Arc::new(about),
            interpreter: Arc::new(Interpreter::of_test()),
            layout: 0,
            ended: None,
        }
    }
}

/// Every process that is profiled, or was until a moment ago.
#[derive(Default)]
pub(super) struct Incarnations {
    layouts: Layouts,
    /// By [`Target::id`].
    known: FxHashMap<u32, Incarnation>,
    /// Which incarnation runs under a pid now.
    current: FxHashMap<Pid, u32>,
    last_id: u32,
    begun: u64,
}

impl Incarnations {
    /// The incarnation with this id.
    pub(super) fn get(&self, id: u32) -> Option<&Incarnation> {
        self.known.get(&id)
    }

    /// The id of what runs under `pid` now.
    pub(super) fn current(&self, pid: Pid) -> Option<u32> {
        self.current.get(&pid).copied()
    }

    /// The pids that run now.
    pub(super) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.current.keys().copied()
    }

    /// Those that run now, with their ids.
    pub(super) fn each_running(&self) -> impl Iterator<Item = (u32, &Incarnation)> {
        let ids = self.current.values();
        ids.filter_map(|&id| Some((id, self.known.get(&id)?)))
    }

    /// How many run now.
    pub(super) fn running(&self) -> usize {
        self.current.len()
    }

    /// How many there were in all.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// An interpreter was found in process `pid`, which the kernel calls `id` (0: nothing yet).
    /// What is known under that id already is brought up to date. Gives the id and how many samples
    /// came too early.
    ///
    /// # Errors
    /// When the kernel has no room for it.
    pub(super) fn set(
        &mut self,
        kernel: &mut Kernel,
        (pid, id): (Pid, u32),
        interpreter: Interpreter,
        about: impl FnOnce() -> About,
    ) -> Result<(u32, u32)> {
        let same = id != 0 && self.current(pid) == Some(id);
        let id = match self.known.get(&id) {
            None if id != 0 => id,
            Some(_) if same => id,
            _ => self.next_id(),
        };
        let layout = self.layouts.take(kernel, &interpreter.layout)?;
        let waiting = kernel.target(pid).map_or(0, |target| target.waiting);
        let target = Target {
            state: TargetState::Python as u32,
            id,
            layout,
            waiting: 0,
            ..interpreter.target
        };
        if let Err(error) = kernel.set_target(pid, &target) {
            self.layouts.give_back(layout);
            return Err(error);
        }
        let interpreter = Arc::new(interpreter);
        if let Some(known) = self.known.get_mut(&id) {
            self.layouts.give_back(known.layout);
            known.layout = layout;
            known.interpreter = interpreter;
        } else {
            self.end(pid);
            self.begin(pid, id, (interpreter, Arc::new(about()), layout));
        }
        Ok((id, waiting))
    }

    /// The child `pid` of the incarnation `parent` runs what that does; the kernel calls it `id`.
    /// False when the parent is not known.
    pub(super) fn inherit(&mut self, pid: Pid, id: u32, parent: u32) -> bool {
        let Some(parent) = self.known.get(&parent) else {
            return false;
        };
        let (interpreter, about) = (parent.interpreter.clone(), parent.about.clone());
        let layout = parent.layout;
        self.layouts.share(layout);
        self.end(pid);
        self.begin(pid, id, (interpreter, about, layout));
        true
    }

    /// One that runs, without the kernel.
    #[cfg(test)]
    pub(super) fn add(&mut self, pid: Pid, id: u32, interpreter: Interpreter) {
        self.begin(pid, id, (Arc::new(interpreter), Arc::default(), 0));
    }

    fn begin(
        &mut self,
        pid: Pid,
        id: u32,
        (interpreter, about, layout): (Arc<Interpreter>, Arc<About>, u32),
    ) {
        self.begun += 1;
        self.current.insert(pid, id);
        let incarnation = Incarnation {
            pid,
            about,
            interpreter,
            layout,
            ended: None,
        };
        if let Some(old) = self.known.insert(id, incarnation) {
            // 2^31 processes ago the kernel gave out the same id.
            self.layouts.give_back(old.layout);
        }
    }

    /// What ran under `pid` has ended; its id.
    pub(super) fn end(&mut self, pid: Pid) -> Option<u32> {
        let id = self.current.remove(&pid)?;
        if let Some(incarnation) = self.known.get_mut(&id) {
            incarnation.ended = Some(0);
        }
        Some(id)
    }

    /// Once a second: forgets what ended a while ago.
    pub(super) fn tick(&mut self) {
        let layouts = &mut self.layouts;
        self.known.retain(|_, incarnation| {
            incarnation.ended = incarnation.ended.map(|ticks| ticks + 1);
            let keep = incarnation
                .ended
                .is_none_or(|ticks| ticks < TICKS_AFTER_END);
            if !keep {
                layouts.give_back(incarnation.layout);
            }
            keep
        });
    }

    fn next_id(&mut self) -> u32 {
        loop {
            self.last_id = (self.last_id + 1) & (KERNEL_ID - 1);
            if self.last_id != 0 && !self.known.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}
