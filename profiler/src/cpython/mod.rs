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
pub(crate) mod fuzz;
mod lines;
mod mappings;
pub mod origin;
mod others;
#[cfg(test)]
mod recorded;
mod rows;
pub mod threads;
mod unicode;
mod version;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use profiler_ebpf::python::Memory;
use profiler_ebpf::{Layout, Target, layout_flags};

use crate::memory::{ProcessMemory, read_u64};

use accessors::ThreadLocal;
use binary::{Look, Python};
use check::{Learnt, Verdict};
use elf::Image;

pub use binary::Binaries;
pub use lines::LineTable;
pub use mappings::Mapping;
pub use rows::{Build, layout};
pub use version::Version;

/// The page size of x86-64: mappings begin at multiples of it.
const PAGE: u64 = 4096;

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
    let mut unsupported = None;
    let mut refused = None;
    let mut found: Option<Interpreter> = None;
    for mapping in mappings::executable_files(pid)? {
        let python = match look(pid, &mapping, binaries) {
            Ok(Look::Python(python)) => python,
            Ok(Look::NotPython) => continue,
            Ok(Look::Unsupported { what, why }) => {
                unsupported.get_or_insert(Detection::Unsupported { what, why });
                continue;
            }
            // A file that is gone by now; the others may do.
            Err(error) => {
                refused.get_or_insert((error, mapping));
                continue;
            }
        };
        let Some(interpreter) = place(&memory, &python, &mapping) else {
            continue;
        };
        // An executable with a runtime of its own can load a libpython: the one in use has an
        // interpreter. Where both have one it is the executable's, which lies lowest.
        let mut head = [0; 8];
        memory
            .try_read(interpreter.target.interpreters, &mut head)
            .with_context(|| format!("cannot read the memory of process {pid}"))?;
        if head != [0; 8] {
            return Ok(checked(&memory, &python, interpreter));
        }
        found.get_or_insert(interpreter);
    }
    match (found, unsupported, refused) {
        (Some(interpreter), ..) => Ok(Detection::Python(Box::new(interpreter))),
        (None, Some(unsupported), _) => Ok(unsupported),
        (None, None, Some((error, mapping))) => {
            let name = mapping.name();
            let name = name.display();
            Err(error).with_context(|| format!("cannot open {name}, mapped by process {pid}"))
        }
        (None, None, None) => Ok(Detection::NotPython),
    }
}

/// Checks an interpreter, unless its file was found right in another process, and completes it with
/// what was learnt.
fn checked(memory: &impl Memory, python: &Python, mut interpreter: Interpreter) -> Detection {
    let bias = interpreter
        .target
        .interpreters
        .wrapping_sub(python.addresses.interpreters);
    if let Some(learnt) = python.learnt.get() {
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
                // Another thread can't have set it: `binaries` is ours alone for now.
                let _ = python.learnt.set(Learnt {
                    code_type,
                    ..learnt
                });
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
    Ok(!matches!(look, Look::NotPython))
}

/// The interpreter as this process has it: the file's addresses plus the load bias.
fn place(memory: &impl Memory, python: &Arc<Python>, mapping: &Mapping) -> Option<Interpreter> {
    let bias = bias(python, mapping)?;
    let at = |address: u64| match address {
        0 => 0,
        address => address.wrapping_add(bias),
    };
    let addresses = &python.addresses;
    let (tls_module, tls_offset) = match addresses.thread_local {
        None => (0, 0),
        Some(ThreadLocal::Fixed(offset)) => (0, offset),
        Some(ThreadLocal::Stored { slot }) => (0, read_u64(memory, at(slot))? as i64),
        Some(ThreadLocal::Described { slot, offset }) => {
            let argument = read_u64(memory, at(slot).wrapping_add(8))?;
            // The offset from the thread control block, for what was there when the program began;
            // else where the module and the offset in its block stand (glibc and musl alike).
            match argument as i64 {
                fixed @ -0x100_0000..0 => (0, fixed.wrapping_add(offset)),
                _ => {
                    let module = read_u64(memory, argument)?;
                    let stored = read_u64(memory, argument.wrapping_add(8))? as i64;
                    (module, stored.wrapping_add(offset))
                }
            }
        }
        Some(ThreadLocal::Module { slot, offset }) => {
            let module = read_u64(memory, at(slot))?;
            let stored = read_u64(memory, at(slot).wrapping_add(8))? as i64;
            (module, stored.wrapping_add(offset))
        }
    };
    Some(Interpreter {
        version: python.version,
        layout: python.layout,
        target: Target {
            interpreters: at(addresses.interpreters),
            current: at(addresses.current),
            tss_key: at(addresses.tss_key),
            tls_offset,
            tls_module,
            code_type: at(addresses.code_type),
            ..Target::default()
        },
        checked: false,
    })
}

/// How far above the file's own addresses it was loaded: the executable segment whose pages the
/// mapping begins with says so.
fn bias(python: &Python, mapping: &Mapping) -> Option<u64> {
    let segment = python.segments.iter().find(|segment| {
        let first = segment.offset & !(PAGE - 1);
        let end = segment.offset.saturating_add(segment.file_size);
        segment.executable && (first..end).contains(&mapping.offset)
    })?;
    let address = segment.address.wrapping_sub(segment.offset);
    let address = address.wrapping_add(mapping.offset);
    Some(mapping.start.wrapping_sub(address))
}
