//! CPython as seen from outside: which process runs one, how its structures are laid out, and what
//! its code objects say. [`detect`] takes a pid and gives what the kernel program needs to walk its
//! frames. Everything that depends on a version is decided in this folder.

mod accessors;
mod binary;
mod check;
pub mod code;
mod debug_offsets;
mod dict;
mod elf;
mod embedder;
mod eval_loop;
pub(crate) mod fuzz;
mod lines;
mod mappings;
pub mod origin;
mod others;
#[cfg(test)]
mod recorded;
mod rows;
mod runtimes;
pub mod threads;
mod unicode;
mod version;

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};
use profiler_ebpf::python::Memory;
use profiler_ebpf::{Layout, Target, layout_flags};

use crate::memory::ProcessMemory;

use binary::Look;
use check::{Learnt, Verdict};
use elf::Image;
use runtimes::{Runtime, Runtimes};

pub use binary::Binaries;
pub use lines::LineTable;
pub use mappings::{Mapping, VDSO, mapped_files};
pub use rows::{Build, layout};
pub use version::Version;

/// How often, and how long apart, a check must fail before an interpreter is refused: the process
/// runs while it is looked at, and may be starting or ending.
const CHECKS: u32 = 10;
const CHECK_PAUSE: Duration = Duration::from_millis(1);

/// A CPython that runs in a process.
#[derive(Clone, Debug)]
pub struct Interpreter {
    pub version: Version,
    pub layout: Layout,
    /// Its addresses; state, id and layout index are left 0.
    pub target: Target,
    /// Whether a Python frame was found as the layout says, in this process or another one of the
    /// same file. Else there was none yet: to be detected again once it is sampled.
    pub checked: bool,
    /// Where the code lies of which each run stands for one Python frame. None where several may share
    /// one, from 3.11 on, or where it was not found.
    pub eval_loop: Vec<Range<u64>>,
    /// What a person should know of what can't be shown of it, a sentence each.
    pub remarks: Vec<String>,
}

/// What runs in a process.
#[derive(Clone, Debug)]
pub enum Detection {
    Python(Box<Interpreter>),
    /// Nothing that it has mapped is a CPython.
    NotPython,
    /// A Python that can't be walked.
    Unsupported {
        /// What it is, with its version as far as that was seen: `CPython 3.16.0a1`, `PyPy`.
        what: String,
        why: String,
    },
}

/// Looks at what process `pid` has mapped. A file that `binaries` knows is not read again.
///
/// A process that has just started may not have mapped its libpython yet: `NotPython` holds for
/// now only. What is found is checked against the live process before it is trusted.
///
/// # Errors
/// When the process is gone, or its mappings or memory are not ours to read.
pub fn detect(pid: u32, binaries: &mut Binaries) -> Result<Detection> {
    let memory = ProcessMemory::new(pid);
    let found = Runtimes::of(pid, binaries)?;
    let mut used = Vec::new();
    for runtime in &found.runtimes {
        let mut head = [0; 8];
        memory
            .try_read(runtime.interpreter.target.interpreters, &mut head)
            .with_context(|| format!("cannot read the memory of process {pid}"))?;
        if head != [0; 8] {
            used.push(runtime);
        }
    }
    // An executable with a runtime of its own can load a libpython: the one in use has an
    // interpreter. Where several have, it is one that has a frame, or else the executable's, which
    // lies lowest.
    if used.len() > 1 {
        let runs = |runtime: &Runtime| check::check(&memory, &runtime.interpreter);
        used.sort_by_cached_key(|runtime| !matches!(runs(runtime), Verdict::Holds(_)));
    }
    if let Some(first) = used.first().copied().or(found.runtimes.first()) {
        let mut interpreter = first.interpreter.clone();
        interpreter.remarks = found.remarks(first, used.get(1..).unwrap_or_default());
        return Ok(match used.is_empty() {
            true => Detection::Python(Box::new(interpreter)),
            false => checked(&memory, first, interpreter),
        });
    }
    if let Some((what, why)) = found.unsupported {
        return Ok(Detection::Unsupported { what, why });
    }
    let Some((error, mapping)) = found.refused else {
        return Ok(Detection::NotPython);
    };
    let name = mapping.name();
    let name = name.display();
    Err(error).with_context(|| format!("cannot open {name}, mapped by process {pid}"))
}

/// Checks an interpreter, unless its file was found right in another process, and completes it with
/// what was learnt.
fn checked(memory: &impl Memory, runtime: &Runtime, mut interpreter: Interpreter) -> Detection {
    let python = &runtime.python;
    let bias = interpreter
        .target
        .interpreters
        .wrapping_sub(python.addresses.interpreters);
    // What lies in another place than the file says tells nothing of other processes.
    if let Some(learnt) = python.learnt.get().filter(|_| !runtime.moved) {
        interpreter.learn(learnt, bias);
        return Detection::Python(Box::new(interpreter));
    }
    let mut failure = String::new();
    for attempt in 0..CHECKS {
        if attempt > 0 {
            std::thread::sleep(CHECK_PAUSE);
        }
        match check::check(memory, &interpreter) {
            Verdict::Holds(learnt) => {
                interpreter.learn(&learnt, 0);
                let code_type = learnt.code_type.wrapping_sub(bias);
                if !runtime.moved {
                    // Another thread can't have set it: `binaries` is ours alone for now.
                    let _ = python.learnt.set(Learnt {
                        code_type,
                        ..learnt
                    });
                }
                return Detection::Python(Box::new(interpreter));
            }
            Verdict::NotUpYet => return Detection::Python(Box::new(interpreter)),
            Verdict::Fails(seen) => failure = seen,
        }
    }
    Detection::Unsupported {
        what: format!("CPython {}", interpreter.version),
        why: format!("it is not laid out as that version is: {failure}"),
    }
}

#[cfg(test)]
impl Interpreter {
    /// One of 3.12.1 that is nowhere.
    pub(crate) fn of_test() -> Interpreter {
        Interpreter {
            version: Version {
                major: 3,
                minor: 12,
                micro: 1,
            },
            layout: layout(12).expect("there is a row for it"),
            target: Target::default(),
            checked: true,
            eval_loop: Vec::new(),
            remarks: Vec::new(),
        }
    }
}

impl Interpreter {
    fn learn(&mut self, learnt: &Learnt, bias: u64) {
        if learnt.musl {
            self.layout.flags |= layout_flags::MUSL;
        }
        self.target.code_type = learnt.code_type.wrapping_add(bias);
        self.checked = true;
    }
}

/// What a mapped file is.
fn look(pid: u32, mapping: &Mapping, binaries: &mut Binaries) -> std::io::Result<Look> {
    mapping
        .file(pid)
        .and_then(|(path, metadata)| binaries.look(&metadata, || std::fs::File::open(&path)))
        .or_else(|error| in_memory(pid, mapping).ok_or(error))
}

/// What a file is that is gone, or not ours to open, as far as the process has it mapped.
fn in_memory(pid: u32, mapping: &Mapping) -> Option<Look> {
    let start = mappings::first_byte(pid, mapping)?;
    Image::mapped(ProcessMemory::new(pid), start).map(binary::look)
}

/// Whether a file that process `pid` has mapped is a Python, of whatever kind and version.
///
/// # Errors
/// When the file can't be read: the process, or the mapping, is gone.
pub fn is_python(pid: u32, mapping: &Mapping, binaries: &mut Binaries) -> std::io::Result<bool> {
    let look = mapping
        .file(pid)
        .and_then(|(path, metadata)| binaries.look(&metadata, || std::fs::File::open(&path)))
        .or_else(|error| in_memory(pid, mapping).ok_or(error))?;
    Ok(!matches!(look, Look::NotPython | Look::Embedder(_)))
}
