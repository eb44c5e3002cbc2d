//! Is an interpreter what its file says it is? Takes the memory of the process and the interpreter,
//! and follows its structures as a sample would: a thread state whose thread exists, a frame, a code
//! object, a name. Gives what that showed besides, or what was seen in place of what belongs there.

use bytemuck::Zeroable;
use profiler_ebpf::python::{Memory, Walk};
use profiler_ebpf::{Layout, Outcome, Target, layout_flags};

use super::Interpreter;
use super::code::{self, Reason};
use crate::memory::{read_bytes, read_u64};

/// Most interpreters and most thread states of a process that are looked at.
const INTERPRETERS_MAX: usize = 8;
const THREADS_MAX: usize = 64;
/// Most frames of a stack that are tried: the newest change while they are read.
const FRAMES_MAX: usize = 8;
/// How far behind `ob_type` a type object has `tp_name`: `ob_type`, `ob_size`
/// (`Include/cpython/object.h`, 3.6 to 3.15, free-threaded or not).
const TYPE_NAME: u64 = 16;

/// What looking at a live interpreter gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Holds(Learnt),
    /// It has no Python frame yet: there is nothing to see.
    NotUpYet,
    /// What was seen that can't be.
    Fails(String),
}

/// What a file does not say, but a process that runs it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Learnt {
    /// Whether its C library is musl.
    pub musl: bool,
    /// The type of its code objects.
    pub code_type: u64,
}

/// Checks `interpreter` once. The process runs on meanwhile, so a failure may be due to a change in
/// the middle: only one that repeats itself counts.
pub(super) fn check(memory: &impl Memory, interpreter: &Interpreter) -> Verdict {
    let (layout, target) = (&interpreter.layout, &interpreter.target);
    let threads = match threads(memory, layout, target) {
        Ok(threads) => threads,
        Err(seen) => return Verdict::Fails(seen),
    };
    let mut musl = false;
    let mut seen = None;
    let mut walk: Box<Walk> = Box::new(Walk::zeroed());
    for control_block in threads {
        musl |= is_musl(memory, layout, target, control_block, &mut walk);
        match look(memory, layout, target, control_block, &mut walk) {
            Ok(Some(code_type)) => return Verdict::Holds(Learnt { musl, code_type }),
            Ok(None) => {}
            Err(what) => seen = Some(what),
        }
    }
    seen.map_or(Verdict::NotUpYet, Verdict::Fails)
}

/// The thread control blocks of the threads that have a thread state. One that makes no sense may be
/// changing right now, or be left over from a thread that has ended: it counts if there is no other.
fn threads(memory: &impl Memory, layout: &Layout, target: &Target) -> Result<Vec<u64>, String> {
    let at = |object: u64, offset: u32| object.wrapping_add(offset.into());
    let mut found = Vec::new();
    let mut odd = None;
    let mut next = target.interpreters;
    for _ in 0..INTERPRETERS_MAX {
        let interpreter = match read_u64(memory, next) {
            Some(0) => break,
            Some(interpreter) => interpreter,
            None => {
                odd.get_or_insert_with(|| format!("no interpreter can be read at {next:#x}"));
                break;
            }
        };
        let mut link = at(interpreter, layout.interpreter_threads);
        for _ in 0..THREADS_MAX {
            let thread = match read_u64(memory, link) {
                Some(0) => break,
                Some(thread) => thread,
                None => {
                    odd.get_or_insert_with(|| format!("no thread state can be read at {link:#x}"));
                    break;
                }
            };
            match thread_of(memory, layout, interpreter, thread) {
                Ok(id) => found.extend(id),
                Err(seen) => odd = odd.or(Some(seen)),
            }
            link = at(thread, layout.thread_next);
        }
        next = at(interpreter, layout.interpreter_next);
    }
    match odd {
        Some(odd) if found.is_empty() => Err(odd),
        _ => Ok(found),
    }
}

/// The control block of the thread that a thread state is of, if it was given to one yet.
fn thread_of(
    memory: &impl Memory,
    layout: &Layout,
    interpreter: u64,
    thread: u64,
) -> Result<Option<u64>, String> {
    let word = |offset: u32| {
        let at = thread.wrapping_add(offset.into());
        read_u64(memory, at).ok_or_else(|| format!("no thread state can be read at {at:#x}"))
    };
    let of = word(layout.thread_interpreter)?;
    if of != interpreter {
        return Err(format!(
            "the thread state at {thread:#x} is of an interpreter at {of:#x}, not of its own"
        ));
    }
    match word(layout.thread_id)? {
        0 => Ok(None),
        // The first word of every thread control block is its own address (the x86-64 ABI).
        id if read_u64(memory, id) == Some(id) => Ok(Some(id)),
        id => Err(format!(
            "the thread state at {thread:#x} has thread id {id:#x}, which is no thread's"
        )),
    }
}

/// Whether the thread's own way to its thread state leads there if its C library is musl, and only
/// then.
fn is_musl(
    memory: &impl Memory,
    layout: &Layout,
    target: &Target,
    control_block: u64,
    walk: &mut Walk,
) -> bool {
    let direct = Target {
        tss_key: target.tss_key,
        tls_offset: target.tls_offset,
        tls_module: target.tls_module,
        ..Target::default()
    };
    let mut leads = |flags: u32| {
        let layout = Layout { flags, ..*layout };
        let begun = walk.begin(memory, &layout, &direct, control_block);
        begun || walk.sample.outcome == Outcome::NoFrames as u8
    };
    let others = layout.flags & !layout_flags::MUSL;
    !leads(others) && leads(others | layout_flags::MUSL)
}

/// Looks for a code object with a name in the stack of a thread; gives its type. `None` when there
/// is no stack.
fn look(
    memory: &impl Memory,
    layout: &Layout,
    target: &Target,
    control_block: u64,
    walk: &mut Walk,
) -> Result<Option<u64>, String> {
    if walk.begin(memory, layout, target, control_block) {
        while walk.step(memory, layout, target) {}
    }
    let frames = (walk.stack.frames as usize).min(FRAMES_MAX);
    let outcome = Outcome::from_number(walk.sample.outcome);
    if frames == 0 {
        return match outcome {
            // Or its thread state is gone by now.
            Some(Outcome::NoFrames | Outcome::NoThreadState | Outcome::NoInterpreter) => Ok(None),
            Some(Outcome::UnreadableCode) => Err("its newest frame has no code object".to_owned()),
            _ => Err("its newest frame can't be read".to_owned()),
        };
    }
    let mut seen = None;
    for frame in &walk.frames[..frames] {
        let kind = type_of(memory, layout, frame.code);
        let code = code::read(memory, layout, target.code_type, frame.code, frame.identity);
        let why = match code {
            Ok(_) if target.code_type == 0 && !is_code_type(memory, layout, kind) => {
                Reason::NotCode.to_string()
            }
            Ok(code) if code.name.is_empty() => "it has an empty name".to_owned(),
            Ok(_) => return Ok(kind),
            Err(reason) => reason.to_string(),
        };
        seen.get_or_insert_with(|| {
            let name = kind.and_then(|kind| type_name(memory, layout, kind));
            let name = name.unwrap_or_else(|| "no type".to_owned());
            format!("what a frame runs, at {:#x}, has {name}: {why}", frame.code)
        });
    }
    seen.map_or(Ok(None), Err)
}

fn type_of(memory: &impl Memory, layout: &Layout, object: u64) -> Option<u64> {
    read_u64(memory, object.wrapping_add(layout.object_type.into()))
}

/// Where no symbol says what the type of code objects is: it is called `code`, and its own type is
/// `type`, which is its own.
fn is_code_type(memory: &impl Memory, layout: &Layout, kind: Option<u64>) -> bool {
    let is = |kind: u64| {
        let metatype = type_of(memory, layout, kind)?;
        let root = type_of(memory, layout, metatype)?;
        Some(metatype == root && type_name(memory, layout, kind)? == "type code")
    };
    kind.and_then(is) == Some(true)
}

/// What the type object at `kind` calls itself, after the word `type`: what a hostile process has
/// there goes to a terminal.
fn type_name(memory: &impl Memory, layout: &Layout, kind: u64) -> Option<String> {
    let at = kind.wrapping_add(u64::from(layout.object_type) + TYPE_NAME);
    let text = read_bytes(memory, read_u64(memory, at)?, 16, 16)?;
    let end = text.iter().position(|byte| *byte == 0)?;
    let plain = text[..end]
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(byte));
    (plain && end > 0).then(|| format!("type {}", String::from_utf8_lossy(&text[..end])))
}

#[cfg(test)]
mod tests;
