//! Every CPython that a process has mapped, where it lies in it, and what there is to say of that:
//! most have one, some none or two. Whether one is up, and is what it claims to be, is not looked at.

use std::io;
use std::sync::Arc;

use anyhow::Result;
use profiler_ebpf::Target;
use profiler_ebpf::python::Memory;

use super::accessors::ThreadLocal;
use super::binary::{Look, Python};
use super::elf::Segment;
use super::embedder::Embedder;
use super::{Binaries, Interpreter, Mapping, look, mappings};
use crate::memory::{ProcessMemory, read_u64};

/// The page size of x86-64: mappings begin at multiples of it.
const PAGE: u64 = 4096;

/// What a program that Nuitka compiled can't be shown of. It makes frames for functions that may fail,
/// sets no instruction in them, and owns them as generators do: `CompiledFrameType.c` of Nuitka 4.3.
const NUITKA: &str = "the program is compiled by Nuitka: a compiled function is shown where Nuitka \
    makes a frame for it, at the line where it begins, else its time counts for its caller; from \
    Python 3.11 on its stacks lack what tells their root and count as truncated; what is interpreted \
    is shown as ever";

/// A CPython in a process.
pub(super) struct Runtime {
    pub python: Arc<Python>,
    pub mapping: Mapping,
    pub interpreter: Interpreter,
    /// Whether its variables are where the program has a place for them, not where its file has.
    pub moved: bool,
}

/// What was found in the mappings of a process.
#[derive(Default)]
pub(super) struct Runtimes {
    /// In the order of addresses.
    pub runtimes: Vec<Runtime>,
    /// A Python that can't be walked: what it is, and why.
    pub unsupported: Option<(String, String)>,
    /// A file that could not be looked at.
    pub refused: Option<(io::Error, Mapping)>,
    /// Whether Nuitka made the program.
    nuitka: bool,
}

impl Runtimes {
    /// Those of process `pid`.
    ///
    /// # Errors
    /// When its mappings can't be read: it is gone or not ours to look at.
    pub(super) fn of(pid: u32, binaries: &mut Binaries) -> Result<Runtimes> {
        let memory = ProcessMemory::new(pid);
        let mut found = Runtimes::default();
        let mut pythons = Vec::new();
        let mut copies = None;
        for mapping in mappings::executable_files(pid)? {
            match look(pid, &mapping, binaries) {
                Ok(Look::Python(python)) => pythons.push((python, mapping)),
                Ok(Look::NotPython) => {}
                Ok(Look::Embedder(embedder)) => {
                    found.nuitka |= embedder.nuitka;
                    copies = copies.or_else(|| Copies::of(&embedder, &mapping));
                }
                Ok(Look::Unsupported { what, why }) => {
                    found.unsupported.get_or_insert((what, why));
                }
                // A file that is gone by now; the others may do.
                Err(error) => {
                    found.refused.get_or_insert((error, mapping));
                }
            }
        }
        for (python, mapping) in pythons {
            let Some(interpreter) = place(&memory, &python, &mapping) else {
                continue;
            };
            found.nuitka |= python.nuitka;
            // The first library to be found by the loader has its variables there.
            let runtime = python.addresses.runtime;
            let moved = copies.take_if(|_| runtime != 0).and_then(|copies| {
                Some(copies.apply(
                    &interpreter,
                    runtime.wrapping_add(bias(&python.segments, &mapping)?),
                ))
            });
            let places = [(interpreter, false)].into_iter();
            for (interpreter, moved) in places.chain(moved.map(|interpreter| (interpreter, true))) {
                found.runtimes.push(Runtime {
                    python: python.clone(),
                    mapping: mapping.clone(),
                    interpreter,
                    moved,
                });
            }
        }
        Ok(found)
    }

    /// What there is to say of the runtime that is profiled, where `others` are in use, too.
    pub(super) fn remarks(&self, profiled: &Runtime, others: &[&Runtime]) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.nuitka {
            remarks.push(NUITKA.to_owned());
        }
        for other in others {
            remarks.push(format!(
                "a second interpreter runs in the process, {other}: it is not profiled, only {profiled} is"
            ));
        }
        remarks
    }
}

impl std::fmt::Display for Runtime {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (version, file) = (self.python.version, self.mapping.name());
        write!(formatter, "CPython {version} of {}", file.display())
    }
}

/// Where in a process the program has a place for variables of its libpython.
struct Copies {
    runtime: u64,
    code_type: u64,
}

impl Copies {
    fn of(embedder: &Embedder, mapping: &Mapping) -> Option<Copies> {
        let bias = bias(&embedder.segments, mapping)?;
        let at = |address: u64| match address {
            0 => 0,
            address => address.wrapping_add(bias),
        };
        (embedder.runtime != 0).then(|| Copies {
            runtime: at(embedder.runtime),
            code_type: at(embedder.code_type),
        })
    }

    /// `interpreter`, whose file has its runtime at `runtime`, with what is used in its place.
    fn apply(&self, interpreter: &Interpreter, runtime: u64) -> Interpreter {
        let mut moved = interpreter.clone();
        let target = &mut moved.target;
        for address in [
            &mut target.interpreters,
            &mut target.current,
            &mut target.tss_key,
        ] {
            if *address != 0 {
                *address = address.wrapping_sub(runtime).wrapping_add(self.runtime);
            }
        }
        if self.code_type != 0 {
            target.code_type = self.code_type;
        }
        moved
    }
}

/// The interpreter as this process has it: the file's addresses plus the load bias.
fn place(memory: &impl Memory, python: &Arc<Python>, mapping: &Mapping) -> Option<Interpreter> {
    let bias = bias(&python.segments, mapping)?;
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
        eval_loop: python
            .eval_loop
            .iter()
            .map(|part| part.start.wrapping_add(bias)..part.end.wrapping_add(bias))
            .collect(),
        checked: false,
        remarks: Vec::new(),
    })
}

/// How far above the file's own addresses it was loaded: the executable segment whose pages the
/// mapping begins with says so.
fn bias(segments: &[Segment], mapping: &Mapping) -> Option<u64> {
    let segment = segments.iter().find(|segment| {
        let first = segment.offset & !(PAGE - 1);
        let end = segment.offset.saturating_add(segment.file_size);
        segment.executable && (first..end).contains(&mapping.offset)
    })?;
    let address = segment.address.wrapping_sub(segment.offset);
    let address = address.wrapping_add(mapping.offset);
    Some(mapping.start.wrapping_sub(address))
}
