//! The Python stacks of a process, read from outside while it runs: the kernel program's own walk over
//! `process_vm_readv`. The process is not stopped, so a stack may be torn; none is made up: frames
//! that do not lead to code end it, as in a recording.

use std::collections::HashSet;

use bytemuck::Zeroable as _;
use profiler_ebpf::{Frame, Layout, MAX_STEPS, Outcome, Target, python::Walk};
use serde::Serialize;

use crate::{
    cpython::{Interpreter, LineTable, code},
    memory::{ProcessMemory, read_u32, read_u64},
    tally::{self, Shown, shown},
};

/// Most thread states and interpreters that are looked at, which may be a list without end, and most
/// frames of a stack that are named.
const LOOKS_MAX: usize = 4096;
const THREADS_MAX: usize = 1024;
const NAMED_MAX: usize = 128;
/// How often a stack is read until it is whole: the thread may be in the middle of a call.
const ATTEMPTS: usize = 20;

/// Where a C library keeps a thread's id, from its thread control block: `offsetof(struct pthread,
/// tid)` of glibc 2.17 to 2.43 (nptl/descr.h) and of musl 1.2 (src/internal/pthread_impl.h).
const TID_OFFSETS: [u64; 2] = [0x2d0, 0x30];

/// One thread and its stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Thread {
    /// `None` when the C library keeps it somewhere else.
    pub tid: Option<u32>,
    /// By which way the kernel program finds its thread state.
    pub route: &'static str,
    /// How the walk ended, as recordings count it.
    pub outcome: &'static str,
    /// How many frames there are.
    pub depth: u32,
    /// The newest of them, newest first.
    pub frames: Vec<String>,
}

type Only = fn(&Target) -> Target;

/// The ways to a thread state, each by what is left of a target when the others are taken away.
const ROUTES: [(&str, Only); 4] = [
    ("gil_holder", |all| Target {
        current: all.current,
        code_type: all.code_type,
        ..Target::default()
    }),
    ("pthread_key", |all| Target {
        tss_key: all.tss_key,
        code_type: all.code_type,
        ..Target::default()
    }),
    ("thread_local", |all| Target {
        tls_offset: all.tls_offset,
        tls_module: all.tls_module,
        code_type: all.code_type,
        ..Target::default()
    }),
    ("list_of_threads", |all| Target {
        interpreters: all.interpreters,
        code_type: all.code_type,
        ..Target::default()
    }),
];

/// The stacks of every thread that has a thread state, at most some.
pub(super) fn read(pid: u32, interpreter: &Interpreter) -> Vec<Thread> {
    let memory = ProcessMemory::new(pid);
    let blocks = control_blocks(&memory, &interpreter.layout, &interpreter.target);
    let mut walk = Box::new(Walk::zeroed());
    blocks
        .into_iter()
        .map(|block| thread(pid, &memory, interpreter, &mut walk, block))
        .collect()
}

/// The thread control blocks of the threads in the interpreters' lists.
fn control_blocks(memory: &ProcessMemory, layout: &Layout, target: &Target) -> Vec<u64> {
    let word = |address: u64, offset: u32| read_u64(memory, address.wrapping_add(offset.into()));
    let mut blocks = Vec::new();
    let mut looks = 0..LOOKS_MAX;
    let mut interpreter = read_u64(memory, target.interpreters).unwrap_or(0);
    while interpreter != 0 && looks.next().is_some() {
        let mut thread = word(interpreter, layout.interpreter_threads).unwrap_or(0);
        while thread != 0 && looks.next().is_some() {
            blocks.extend(word(thread, layout.thread_id).filter(|&block| block != 0));
            thread = word(thread, layout.thread_next).unwrap_or(0);
        }
        interpreter = word(interpreter, layout.interpreter_next).unwrap_or(0);
    }
    // Newest first in the list. A thread has a state in each interpreter that it entered.
    blocks.reverse();
    let mut seen = HashSet::new();
    blocks.retain(|&block| seen.insert(block));
    blocks.truncate(THREADS_MAX);
    blocks
}

fn thread(
    pid: u32,
    memory: &ProcessMemory,
    interpreter: &Interpreter,
    walk: &mut Walk,
    block: u64,
) -> Thread {
    let Interpreter { layout, target, .. } = interpreter;
    let route = ROUTES.iter().find(|(_, only)| {
        let begun = walk.begin(memory, layout, &only(target), block);
        begun || walk.sample.outcome == Outcome::NoFrames as u8
    });
    for _ in 0..ATTEMPTS {
        if walk.begin(memory, layout, target, block) {
            let mut steps = 0..MAX_STEPS;
            while steps.next().is_some() && walk.step(memory, layout, target) {}
        }
        let outcome = Outcome::from_number(walk.sample.outcome);
        if outcome.is_some_and(|outcome| !matches!(shown(outcome), Shown::Marked(_))) {
            break;
        }
    }
    let depth = (walk.stack.frames as usize).min(walk.frames.len());
    let frames = walk.frames[..depth.min(NAMED_MAX)].iter();
    let outcome = Outcome::from_number(walk.sample.outcome);
    Thread {
        tid: tid(pid, memory, block),
        route: route.map_or("none", |(name, _)| name),
        outcome: outcome.map_or("unknown", tally::key),
        depth: depth as u32,
        frames: frames
            .map(|frame| name(memory, interpreter, frame))
            .collect(),
    }
}

/// `name (file:line)`, or why there is none.
fn name(memory: &ProcessMemory, interpreter: &Interpreter, frame: &Frame) -> String {
    let Interpreter { layout, target, .. } = interpreter;
    match code::read(memory, layout, target.code_type, frame.code, frame.identity) {
        Ok(code) => {
            let lines: &LineTable = &code.lines;
            let line = lines.line(frame.instruction).unwrap_or(code.first_line);
            let name = code.qualname.as_ref().unwrap_or(&code.name);
            super::printable(&format!("{name} ({}:{line})", code.filename))
        }
        Err(reason) => format!("[unknown: {reason}]"),
    }
}

/// The thread's id, where a C library keeps it and the process has such a thread.
fn tid(pid: u32, memory: &ProcessMemory, block: u64) -> Option<u32> {
    let exists = |tid: &u32| std::fs::exists(format!("/proc/{pid}/task/{tid}")).unwrap_or(false);
    let mut tids = TID_OFFSETS
        .iter()
        .filter_map(|&offset| read_u32(memory, block.wrapping_add(offset)));
    tids.find(exists)
}
