//! CPython as seen from outside: which process runs one, how its structures are laid out, and what
//! its code objects say. [`detect`] takes a pid and gives what the kernel program needs to walk its
//! frames. Everything that depends on a version is decided in this folder.

mod accessors;
mod binary;
pub mod code;
mod debug_offsets;
mod dict;
mod elf;
mod lines;
mod mappings;
#[cfg(test)]
mod recorded;
mod rows;
pub mod threads;
mod unicode;
mod version;

use std::sync::Arc;

use anyhow::{Context, Result};
use profiler_ebpf::python::Memory;
use profiler_ebpf::{Layout, Target};

use crate::memory::{ProcessMemory, read_u64};

use accessors::ThreadLocal;
use binary::{Look, Python};
use mappings::Mapping;

pub use binary::Binaries;
pub use lines::LineTable;
pub use rows::layout;
pub use version::Version;

/// The page size of x86-64: mappings begin at multiples of it.
const PAGE: u64 = 4096;

/// A CPython that runs in a process.
#[derive(Clone, Debug)]
pub struct Interpreter {
    pub version: Version,
    pub layout: Layout,
    /// Its addresses; state, id, layout index and `again` are left 0.
    pub target: Target,
}

/// What runs in a process.
#[derive(Clone, Debug)]
pub enum Detection {
    Python(Box<Interpreter>),
    /// Nothing that it has mapped is a CPython.
    NotPython,
    /// A CPython that can't be walked.
    Unsupported {
        /// The version seen, or `unknown`.
        version: String,
        why: String,
    },
}

/// Looks at what process `pid` has mapped. A file that `binaries` knows is not read again.
///
/// A process that has just started may not have mapped its libpython yet: `NotPython` holds for
/// now only.
///
/// # Errors
/// When the process is gone, or its mappings or memory are not ours to read.
pub fn detect(pid: u32, binaries: &mut Binaries) -> Result<Detection> {
    let memory = ProcessMemory::new(pid);
    let mut unsupported = None;
    let mut refused = None;
    let mut found: Option<Interpreter> = None;
    for mapping in mappings::executable_files(pid)? {
        let look = mapping
            .file(pid)
            .and_then(|(path, metadata)| binaries.look(&metadata, || std::fs::File::open(&path)));
        let python = match look {
            Ok(Look::Python(python)) => python,
            Ok(Look::NotPython) => continue,
            Ok(Look::Unsupported { version, why }) => {
                unsupported.get_or_insert(Detection::Unsupported { version, why });
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
        // interpreter.
        let mut head = [0; 8];
        memory
            .try_read(interpreter.target.interpreters, &mut head)
            .with_context(|| format!("cannot read the memory of process {pid}"))?;
        if head != [0; 8] {
            return Ok(Detection::Python(Box::new(interpreter)));
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
