//! Stacks that are made up: a few words of memory, and a rule for each function.

use std::collections::BTreeMap;

use bytemuck::Zeroable as _;
use profiler_ebpf::native::{Entries, NEWER_UNTOLD, Native, address, newer};
use profiler_ebpf::python::Memory;
use profiler_ebpf::{Cfa, MAX_NATIVE, NativeEnd, RBP, RSP, Rbp, Rule};
use pyebpf::unwind::{Row, Rules};

use super::{Files, walk, walk_again};

/// Where the code is, 256 bytes for each function, and where the stack.
const CODE: u64 = 0x40_0000;
pub(crate) const STACK: u64 = 0x7ffd_0000_1000;
const FUNCTION: u32 = 256;

/// The stack by words; what is not there can't be read. A window that is read may end beyond it.
pub(crate) struct Words(pub(crate) BTreeMap<u64, u64>);

impl Memory for Words {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        for (at, byte) in (address..).zip(into.iter_mut()) {
            let word = self.0.get(&(at & !7)).copied().unwrap_or(0);
            *byte = word.to_ne_bytes()[(at & 7) as usize];
        }
        self.0
            .range(address & !7..address + into.len() as u64)
            .next()
            .is_some()
    }
}

pub(crate) fn words(words: &[(u64, u64)]) -> Words {
    Words(words.iter().map(|&(at, word)| (STACK + at, word)).collect())
}

/// The address of an instruction of a function.
pub(crate) fn code(function: u32, instruction: u64) -> u64 {
    CODE + u64::from(function * FUNCTION) + instruction
}

pub(crate) fn based(register: u8, offset: i32) -> Rule {
    Rule {
        cfa: Cfa::Register as u8,
        register,
        offset,
        ..Rule::default()
    }
}

pub(crate) fn special(cfa: Cfa) -> Rule {
    Rule {
        cfa: cfa as u8,
        ..Rule::default()
    }
}

/// The functions of a program, each with one rule.
pub(crate) fn program(functions: &[Rule]) -> Files {
    let mut files = Files::default();
    let mut rules = Rules::default();
    let rows: Vec<Row> = (0..)
        .zip(functions)
        .map(|(index, &rule)| Row {
            start: 0x1000 + index * FUNCTION,
            rule: rules.number(rule),
        })
        .collect();
    files.know(&rules);
    let end = code(rows.len() as u32, 0);
    files.map(CODE, end, 0x1000, &rows);
    files
}

pub(crate) fn entries(told: bool, met: &[(u64, u32)]) -> Entries {
    let mut entries = Entries::zeroed();
    entries.want(told);
    for &(at, frames) in met {
        entries.meet(STACK + at, frames);
    }
    entries
}

/// Likewise, after other walks.
fn again(native: &mut Native, memory: &Words, files: &Files, ip: u64) -> (Vec<u64>, NativeEnd) {
    let registers = [(RSP, STACK), (RBP, STACK + 0x40)];
    let none = entries(true, &[]);
    let (frames, end) = walk_again(native, memory, files, &none, ip, &registers);
    (frames.into_iter().map(address).collect(), end)
}

/// Walks from the first instruction of function 0.
pub(crate) fn check(memory: &Words, files: &Files, expected: &[u64], end: NativeEnd) {
    let registers = [(RSP, STACK), (RBP, STACK + 0x40)];
    let (frames, ended) = walk(memory, files, &entries(true, &[]), code(0, 0), &registers);
    let addresses: Vec<u64> = frames.into_iter().map(address).collect();
    assert_eq!((addresses.as_slice(), ended), (expected, end));
}

#[test]
fn callers_are_found_by_either_register() {
    // 0: by rsp, with rbp saved; 1: by rbp; 2: the first.
    let saves = Rule {
        rbp: Rbp::Saved as u8,
        rbp_offset: -16,
        ..based(RSP, 24)
    };
    let files = program(&[saves, based(RBP, 16), special(Cfa::End)]);
    let memory = words(&[(8, STACK + 0x80), (16, code(1, 5)), (0x88, code(2, 9))]);
    check(
        &memory,
        &files,
        &[code(0, 0), code(1, 5), code(2, 9)],
        NativeEnd::Complete,
    );
}

#[test]
fn a_realigned_frame_keeps_its_caller_s_frame_pointer_where_its_own_points() {
    // 0: gcc's for a function with vectors on its stack; 1: by rbp, which that has saved; 2: the first.
    let realigned = Rule {
        cfa: Cfa::Memory as u8,
        rbp: Rbp::Pointed as u8,
        ..based(RBP, -8)
    };
    let files = program(&[realigned, based(RBP, 16), special(Cfa::End)]);
    let memory = words(&[
        (0x38, STACK + 0x90),
        (0x40, STACK + 0xa0),
        (0x88, code(1, 5)),
        (0xa8, code(2, 9)),
    ]);
    check(
        &memory,
        &files,
        &[code(0, 0), code(1, 5), code(2, 9)],
        NativeEnd::Complete,
    );
}

#[test]
fn a_call_at_the_end_of_a_function_is_that_function_s() {
    // What function 1 returns to is the first instruction of function 2, which has another rule.
    let files = program(&[
        based(RSP, 8),
        based(RSP, 16),
        special(Cfa::None),
        special(Cfa::End),
    ]);
    let memory = words(&[(0, code(2, 0)), (16, code(3, 1))]);
    check(
        &memory,
        &files,
        &[code(0, 0), code(2, 0), code(3, 1)],
        NativeEnd::Complete,
    );
}

#[test]
fn a_signal_s_frame_gives_all_registers_and_an_instruction() {
    let files = program(&[
        based(RSP, 8),
        special(Cfa::Signal),
        based(RBP, 16),
        special(Cfa::End),
    ]);
    let memory = words(&[
        (0, code(1, 1)),
        (8 + 120, STACK + 0x300),
        (8 + 160, STACK + 0x200),
        // The first instruction of a function: one that runs, not one behind a call.
        (8 + 168, code(2, 0)),
        (0x308, code(3, 4)),
    ]);
    check(
        &memory,
        &files,
        &[code(0, 0), code(1, 1), code(2, 0), code(3, 4)],
        NativeEnd::Complete,
    );
}

#[test]
fn addresses_kept_in_memory_and_linkage_tables_are_followed() {
    let in_memory = Rule {
        cfa: Cfa::Memory as u8,
        register: RSP,
        offset: 16,
        add: 8,
        ..Rule::default()
    };
    let linkage = Rule {
        cfa: Cfa::Plt as u8,
        register: RSP,
        offset: 8,
        add: 11,
        ..Rule::default()
    };
    let files = program(&[in_memory, linkage, special(Cfa::End)]);
    let memory = words(&[
        (16, STACK + 0x100),
        (0x100, code(1, 11)),
        // Behind the push: the caller lies a word higher.
        (0x110, code(2, 1)),
    ]);
    check(
        &memory,
        &files,
        &[code(0, 0), code(1, 11), code(2, 1)],
        NativeEnd::Complete,
    );
}

#[test]
fn addresses_kept_behind_a_number_of_words_are_followed_from_the_newest_frame() {
    let indexed = Rule {
        cfa: Cfa::Indexed as u8,
        register: 9,
        offset: 8,
        add: 16,
        ..Rule::default()
    };
    let files = program(&[indexed, indexed, special(Cfa::End)]);
    let memory = words(&[(8 + 8 * 5, STACK + 0x100), (0x108, code(1, 5))]);
    let registers = [(RSP, STACK), (9, 5)];
    let (frames, end) = walk(&memory, &files, &entries(true, &[]), code(0, 0), &registers);
    let addresses: Vec<u64> = frames.into_iter().map(address).collect();
    assert_eq!(addresses, [code(0, 0), code(1, 5)]);
    assert_eq!(end, NativeEnd::Unsupported);
}

#[test]
fn every_way_to_end_is_told() {
    let one =
        |rule: Rule, memory: &Words, end| check(memory, &program(&[rule]), &[code(0, 0)], end);
    let nothing = words(&[(0, 0)]);
    one(special(Cfa::None), &nothing, NativeEnd::NoRule);
    one(special(Cfa::Unsupported), &nothing, NativeEnd::Unsupported);
    // A register of the newest frame that is 0 leads nowhere.
    one(based(3, 16), &nothing, NativeEnd::Unsupported);
    one(based(RSP, 0), &nothing, NativeEnd::BadStack);
    one(based(RSP, -8), &nothing, NativeEnd::BadStack);
    one(based(RSP, 0x10_0008), &nothing, NativeEnd::UnreadableStack);
    one(based(RSP, 12), &nothing, NativeEnd::UnreadableStack);
    one(based(RSP, 8), &nothing, NativeEnd::Complete);
    let elsewhere = words(&[(0, 0x1234)]);
    let files = program(&[based(RSP, 8)]);
    check(
        &elsewhere,
        &files,
        &[code(0, 0), 0x1234],
        NativeEnd::NoMapping,
    );
    check(&nothing, &Files::default(), &[], NativeEnd::NotLoaded);
    // A function that calls itself for ever.
    let endless: Vec<(u64, u64)> = (0..300).map(|at| (8 * at, code(0, 1))).collect();
    let mut expected = vec![code(0, 1); MAX_NATIVE];
    expected[0] = code(0, 0);
    check(&words(&endless), &files, &expected, NativeEnd::TooDeep);
}

#[test]
fn each_frame_tells_how_many_python_frames_are_newer() {
    // Frames of 32 bytes; those of functions 1 and 3 run the interpreter's loop, which has an entry
    // frame in them.
    let rules = [based(RSP, 32); 5];
    let mut files = program(&rules);
    let last = Row {
        start: 0x1000,
        rule: 100,
    };
    files.map(CODE + 0x1_0000, CODE + 0x1_0100, 0x1000, &[last]);
    files.rules.insert(100, special(Cfa::End));
    let outside = CODE + 0x1_0004;
    let memory: Vec<(u64, u64)> = (0..5)
        .map(|at| {
            (
                32 * at + 24,
                if at < 4 {
                    code(at as u32 + 1, 8)
                } else {
                    outside
                },
            )
        })
        .collect();
    let numbers = |entries: &Entries| -> Vec<u16> {
        let registers = [(RSP, STACK)];
        let (frames, end) = walk(&words(&memory), &files, entries, code(0, 0), &registers);
        assert_eq!(end, NativeEnd::Complete);
        frames.into_iter().map(newer).collect()
    };
    let met = [(32 + 8, 2), (3 * 32 + 16, 5)];
    assert_eq!(numbers(&entries(true, &met)), [0, 2, 2, 5, 5, 5]);
    // The very first and the very last word of a frame are its own.
    assert_eq!(numbers(&entries(true, &[(32, 7)])), [0, 7, 7, 7, 7, 7]);
    assert_eq!(numbers(&entries(true, &[(24, 7)])), [7, 7, 7, 7, 7, 7]);
    assert_eq!(numbers(&entries(true, &[])), [0; 6]);
    assert_eq!(numbers(&entries(false, &met)), [NEWER_UNTOLD; 6]);
}

#[test]
fn a_row_holds_up_to_the_next_in_whichever_block() {
    // In the first block and the third, at both ends of the fourth, and in the seventh.
    let starts = [0x1404, 0x1c10, 0x1c11, 0x2000, 0x23ff, 0x2c00];
    let kinds = [Cfa::End, Cfa::Unsupported];
    let ends = [NativeEnd::Complete, NativeEnd::Unsupported];
    let mut files = Files::default();
    let rows = starts.iter().zip(0..).map(|(&start, index)| Row {
        start,
        rule: index % 2,
    });
    // Another file's table before that.
    files.words.extend([7; 1000]);
    files.map(CODE, CODE + 0x3000, 0x1000, &rows.collect::<Vec<_>>());
    files.rules = (0..).zip(kinds.map(special)).collect();
    for offset in 0x1000..0x3000 {
        let before = starts.partition_point(|&start| u64::from(start) <= offset);
        let end = match before {
            0 => NativeEnd::NoRule,
            _ => ends[(before - 1) % 2],
        };
        let ip = CODE + offset - 0x1000;
        let (_, seen) = again(&mut Native::zeroed(), &words(&[]), &files, ip);
        assert_eq!(seen, end, "{offset:x}");
    }
}

#[test]
fn callers_of_the_last_walk_are_known_again_where_they_are_the_same() {
    // Frames of 16, 32 and 48 bytes, and the first.
    let sizes = [16, 32, 48].map(|size| based(RSP, size));
    let mut files = program(&[&sizes[..], &[special(Cfa::End)]].concat());
    files.id = 1;
    let mut native = Native::zeroed();
    let stack = words(&[(8, code(1, 5)), (40, code(2, 9)), (88, code(3, 1))]);
    let whole = [code(0, 0), code(1, 5), code(2, 9), code(3, 1)];
    let expected = (whole.to_vec(), NativeEnd::Complete);
    assert_eq!(again(&mut native, &stack, &files, code(0, 0)), expected);
    // Without a search but for the newest frame: what is known is what the rules were.
    let none = std::mem::take(&mut files.mappings);
    let newest = Files {
        mappings: vec![profiler_ebpf::Mapping {
            end: code(1, 0),
            ..none[0]
        }],
        words: files.words.clone(),
        rules: files.rules.clone(),
        id: 1,
    };
    files.mappings = none;
    for _ in 0..100 {
        assert_eq!(again(&mut native, &stack, &newest, code(0, 0)), expected);
    }
    // A caller that has another address at the same place, and one at another place.
    let other = words(&[(8, code(1, 5)), (40, code(1, 7)), (72, code(3, 1))]);
    let expected = (
        vec![code(0, 0), code(1, 5), code(1, 7), code(3, 1)],
        NativeEnd::Complete,
    );
    assert_eq!(again(&mut native, &other, &files, code(0, 0)), expected);
    // The same addresses, in other files.
    let mut others = program(&[sizes[0], special(Cfa::End)]);
    others.id = 2;
    let expected = (vec![code(0, 0), code(1, 5)], NativeEnd::Complete);
    assert_eq!(again(&mut native, &other, &others, code(0, 0)), expected);
}
