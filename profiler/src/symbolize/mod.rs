//! Names for what the kernel copied: the frames of every profiled process, within one budget of
//! memory, and a count of those that could not be named.

mod python;

use std::collections::BTreeMap;

use profiler_ebpf::Frame;
use rustc_hash::FxHashMap;

use crate::{
    cpython::{Interpreter, code::Reason},
    profile::{FrameId, Profile},
};

use python::{Process, Shown};

/// How many bytes what is known of all processes may take. When they are used up all is read anew:
/// a program that makes new code all the time, or huge line tables, costs time and not memory.
const BYTES_MAX: usize = 16 << 20;

/// What is known of the code of every profiled process.
#[derive(Default)]
pub struct Symbols {
    /// By incarnation.
    processes: FxHashMap<u32, Process>,
    bytes: usize,
    unknown: BTreeMap<Reason, u64>,
}

impl Symbols {
    /// Names the `frames` of a sample of incarnation `id`, the process `pid` with this interpreter,
    /// appending to `named` those that are the program's own.
    pub fn name(
        &mut self,
        id: u32,
        (pid, interpreter): (u32, &Interpreter),
        profile: &mut Profile,
        frames: &[Frame],
        named: &mut Vec<FrameId>,
    ) {
        let process = self
            .processes
            .entry(id)
            .or_insert_with(|| Process::new(pid, interpreter));
        for frame in frames {
            match process.frame(profile, frame, &mut self.bytes) {
                Shown::As(id) => named.push(id),
                Shown::Not => {}
                Shown::Unknown(id, reason) => {
                    *self.unknown.entry(reason).or_default() += 1;
                    named.push(id);
                }
            }
        }
        if self.bytes > BYTES_MAX {
            self.processes.clear();
            self.bytes = 0;
        }
    }

    /// Forgets the processes for which `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.processes.retain(|&id, process| {
            let keep = keep(id);
            if !keep {
                self.bytes -= process.bytes();
            }
            keep
        });
    }

    /// How many frames had no name, and why.
    pub fn unknown(&self) -> &BTreeMap<Reason, u64> {
        &self.unknown
    }
}
