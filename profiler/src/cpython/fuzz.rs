//! The parsers of this folder for `crate::fuzz`: each takes bytes, and asserts what must hold of
//! whatever comes out.

use std::io::Write as _;

use bytemuck::{Pod, Zeroable as _};
use profiler_ebpf::python::{CODE_SPAN_MAX, FRAME_SPAN_MAX, Memory};
use profiler_ebpf::{Layout, Target};

use super::accessors::{self, Function};
use super::binary::{Look, look};
use super::elf::Image;
use super::lines::LineTable;
use super::unicode::read_str;
use super::{Build, Interpreter, Version, threads};
use super::{
    check as checks, code as objects, debug_offsets as offsets, dict as dictionaries, mappings,
    others,
};

/// Takes values off the front of an input; zeros when it has ended.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn take<T: Pod>(&mut self) -> T {
        let mut value = T::zeroed();
        let (head, rest) = self.0.split_at(self.0.len().min(size_of::<T>()));
        bytemuck::bytes_of_mut(&mut value)[..head.len()].copy_from_slice(head);
        self.0 = rest;
        value
    }

    /// The layout of one of the builds, 0 being 3.6.
    pub(crate) fn layout(&mut self) -> Layout {
        let builds = Build::ALL;
        let build = builds[(usize::from(self.take::<u8>()) + 1) % builds.len()];
        super::layout(build).expect("each of these builds has a row")
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// The bytes of an input as the memory of a process: the same again and again up to 2^32, so that
/// most pointers lead somewhere, and nothing above.
pub(crate) struct Wrapped<'a>(pub(crate) &'a [u8]);

impl Memory for Wrapped<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        if self.0.is_empty() || address >> 32 != 0 {
            return false;
        }
        let start = address as usize % self.0.len();
        let bytes = self.0.iter().cycle().skip(start);
        into.iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        true
    }
}

/// An interpreter whose addresses are of any value, a thread's control block, and their memory.
pub(crate) fn interpreter(bytes: &[u8]) -> (Interpreter, u64, Wrapped<'_>) {
    let mut input = Input(bytes);
    let layout = input.layout();
    let control_block: u32 = input.take();
    let mut target = Target::zeroed();
    for address in [
        &mut target.interpreters,
        &mut target.current,
        &mut target.tss_key,
        &mut target.code_type,
    ] {
        *address = input.take::<u32>().into();
    }
    target.tls_offset = input.take::<i32>().into();
    target.tls_module = input.take::<u8>().into();
    let interpreter = Interpreter {
        version: Version {
            major: 3,
            minor: layout.version as u8,
            micro: 0,
        },
        layout,
        target,
        checked: false,
        remarks: Vec::new(),
        eval_loop: Vec::new(),
    };
    (interpreter, control_block.into(), Wrapped(input.rest()))
}

/// An interpreter that claims to be one, and the names of its threads.
pub(crate) fn check(bytes: &[u8]) {
    let (interpreter, _, memory) = interpreter(bytes);
    let _any = checks::check(&memory, &interpreter);
    let _any = threads::named(&memory, &interpreter);
}

/// The file of an executable or a library.
pub(crate) fn elf(bytes: &[u8]) {
    let in_memory = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile());
    let mut file = in_memory.expect("a temporary file can be made");
    file.write_all(bytes).expect("it can be written");
    let Some(image) = Image::open(file) else {
        return;
    };
    let _any = others::look(&image);
    let _any = offsets::find(&image);
    if let Look::Python(python) = look(image) {
        within_bounds(&python.layout);
    }
}

/// The start of `_PyRuntime`, from 3.13 on.
pub(crate) fn debug_offsets(bytes: &[u8]) {
    let _any = offsets::version(bytes);
    if let Ok((layout, _)) = offsets::parse(bytes) {
        within_bounds(&layout);
    }
}

/// What the kernel program's buffers can hold.
fn within_bounds(layout: &Layout) {
    assert!((layout.frame_span as usize) < FRAME_SPAN_MAX);
    assert!((layout.code_span as usize) < CODE_SPAN_MAX);
}

/// The code of a function, and where it lies.
pub(crate) fn accessors(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (address, runtime) = (input.take(), input.take());
    let code = input.rest();
    let function = Function { code, address };
    for runtime in [None, Some(runtime)] {
        let _any = accessors::returned(function, runtime);
        let _any = accessors::thread_key(function, runtime, |key| key & 1 == 0);
    }
    let _any = accessors::thread_local(function);
    assert!(accessors::taken_addresses(function).count() <= code.len());
}

/// The text of `/proc/PID/maps`.
pub(crate) fn maps(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for mapping in mappings::parse(&text) {
        assert!(mapping.start < mapping.end && mapping.inode != 0);
        let _any = mapping.name();
        let _any = mappings::first_byte_in(&text, &mapping);
    }
}

/// A line table, and the instruction that is asked for.
pub(crate) fn lines(bytes: &[u8]) {
    let mut input = Input(bytes);
    let version = input.layout().version;
    let (first, instruction) = (input.take(), input.take());
    let table = LineTable::new(version, first, input.rest().to_vec());
    for instruction in [instruction, 0, -1, i32::MAX, i32::MIN] {
        let _any = table.line(instruction);
    }
}

/// A `str` at address 0.
pub(crate) fn text(bytes: &[u8]) {
    let mut input = Input(bytes);
    let layout = input.layout();
    let limit = usize::from(input.take::<u16>());
    if let Ok(text) = read_str(&Wrapped(input.rest()), &layout, 0, limit) {
        assert!(text.chars().count() <= limit);
    }
}

/// A code object at the start of the memory, of whatever type stands there.
pub(crate) fn code(bytes: &[u8]) {
    let mut input = Input(bytes);
    let layout = input.layout();
    let (kind, instruction) = (input.take::<u32>(), input.take());
    let memory = Wrapped(input.rest());
    // Nothing is at address 0; the memory begins again at its end.
    let start = memory.0.len() as u64;
    if let Ok(code) = objects::read(&memory, &layout, kind.into(), start, 0) {
        let _any = (code.phantom(), code.lines.line(instruction));
        assert!(code.lines.bytes() < 1 << 20 && code.name.len() < 1 << 16);
    }
}

/// A dictionary at address 0.
pub(crate) fn dict(bytes: &[u8]) {
    let mut input = Input(bytes);
    let layout = input.layout();
    let memory = Wrapped(input.rest());
    if let Some(entries) = dictionaries::entries(&memory, &layout, 0) {
        assert!(entries.len() <= 1 << 17);
    }
}
