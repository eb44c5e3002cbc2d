//! Every parser of foreign bytes behind a function that takes bytes, for fuzzers and for nothing
//! else. A parser may give anything or nothing for any input; it may not panic, take more than its
//! bounds allow, or run on without end. What else must hold of its result is asserted here.

use bytemuck::Zeroable;
use profiler_ebpf::python::Walk;
use profiler_ebpf::{MAX_FRAMES, MAX_STEPS, Outcome, Sample, Stack};

use crate::agent::pods;
use crate::bpf;
use crate::cpython::fuzz::{Input, interpreter};
use crate::cpython::{self, code};
use crate::sample::{Record, decode};
use crate::symbolize::{kernel::kallsyms, native};
use crate::target;
use crate::unwind::{Rules, Table};

/// A parser by its name.
pub type Parser = (&'static str, fn(&[u8]));

/// All of them. `tests/data/fuzz` has a folder of inputs for each.
pub const PARSERS: [Parser; 23] = [
    ("accessors", cpython::fuzz::accessors),
    ("captured", captured),
    ("cgroup", target::fuzz::cgroup),
    ("check", cpython::fuzz::check),
    ("code", cpython::fuzz::code),
    ("debug_offsets", cpython::fuzz::debug_offsets),
    ("dict", cpython::fuzz::dict),
    ("elf", cpython::fuzz::elf),
    ("jit_dump", native::fuzz::dumps_of_code),
    ("kallsyms", kallsyms::fuzz),
    ("lines", cpython::fuzz::lines),
    ("mangled", native::fuzz::mangled),
    ("maps", cpython::fuzz::maps),
    ("mounts", target::fuzz::mounts),
    ("native", native::fuzz::native),
    ("pods", pods::fuzz::answers),
    ("record", record),
    ("sideband", bpf::fuzz::sideband),
    ("stat", target::fuzz::stat),
    ("symbols", native::fuzz::maps_of_symbols),
    ("text", cpython::fuzz::text),
    ("unwind", unwind),
    ("walk", walk),
];

/// A record of the ring buffer.
fn record(bytes: &[u8]) {
    match decode(bytes) {
        Some(Record::Sample { .. }) => assert!(bytes.len() >= size_of::<Sample>()),
        Some(Record::Stack { frames, .. }) => {
            let taken = size_of::<Stack>() + frames.bytes();
            assert!(taken <= bytes.len() && frames.python.len() <= MAX_FRAMES);
        }
        _ => {}
    }
}

/// The unwind information of an ELF file.
fn unwind(bytes: &[u8]) {
    let mut rules = Rules::default();
    let Ok(table) = Table::parse(bytes, &mut rules) else {
        return;
    };
    let rows = &table.rows;
    assert!(rows.is_sorted_by(|one, next| one.start < next.start));
    assert!(rows.iter().all(|row| usize::from(row.rule) < rules.len()));
    let packed = table.packed();
    let head = packed.words.len() - rows.len();
    assert!(packed.words[..head].is_sorted());
}

/// A code object in a record of the ring buffer, of the type that stands before it.
fn captured(bytes: &[u8]) {
    let mut input = Input(bytes);
    let layout = input.layout();
    let (kind, instruction) = (input.take::<u64>(), input.take());
    let record = input.rest();
    let Some(Record::Code(captured)) = decode(record) else {
        return;
    };
    assert!(captured.bytes() <= size_of_val(&captured) + record.len());
    let (at, identity) = (captured.address, captured.identity);
    for read in [code::read, code::read_names] {
        if let Ok(code) = read(&captured, &layout, kind, at, identity) {
            let _any = (code.phantom(), code.lines.line(instruction));
            // What is no ASCII takes up to three times as much as text of ours.
            assert!(code.lines.bytes() <= record.len() && code.name.len() <= 3 * record.len());
        }
    }
}

/// The walk of the kernel program, over memory and addresses of any content.
fn walk(bytes: &[u8]) {
    let (interpreter, control_block, memory) = interpreter(bytes);
    let (layout, target) = (interpreter.layout, interpreter.target);
    let mut walk = Box::new(Walk::zeroed());
    walk.sample.outcome = u8::MAX;
    if walk.begin(&memory, &layout, &target, control_block) {
        let _ended = (0..MAX_STEPS).any(|_| !walk.step(&memory, &layout, &target));
    }
    assert!(Outcome::from_number(walk.sample.outcome).is_some());
    let frames = walk.stack.frames as usize;
    assert!(frames <= MAX_FRAMES && walk.sample.gil <= 1);
    for frame in walk.frames[..frames].iter().take(3) {
        let (at, identity) = (frame.code, frame.identity);
        let _any = code::read(&memory, &layout, target.code_type, at, identity);
    }
}
