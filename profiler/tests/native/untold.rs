//! The caller of code that tells nothing of its frames: known where the code says what it does before it
//! returns, guessed elsewhere, and given up where the guess leads nowhere.

use profiler_ebpf::native::{address, is_guessed};
use profiler_ebpf::{Cfa, NativeEnd, RBP, RSP, Rbp, Rule};

use super::made::{STACK, Words, based, check, code, entries, program, special, words};
use super::{Files, walk};

/// Code in no file.
const MADE: u64 = 0x7f00_0000_0100;
/// `call *%rax` before an address.
const CALL: &[u8] = &[0xff, 0xd0];

/// Puts bytes of code right before `end`, a multiple of 8 or one of its next bytes.
fn put(memory: &mut Words, end: u64, bytes: &[u8]) {
    for (at, &byte) in (end - bytes.len() as u64..).zip(bytes) {
        let word = memory.0.entry(at & !7).or_default();
        let mut all = word.to_ne_bytes();
        all[(at & 7) as usize] = byte;
        *word = u64::from_ne_bytes(all);
    }
}

/// Memory with these words of the stack and a call before each of these addresses.
fn stack(of: &[(u64, u64)], returns: &[u64]) -> Words {
    let mut memory = words(of);
    for &address in returns {
        put(&mut memory, address, CALL);
    }
    memory
}

/// The frames from `ip` on, each with whether it was guessed, and how the walk ended.
fn frames(memory: &Words, files: &Files, ip: u64, bp: u64) -> (Vec<(u64, bool)>, NativeEnd) {
    let registers = [(RSP, STACK), (RBP, bp)];
    let (frames, end) = walk(memory, files, &entries(true, &[]), ip, &registers);
    let frames = frames
        .into_iter()
        .map(|frame| (address(frame), is_guessed(frame)));
    (frames.collect(), end)
}

/// 0: tells nothing; 1: of 16 bytes; 2: the first; 3: of 32 bytes; 4: of 256.
fn files() -> Files {
    program(&[
        special(Cfa::None),
        based(RSP, 16),
        special(Cfa::End),
        based(RSP, 32),
        based(RSP, 256),
    ])
}

#[test]
fn the_caller_of_a_leaf_is_on_top_of_the_stack_behind_a_call() {
    let calls: [&[u8]; 6] = [
        &[0xe8, 1, 2, 3, 4],
        &[0xff, 0xd0],
        &[0xff, 0x50, 8],
        &[0xff, 0x54, 0x24, 8],
        &[0xff, 0x15, 1, 2, 3, 4],
        &[0xff, 0x94, 0x24, 1, 2, 3, 4],
    ];
    let jump: &[u8] = &[0xe9, 1, 2, 3, 4];
    let calls = calls.map(|call| (call, true)).into_iter();
    for (before, follows) in calls.chain([(jump, false)]) {
        let mut memory = stack(&[(0, code(4, 8)), (256, code(2, 8))], &[code(2, 8)]);
        put(&mut memory, code(4, 8), before);
        let (expected, end) = match follows {
            true => (
                &[code(0, 0), code(4, 8), code(2, 8)][..],
                NativeEnd::Complete,
            ),
            false => (&[code(0, 0)][..], NativeEnd::NoRule),
        };
        check(&memory, &files(), expected, end);
    }
}

/// What CPython calls each Python function through for perf (Python/asm_trampoline.S).
#[test]
fn the_caller_of_a_trampoline_is_known_at_each_of_its_instructions() {
    let aligned: &[&[u8]] = &[
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0x48, 0x83, 0xec, 8],
        &[0xff, 0xd1],
        &[0x48, 0x83, 0xc4, 8],
        &[0xc3],
    ];
    let framed: &[&[u8]] = &[
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0x55],
        &[0x48, 0x89, 0xe5],
        &[0xff, 0xd1],
        &[0x5d],
        &[0xc3],
    ];
    // Function 1's caller is found by the frame pointer.
    let files = program(&[special(Cfa::None), based(RBP, 16), special(Cfa::End)]);
    for (trampoline, pushed) in [(aligned, 2), (framed, 2)] {
        let bytes = trampoline.concat();
        for instruction in 0..trampoline.len() {
            let at = MADE + trampoline[..instruction].concat().len() as u64;
            let is_in = (pushed..trampoline.len() - 1).contains(&instruction);
            let caller_at = if is_in { 8 } else { 0 };
            let mut memory = words(&[(caller_at, code(1, 8)), (0x88, code(2, 8))]);
            if is_in {
                memory.0.insert(STACK, STACK + 0x80);
            }
            put(&mut memory, MADE + bytes.len() as u64, &bytes);
            // What the framed one has in its register once it has pushed its caller's.
            let bp = match is_in && pushed == 2 && trampoline == framed {
                true => STACK,
                false => STACK + 0x80,
            };
            let expected = [(at, false), (code(1, 8), false), (code(2, 8), false)];
            assert_eq!(
                frames(&memory, &files, at, bp),
                (expected.to_vec(), NativeEnd::Complete),
                "{trampoline:x?} at {instruction}"
            );
        }
    }
}

#[test]
fn code_in_no_file_is_passed_by_a_guess_that_says_so() {
    // 3 has called it; it has kept a frame pointer, and returns to 1.
    let memory = stack(
        &[
            (24, MADE + 8),
            (0x140, STACK + 0x180),
            (0x148, code(1, 8)),
            (0x158, code(2, 8)),
        ],
        &[code(1, 8), code(2, 8)],
    );
    let expected = [
        (code(3, 0), false),
        (MADE + 8, false),
        (code(1, 8), true),
        (code(2, 8), false),
    ];
    let (seen, end) = frames(&memory, &files(), code(3, 0), STACK + 0x140);
    assert_eq!((seen, end), (expected.to_vec(), NativeEnd::Complete));
    // Without a frame pointer, and one that lies elsewhere, or leads down.
    for bp in [0, STACK + 0x148, STACK + 0x10, STACK + 0x10_0000] {
        let (seen, end) = frames(&memory, &files(), code(3, 0), bp);
        assert_eq!(
            (seen.as_slice(), end),
            (&expected[..2], NativeEnd::NoMapping)
        );
    }
}

#[test]
fn a_guess_that_leads_nowhere_is_given_up() {
    // Above the stack pointer lies an old return address to 3, which has frames of 32 bytes; the frame
    // pointer leads to 1.
    let at = |old_leads_to: u64| {
        stack(
            &[
                (24, MADE + 8),
                (40, code(3, 8)),
                (40 + 32, old_leads_to),
                (0x160, 0),
                (0x168, code(1, 8)),
                (0x178, code(2, 8)),
            ],
            &[code(3, 8), code(1, 8), code(2, 8)],
        )
    };
    let walked = |memory: &Words, bp| frames(memory, &files(), code(3, 0), bp);
    let begin = [(code(3, 0), false), (MADE + 8, false)];
    let by_pointer = [&begin[..], &[(code(1, 8), true), (code(2, 8), false)]].concat();
    let nowhere = at(0x1234);
    assert_eq!(
        walked(&nowhere, STACK + 0x160),
        (by_pointer, NativeEnd::Complete)
    );
    assert_eq!(walked(&nowhere, 0), (begin.to_vec(), NativeEnd::NoMapping));
    // Every second word of some is looked at.
    for (at, found) in [
        (56, true),
        (48, false),
        (40 + 16 * 10, true),
        (40 + 16 * 11, false),
    ] {
        let words = [(24, MADE + 8), (at, code(1, 8)), (at + 16, code(2, 8))];
        let memory = stack(&words, &[code(1, 8), code(2, 8)]);
        let (seen, end) = walked(&memory, 0);
        let expected = [NativeEnd::NoMapping, NativeEnd::Complete][usize::from(found)];
        assert_eq!(
            (seen.len(), end),
            (if found { 4 } else { 2 }, expected),
            "{at}"
        );
    }
    // One that leads to a caller can't be told from the right one, and says what it is.
    let by_word = [&begin[..], &[(code(3, 8), true), (code(2, 8), false)]].concat();
    assert_eq!(
        walked(&at(code(2, 8)), STACK + 0x160),
        (by_word, NativeEnd::Complete)
    );
}

#[test]
fn a_guess_into_code_that_tells_nothing_is_none() {
    let memory = stack(&[(0, MADE + 8), (8, code(1, 8))], &[MADE + 8, code(1, 8)]);
    check(&memory, &files(), &[code(0, 0)], NativeEnd::NoRule);
    let saves = Rule {
        rbp: Rbp::Saved as u8,
        rbp_offset: -16,
        ..based(RSP, 0x10_0000)
    };
    // Nor is one into code whose caller can't be read.
    let files = program(&[special(Cfa::None), saves]);
    let memory = stack(&[(0, code(1, 8))], &[code(1, 8)]);
    check(&memory, &files, &[code(0, 0)], NativeEnd::NoRule);
}
