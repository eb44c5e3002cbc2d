//! Which processes are profiled and what each of them is: looks at processes when the kernel asks,
//! and keeps the kernel's map of targets right. What their frames are called is `symbolize`'s.

pub mod command;
mod layouts;
mod process;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use profiler_ebpf::{ProcessEvent, Target, TargetState};
use rustc_hash::FxHashMap;

use crate::{
    bpf::Kernel,
    cpython::{self, Binaries, Detection, Interpreter},
};

use layouts::Layouts;
pub use process::{Pid, exists};

/// How long after a look that found no Python the next sample asks again; doubles with each look.
/// An interpreter that is still being mapped is found within milliseconds, one that a program loads
/// much later within as long again as it took.
const AGAIN_AFTER: u64 = 5_000_000;
/// How often it doubles: 5 ms · 2^13 is 41 s.
const AGAIN_DOUBLINGS: u32 = 13;
/// Ticks for which what is known of an ended process is kept: its last samples may be unread.
const TICKS_AFTER_END: u32 = 3;

/// Most notices that are kept: the processes of a machine could think of any number.
const NOTICES_MAX: usize = 100;

/// A process that runs Python, from one exec to the next.
#[derive(Debug)]
pub struct Incarnation {
    pub pid: Pid,
    pub command_line: String,
    pub interpreter: Interpreter,
    /// The kernel's slot for its layout.
    layout: u32,
    /// Ticks since it ended; `None` while it runs.
    ended: Option<u32>,
}

/// Every process that is, or was, profiled.
#[derive(Default)]
pub struct Targets {
    binaries: Binaries,
    layouts: Layouts,
    /// By [`Target::id`].
    incarnations: FxHashMap<u32, Incarnation>,
    /// Which incarnation runs under a pid now.
    current: FxHashMap<Pid, u32>,
    last_id: u32,
    /// Set since the last tick: their process may have ended before the kernel could see that.
    fresh: Vec<Pid>,
    notices: Vec<String>,
    refused: BTreeSet<String>,
    met: u64,
    missed: u64,
}

impl Targets {
    /// Looks at every process that runs now. For a profile of all Python.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn scan(&mut self, kernel: &mut Kernel) -> Result<()> {
        for pid in process::all()? {
            match cpython::detect(pid, &mut self.binaries) {
                Ok(Detection::Python(interpreter)) => self.try_set(kernel, pid, *interpreter),
                Ok(Detection::Unsupported { version, why }) => {
                    self.notice_unsupported(pid, &version, &why);
                }
                // The kernel will ask about it when it runs.
                Ok(Detection::NotPython) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Adds a process that the user named.
    ///
    /// # Errors
    /// When there is no such process, or it is no Python that pyebpf knows: the message says which.
    pub fn add_named(&mut self, kernel: &mut Kernel, pid: Pid) -> Result<()> {
        if !exists(pid) {
            bail!("process {pid} does not exist: `pgrep -a python` lists those that run Python");
        }
        if let Some(process) = process::process_of_thread(pid) {
            bail!("{pid} is a thread of process {process}: use `--pid {process}`");
        }
        let detection = cpython::detect(pid, &mut self.binaries)
            .with_context(|| format!("cannot look at process {pid}"))?;
        match detection {
            Detection::Python(interpreter) => self.set(kernel, pid, *interpreter),
            Detection::NotPython => bail!(
                "process {pid} ({}) runs no CPython: `pgrep -a python` lists those that do",
                process::name(pid)
            ),
            Detection::Unsupported { version, why } => bail!(
                "process {pid} ({}) runs Python {version}, which pyebpf can't profile: {why}",
                process::name(pid)
            ),
        }
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

    /// Makes the kernel ask about `pid` at its next sample.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn follow(&mut self, kernel: &mut Kernel, pid: Pid) -> Result<()> {
        let target = Target {
            state: TargetState::Unseen as u32,
            ..Target::default()
        };
        kernel.set_target(pid, &target)?;
        self.fresh.push(pid);
        Ok(())
    }

    /// Takes in what the kernel says of a process; `detail` as the contract has it. A process that
    /// can't be profiled becomes a notice.
    pub fn take_event(&mut self, kernel: &mut Kernel, event: ProcessEvent, pid: Pid, detail: u32) {
        match event {
            ProcessEvent::Look => self.look(kernel, pid, detail),
            ProcessEvent::Exec => {
                self.end(pid);
                self.look(kernel, pid, 0)
            }
            ProcessEvent::Fork => self.look(kernel, pid, 0),
            ProcessEvent::Exit => self.end(pid),
        }
    }

    /// Once a second: forgets what ended a while ago.
    pub fn tick(&mut self, kernel: &mut Kernel) {
        for pid in std::mem::take(&mut self.fresh) {
            if !exists(pid) {
                kernel.remove_target(pid);
                self.end(pid);
            }
        }
        let layouts = &mut self.layouts;
        self.incarnations.retain(|_, incarnation| {
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

    /// The process that a sample was taken of.
    pub fn get(&self, id: u32) -> Option<&Incarnation> {
        self.incarnations.get(&id)
    }

    /// How many profiled processes run now.
    pub fn running(&self) -> usize {
        self.current.len()
    }

    /// How many processes were profiled in all, an exec's successor being another one.
    pub fn met(&self) -> u64 {
        self.met
    }

    /// How many samples of Python processes came before we had looked at them.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// What there is to tell the user since the last call.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    fn look(&mut self, kernel: &mut Kernel, pid: Pid, looks: u32) {
        let again = match cpython::detect(pid, &mut self.binaries) {
            Ok(Detection::Python(interpreter)) => return self.try_set(kernel, pid, *interpreter),
            Ok(Detection::Unsupported { version, why }) => {
                self.notice_unsupported(pid, &version, &why);
                u64::MAX
            }
            Err(_) if !exists(pid) => return kernel.remove_target(pid),
            // Or its memory map can't be read, now or ever: as if it were no Python.
            Ok(Detection::NotPython) | Err(_) => {
                monotonic_now() + (AGAIN_AFTER << looks.min(AGAIN_DOUBLINGS))
            }
        };
        self.set_other(kernel, pid, looks.saturating_add(1), again);
    }

    fn set_other(&mut self, kernel: &mut Kernel, pid: Pid, looks: u32, again: u64) {
        let target = Target {
            state: TargetState::Other as u32,
            looks,
            again,
            ..Target::default()
        };
        match kernel.set_target(pid, &target) {
            Ok(()) => self.fresh.push(pid),
            Err(error) => self.notice(format!("{error:#}")),
        }
    }

    fn try_set(&mut self, kernel: &mut Kernel, pid: Pid, interpreter: Interpreter) {
        if let Err(error) = self.set(kernel, pid, interpreter) {
            let name = process::name(pid);
            self.notice(format!("process {pid} ({name}) is not profiled: {error:#}"));
            self.set_other(kernel, pid, 0, u64::MAX);
        }
    }

    fn set(&mut self, kernel: &mut Kernel, pid: Pid, interpreter: Interpreter) -> Result<()> {
        self.end(pid);
        let waiting = kernel.target(pid).map_or(0, |target| target.waiting);
        let layout = self.layouts.take(kernel, &interpreter.layout)?;
        self.last_id = self.last_id.wrapping_add(1);
        let target = Target {
            state: TargetState::Python as u32,
            id: self.last_id,
            layout,
            ..interpreter.target
        };
        if let Err(error) = kernel.set_target(pid, &target) {
            self.layouts.give_back(layout);
            return Err(error);
        }
        self.missed += u64::from(waiting);
        self.met += 1;
        self.fresh.push(pid);
        self.current.insert(pid, self.last_id);
        self.incarnations.insert(
            self.last_id,
            Incarnation {
                pid,
                command_line: process::command_line(pid),
                interpreter,
                layout,
                ended: None,
            },
        );
        Ok(())
    }

    fn end(&mut self, pid: Pid) {
        if let Some(id) = self.current.remove(&pid)
            && let Some(incarnation) = self.incarnations.get_mut(&id)
        {
            incarnation.ended = Some(0);
        }
    }

    /// Once for each version and reason.
    fn notice_unsupported(&mut self, pid: Pid, version: &str, why: &str) {
        let text = format!("Python {version} is not profiled: {why}");
        if self.refused.len() < NOTICES_MAX && self.refused.insert(text.clone()) {
            let name = process::name(pid);
            self.notice(format!("process {pid} ({name}): {text}"));
        }
    }

    fn notice(&mut self, text: String) {
        if self.notices.len() < NOTICES_MAX {
            self.notices.push(text);
        }
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of the kernel's records.
fn monotonic_now() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is writable; the clock exists on every kernel.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
