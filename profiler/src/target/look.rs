//! A look at one process: what it runs, made known to the kernel if it is Python and wanted.

use anyhow::Result;
use profiler_ebpf::{Target, TargetState, python::Memory as _};

use crate::{
    bpf::Kernel,
    cpython::{self, Detection, Interpreter},
    memory::ProcessMemory,
};

use super::{
    About, Cgroups, NOTICES_MAX, Starting, TRIES, Targets,
    process::{self, Pid, exists},
};

impl Targets {
    /// Finds out what process `pid` runs. `tries`: how often that has failed.
    pub(super) fn look(&mut self, kernel: &mut Kernel, pid: Pid, tries: u32) {
        // Before the look: an exec during it gets another id.
        let target = kernel.target(pid);
        let id = target.map_or(0, |target| target.id);
        match cpython::detect(pid, &mut self.binaries) {
            Ok(Detection::Python(_) | Detection::Unsupported { .. }) if self.is_outside(pid) => {
                return self.leave_outside(kernel, pid);
            }
            Ok(Detection::Python(interpreter)) => {
                return self.try_set(kernel, (pid, id), *interpreter);
            }
            Ok(Detection::Unsupported { what, why }) => {
                self.notice_unsupported(pid, &what, &why);
            }
            Ok(Detection::NotPython) | Err(_) if !exists(pid) => {
                self.missed += u64::from(self.ended.remove(&pid).unwrap_or(0));
                return;
            }
            Ok(Detection::NotPython) => {}
            // Its mappings may be changing right now. Or they can't be read ever: as if it were no
            // Python.
            Err(_) if tries < TRIES => self.unlooked.push_back((pid, tries + 1)),
            Err(_) => {}
        }
        if self.incarnations.current(pid).is_none() {
            self.set_other(kernel, pid, target);
        }
    }

    /// The interpreter of an incarnation is up, or should be.
    pub(super) fn complete(&mut self, kernel: &mut Kernel, id: u32) {
        let Some(pid) = self.incarnations.get(id).map(|known| known.pid) else {
            return;
        };
        if self.incarnations.current(pid) != Some(id) {
            return;
        }
        match cpython::detect(pid, &mut self.binaries) {
            Ok(Detection::Python(interpreter)) => {
                if is_whole(pid, &interpreter) {
                    self.starting.remove(&id);
                }
                for remark in &interpreter.remarks {
                    self.notice_once(pid, remark);
                }
                let set = self
                    .incarnations
                    .set(kernel, (pid, id), *interpreter, About::default);
                if let Err(error) = set {
                    self.notice(format!("{error:#}"));
                }
            }
            Ok(Detection::Unsupported { what, why }) => {
                self.notice_unsupported(pid, &what, &why);
                self.incarnations.end(pid);
                let target = kernel.target(pid).filter(|target| target.id == id);
                if target.is_some() {
                    self.leave(kernel, pid, target);
                }
            }
            // It is ending, or becoming something else: events will tell.
            Ok(Detection::NotPython) | Err(_) => {}
        }
    }

    /// A process that is followed is not Python.
    pub(super) fn set_other(&mut self, kernel: &mut Kernel, pid: Pid, target: Option<Target>) {
        if !self.all {
            self.leave(kernel, pid, target);
        }
    }

    /// Whether a process is in none of the control groups and containers that were asked for.
    fn is_outside(&self, pid: Pid) -> bool {
        let Some(within) = &self.within else {
            return false;
        };
        // One that is gone can't be asked: it is for others to find out.
        Cgroups::of(pid).map_or_else(|| exists(pid), |groups| !within.have(&groups))
    }

    /// A Python that was not asked for: nothing is said of it, and its samples are not walked.
    fn leave_outside(&mut self, kernel: &mut Kernel, pid: Pid) {
        self.outside.insert(pid);
        self.incarnations.end(pid);
        let target = kernel.target(pid);
        self.leave(kernel, pid, target);
    }

    /// Once a second: Pythons that have been moved from one control group to another. The kernel
    /// program could not tell, knowing groups of version 2 only.
    pub(super) fn look_who_moved(&mut self, kernel: &mut Kernel) {
        if self.within.is_none() {
            return;
        }
        let left: Vec<Pid> = self.incarnations.pids().collect();
        for pid in left {
            if self.is_outside(pid) {
                self.leave_outside(kernel, pid);
            }
        }
        let mut outside = std::mem::take(&mut self.outside);
        outside.retain(|&pid| {
            let stays = self.is_outside(pid);
            if !stays && exists(pid) {
                self.unlooked.push_back((pid, 0));
            }
            stays
        });
        self.outside = outside;
    }

    /// Its samples are counted, not walked.
    pub(super) fn leave(&mut self, kernel: &mut Kernel, pid: Pid, target: Option<Target>) {
        let target = Target {
            state: TargetState::Other as u32,
            ..target.unwrap_or_default()
        };
        match kernel.set_target(pid, &target) {
            Ok(()) => self.remove_if_gone(kernel, pid),
            Err(error) => self.notice(format!("{error:#}")),
        }
    }

    pub(super) fn try_set(
        &mut self,
        kernel: &mut Kernel,
        process: (Pid, u32),
        interpreter: Interpreter,
    ) {
        if let Err(error) = self.set(kernel, process, interpreter) {
            let pid = process.0;
            let name = process::name(pid);
            self.notice(format!("process {pid} ({name}) is not profiled: {error:#}"));
        }
    }

    pub(super) fn set(
        &mut self,
        kernel: &mut Kernel,
        (pid, id): (Pid, u32),
        interpreter: Interpreter,
    ) -> Result<()> {
        let new = self.incarnations.current(pid) != Some(id);
        let is_whole = is_whole(pid, &interpreter);
        for remark in &interpreter.remarks {
            self.notice_once(pid, remark);
        }
        let (id, waiting) = self
            .incarnations
            .set(kernel, (pid, id), interpreter, || About::of(pid))?;
        self.missed += u64::from(waiting);
        if !is_whole {
            self.starting.insert(id, Starting::default());
        }
        if new && self.all {
            // Those that it forked before the kernel knew it.
            let children = process::children(pid).into_iter();
            self.unlooked.extend(children.map(|child| (child, 0)));
        }
        self.remove_if_gone(kernel, pid);
        Ok(())
    }

    /// The process may have ended before the kernel could see that it is followed.
    pub(super) fn remove_if_gone(&mut self, kernel: &mut Kernel, pid: Pid) {
        if !exists(pid) {
            kernel.remove_target(pid);
            self.incarnations.end(pid);
            self.followed.remove(&pid);
        }
    }

    /// Once for each version and reason.
    pub(super) fn notice_unsupported(&mut self, pid: Pid, what: &str, why: &str) {
        self.notice_once(pid, &format!("{what} is not profiled: {why}"));
    }

    /// A notice that comes once for all processes that it holds for.
    fn notice_once(&mut self, pid: Pid, text: &str) {
        if self.said.len() < NOTICES_MAX && self.said.insert(text.to_owned()) {
            let name = process::name(pid);
            self.notice(format!("process {pid} ({name}): {text}"));
        }
    }
}

/// Whether the interpreter was up when it was looked at, so that all of it could be known.
fn is_whole(pid: Pid, interpreter: &Interpreter) -> bool {
    let mut head = [0; 8];
    interpreter.checked
        && ProcessMemory::new(pid).read(interpreter.target.interpreters, &mut head)
        && head != [0; 8]
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::Layout;

    use super::*;
    use crate::cpython::Version;

    #[test]
    fn an_interpreter_is_whole_once_it_is_up_and_was_checked() {
        let heads = [0_u64, 0x1000];
        let whole = |checked, head: *const u64| {
            let interpreter = Interpreter {
                version: Version {
                    major: 3,
                    minor: 12,
                    micro: 1,
                },
                layout: Layout::default(),
                eval_loop: Vec::new(),
                target: Target {
                    interpreters: head as u64,
                    ..Target::default()
                },
                checked,
                remarks: Vec::new(),
            };
            is_whole(std::process::id(), &interpreter)
        };
        assert!(whole(true, &raw const heads[1]));
        assert!(!whole(false, &raw const heads[1]), "it has no frame yet");
        assert!(!whole(true, &raw const heads[0]), "it has no interpreter");
        assert!(!whole(true, std::ptr::null()), "it is gone");
    }
}
