//! What happens to processes, taken in: programs that begin, fork and end, files that are mapped as
//! executable, interpreters that come up, and events that were lost. Decides who is looked at; the look
//! itself is `look`'s.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use profiler_ebpf::{Outcome, Process, ProcessEvent, Target, TargetState};

use crate::bpf::{Kernel, Mapping};

use super::{
    Starting, TRIES, Targets,
    process::{self, Pid, exists},
};

/// For how long after an exec mappings are looked for more often: until then a Python has mapped its
/// runtime.
const STARTING: Duration = Duration::from_millis(25);
/// For how long processes are looked at before the loop looks at its records again.
const LOOKING: Duration = Duration::from_millis(10);
/// Most mappings that wait to be looked at; more count as lost.
const MAPPINGS_MAX: usize = 1 << 16;

impl Targets {
    /// Takes in what the kernel says of a process. A process that can't be profiled becomes a notice.
    pub fn take_event(&mut self, kernel: &mut Kernel, event: ProcessEvent, process: &Process) {
        let (pid, id) = (process.pid, process.target);
        match event {
            ProcessEvent::Exec => self.exec(kernel, pid, id),
            ProcessEvent::Fork => {
                if !self.all {
                    self.followed.insert(pid);
                }
                let parent = process.parent_target;
                let inherits = parent != 0 && self.incarnations.inherit(pid, id, parent);
                if inherits {
                    self.natives.share(id, parent);
                }
                if !inherits {
                    self.look(kernel, pid, 0);
                } else if self.starting.contains_key(&parent) {
                    self.starting.insert(id, Starting::default());
                }
            }
            ProcessEvent::Exit => {
                self.followed.remove(&pid);
                if self.incarnations.current(pid) == Some(id) {
                    self.incarnations.end(pid);
                } else if process.waiting > 0 {
                    self.ended.insert(pid, process.waiting);
                }
            }
        }
    }

    pub(super) fn exec(&mut self, kernel: &mut Kernel, pid: Pid, id: u32) {
        self.expecting = Some(Instant::now() + STARTING);
        if self.incarnations.current(pid) == Some(id) {
            // Its mappings were quicker.
            return;
        }
        let had = self.incarnations.end(pid).is_some();
        let overwritten = had
            && kernel.target(pid).is_some_and(|target| {
                target.id != id && self.incarnations.get(target.id).is_some()
            });
        if overwritten {
            // We were looking at the old program when it began the new one.
            let target = Target {
                state: TargetState::Unseen as u32,
                id,
                ..Target::default()
            };
            if let Err(error) = kernel.set_target(pid, &target) {
                self.notice(format!("{error:#}"));
            }
        }
        // In a profile of everything its mappings will say whether it is worth a look.
        if overwritten || !self.all {
            self.look(kernel, pid, 0);
        }
    }

    /// Takes in mappings that processes have made, to be looked at by
    /// [`look_around`](Self::look_around).
    pub fn take_mappings(&mut self, mappings: impl Iterator<Item = Mapping>) {
        for mapping in mappings {
            let pid = mapping.pid;
            // 0 and all ones: a process that we can't see, or that is gone.
            let of_interest = self.all && pid != 0 && pid != u32::MAX || self.follows(pid);
            let known = self.incarnations.current(pid);
            if let Some(id) = known {
                self.natives.note_change(id);
            }
            if !of_interest || known.is_some_and(|id| !self.starting.contains_key(&id)) {
                continue;
            }
            if self.mappings.len() < MAPPINGS_MAX {
                self.mappings.push_back(mapping);
            } else {
                self.overrun += 1;
            }
        }
    }

    /// Looks at what has been mapped and at whom there is reason to look at, for some milliseconds;
    /// true when there is more.
    pub fn look_around(&mut self, kernel: &mut Kernel) -> bool {
        let until = Instant::now() + LOOKING;
        for id in self.natives.take_changed() {
            self.load_native(kernel, id);
        }
        while let Some(mapping) = self.mappings.pop_front() {
            match self.files.is_python(&mapping, &mut self.binaries) {
                Ok(false) => {}
                Ok(true) => self.look(kernel, mapping.pid, 0),
                Err(_) => self.look(kernel, mapping.pid, TRIES),
            }
            if Instant::now() >= until {
                return true;
            }
        }
        for _ in 0..self.unlooked.len() {
            let Some((pid, tries)) = self.unlooked.pop_front() else {
                break;
            };
            if self.is_out_of_date(kernel, pid) {
                self.look(kernel, pid, tries);
            }
            if Instant::now() >= until {
                return true;
            }
        }
        false
    }

    /// Whether mappings are expected that want to be looked at soon: of a program that began just
    /// now, or of a look that failed.
    pub fn is_expecting(&self) -> bool {
        !self.unlooked.is_empty() || self.expecting.is_some_and(|until| Instant::now() < until)
    }

    /// Takes note of a sample's outcome: an interpreter that comes up is looked at once more, since
    /// not all of it could be known before.
    pub fn sampled(&mut self, kernel: &mut Kernel, id: u32, outcome: Outcome) {
        if self.starting.is_empty() {
            return;
        }
        let Some(starting) = self.starting.get_mut(&id) else {
            return;
        };
        starting.sampled = true;
        let is_up = !matches!(
            outcome,
            Outcome::NoInterpreter | Outcome::NoThreadState | Outcome::NoFrames
        );
        if is_up && !starting.looked_at {
            starting.looked_at = true;
            self.complete(kernel, id);
        }
    }

    /// Events were lost: whatever they said, `/proc` knows it, too.
    pub(super) fn make_good(&mut self) {
        let mut pids: BTreeSet<Pid> = self.incarnations.pids().collect();
        if self.all {
            // What can't be listed now will be at the next loss.
            pids.extend(process::all().unwrap_or_default());
        }
        pids.extend(&self.followed);
        self.unlooked = pids.into_iter().map(|pid| (pid, TRIES)).collect();
    }

    /// Whether what we know of `pid` is not what the kernel does; a process that is gone is forgotten.
    pub(super) fn is_out_of_date(&mut self, kernel: &mut Kernel, pid: Pid) -> bool {
        let known = self.incarnations.current(pid);
        let target = kernel.target(pid);
        if known.is_some() && target.map(|target| target.id) == known {
            if exists(pid) {
                return false;
            }
            kernel.remove_target(pid);
        }
        if known.is_some() {
            self.incarnations.end(pid);
        }
        if !exists(pid) {
            self.followed.remove(&pid);
            return false;
        }
        true
    }
}
