//! Copies of code objects: they are read as the process itself would be and say the same, on every
//! version; what could not be copied is missing, never wrong.

use std::cell::Cell;
use std::collections::BTreeSet;

use bytemuck::Zeroable;
use profiler_ebpf::python::{Capture, Memory, Walk};
use profiler_ebpf::{Frame, Layout, MAX_CAPTURES};
use pyebpf::cpython::Build;
use pyebpf::cpython::code::{self, Code, Reason};
use pyebpf::sample::{Captured, Record, decode};

use super::BUILDS;
use super::recording::{Recording, empty_walk};

pub(crate) fn empty_capture() -> Box<Capture> {
    Box::new(Capture::zeroed())
}

/// Goes through a walk's stack as the kernel program does; what it sends is in `sent`.
pub(crate) fn capture(
    capture: &mut Capture,
    sent: &mut BTreeSet<u64>,
    walk: &Walk,
    memory: &impl Memory,
    layout: &Layout,
) -> Vec<Captured> {
    let mut captured = Vec::new();
    capture.begin(7);
    while let Some(hash) = capture.step(walk) {
        if hash == 0 || sent.contains(&hash) {
            continue;
        }
        if !capture.may_copy() {
            capture.leave();
            break;
        }
        if !capture.copy(memory, layout) {
            capture.leave();
            continue;
        }
        sent.insert(hash);
        if let Some(Record::Code(code)) = decode(capture.record()) {
            captured.push(code);
        }
    }
    captured
}

/// A recording whose pages are whole, and its longer stack.
fn load(build: Build) -> (Recording, Box<Walk>) {
    let mut recording = Recording::load(build);
    recording.memory.fill();
    let mut walk = recording.walk_main();
    walk.name(7, 3);
    (recording, walk)
}

fn all(walk: &Walk, memory: &impl Memory, layout: &Layout) -> (Vec<Captured>, Box<Capture>) {
    let mut state = empty_capture();
    let captured = capture(&mut state, &mut BTreeSet::new(), walk, memory, layout);
    (captured, state)
}

fn read(recording: &Recording, captured: &Captured) -> Result<Code, Reason> {
    let (layout, code_type) = (&recording.layout, recording.target.code_type);
    let Captured {
        address, identity, ..
    } = *captured;
    code::read(captured, layout, code_type, address, identity)
}

fn read_live(recording: &Recording, captured: &Captured) -> Code {
    let (layout, code_type) = (&recording.layout, recording.target.code_type);
    let Captured {
        address, identity, ..
    } = *captured;
    code::read(&recording.memory, layout, code_type, address, identity).unwrap()
}

#[test]
fn copies_say_what_the_process_says() {
    for build in BUILDS {
        let (recording, walk) = load(build);
        let (captured, state) = all(&walk, &recording.memory, &recording.layout);
        assert!(state.is_complete() && state.is_whole(), "{build}");
        let frames = &walk.frames[..walk.stack.frames as usize];
        let codes: BTreeSet<u64> = frames.iter().map(|frame| frame.code).collect();
        let copied: BTreeSet<u64> = captured.iter().map(|code| code.address).collect();
        assert_eq!(copied, codes, "{build}");
        assert_eq!(copied.len(), captured.len(), "{build}: each once");
        for code in &captured {
            assert_eq!(code.target, 3);
            let expected = read_live(&recording, code);
            assert_eq!(read(&recording, code), Ok(expected), "{build}");
        }
    }
}

#[test]
fn an_object_that_another_has_replaced_is_not_named() {
    for build in BUILDS {
        let (mut recording, walk) = load(build);
        let frames = &walk.frames[..walk.stack.frames as usize];
        let codes: BTreeSet<u64> = frames.iter().map(|frame| frame.code).collect();
        for code in codes {
            let line = code + u64::from(recording.layout.code_first_line);
            let other = recording.memory.half(line) ^ 1 << 20;
            recording.memory.write_half(line, other);
        }
        let (captured, _) = all(&walk, &recording.memory, &recording.layout);
        assert!(!captured.is_empty());
        for code in &captured {
            assert_eq!(read(&recording, code), Err(Reason::Replaced), "{build}");
        }
    }
}

/// Memory of which one read fails.
struct Failing<'a, M> {
    memory: &'a M,
    fails: u32,
    reads: Cell<u32>,
}

impl<M: Memory> Memory for Failing<'_, M> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let number = self.reads.get();
        self.reads.set(number + 1);
        number != self.fails && self.memory.read(address, into)
    }
}

#[test]
fn whatever_can_t_be_read_is_missing_and_not_wrong() {
    for build in BUILDS {
        let (recording, walk) = load(build);
        let (whole, _) = all(&walk, &recording.memory, &recording.layout);
        let mut missing = 0;
        for fails in 0.. {
            let memory = Failing {
                memory: &recording.memory,
                fails,
                reads: Cell::new(0),
            };
            let (captured, state) = all(&walk, &memory, &recording.layout);
            if memory.reads.get() <= fails {
                break;
            }
            // An object that could not be read is tried again where it stands in the stack anew.
            assert!(!state.is_complete() || captured.len() == whole.len());
            assert!(!state.is_whole(), "{build}: read {fails}");
            for code in &captured {
                let expected = read_live(&recording, code);
                let found = read(&recording, code);
                if found.is_err() {
                    missing += 1;
                    let (layout, kind) = (&recording.layout, recording.target.code_type);
                    let names = code::read_names(code, layout, kind, code.address, code.identity);
                    assert!(names.is_err() || names.is_ok_and(|code| code.name == expected.name));
                } else {
                    assert_eq!(found, Ok(expected), "{build}: read {fails}");
                }
            }
        }
        assert!(missing > 20, "{build}: {missing}");
    }
}

#[test]
fn names_are_left_where_the_table_could_not_be_copied() {
    for build in BUILDS {
        let (mut recording, walk) = load(build);
        let layout = recording.layout;
        let frame = walk.frames[0];
        let field = frame.code + u64::from(layout.code_linetable);
        let table = recording.memory.word(field);
        let size = table + u64::from(layout.bytes_size);
        recording.memory.write_word(size, 3585);
        let (captured, state) = all(&walk, &recording.memory, &layout);
        assert!(state.is_complete() && !state.is_whole(), "{build}");
        let code = captured.iter().find(|code| code.address == frame.code);
        let code = code.unwrap();
        assert_eq!(read(&recording, code), Err(Reason::Unreadable), "{build}");
        let kind = recording.target.code_type;
        let names = code::read_names(code, &layout, kind, code.address, code.identity).unwrap();
        assert_eq!(names.name, recording.main().frames[0].name);
        assert_eq!(names.lines.line(frame.instruction), None);
    }
}

/// Memory of zeros.
struct Zeros;

impl Memory for Zeros {
    fn read(&self, _: u64, into: &mut [u8]) -> bool {
        into.fill(0);
        true
    }
}

#[test]
fn what_is_too_much_for_one_sample_is_copied_at_the_next() {
    let layout = pyebpf::cpython::layout(12).unwrap();
    let mut walk = empty_walk();
    let count = 2 * MAX_CAPTURES + 10;
    walk.stack.frames = 2 * count;
    for number in 0..2 * count {
        walk.frames[number as usize] = Frame {
            code: 0x1000 + u64::from(number % count) * 64,
            instruction: number as i32,
            // The last has none: it may be another object the next time.
            identity: (number % count + 1) % count,
        };
    }
    let (mut state, mut sent) = (empty_capture(), BTreeSet::new());
    let mut copied = Vec::new();
    let mut rounds = Vec::new();
    while rounds.last() != Some(&0) {
        let captured = capture(&mut state, &mut sent, &walk, &Zeros, &layout);
        rounds.push(captured.len() as u32);
        copied.extend(captured.iter().map(|code| code.address));
        let all = copied.len() as u32 == count - 1;
        assert_eq!(state.is_complete(), all, "{rounds:?}");
    }
    assert_eq!(rounds, [MAX_CAPTURES, MAX_CAPTURES, 9, 0]);
    copied.sort_unstable();
    copied.dedup();
    assert_eq!(copied.len() as u32, count - 1);
}
