//! Tests of the check on an interpreter made up in memory: one thread with one frame, whole, with
//! parts of it changed, and with any word of it damaged.

use std::collections::BTreeMap;

use super::super::recorded::Recorded;
use super::super::{Version, rows};
use super::*;

const HEAD: u64 = 0x1000;
const KEY: u64 = 0x1100;
const INTERPRETER: u64 = 0x1_0000;
const THREAD: u64 = 0x2_0000;
const CONTROL_BLOCK: u64 = 0x3_0000;
const MUSL_KEYS: u64 = 0x3_8000;
const FRAME: u64 = 0x4_0000;
const CODE: u64 = 0x5_0000;
const TABLE: u64 = 0x5_8000;
const NAME: u64 = 0x6_0000;
const TYPE: u64 = 0x7_0000;
const TYPE_NAMED: u64 = 0x7_8000;
const METATYPE: u64 = 0x8_0000;

/// Pieces of memory that can still be changed.
struct Made {
    interpreter: Interpreter,
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl Made {
    /// Python 3.`minor` with glibc.
    fn new(minor: u8) -> Made {
        let layout = rows::layout(minor).unwrap();
        let mut made = Made {
            interpreter: Interpreter {
                version: Version {
                    major: 3,
                    minor,
                    micro: 1,
                },
                layout,
                target: Target {
                    interpreters: HEAD,
                    tss_key: KEY,
                    code_type: TYPE,
                    ..Target::default()
                },
                checked: false,
                remarks: Vec::new(),
                eval_loop: Vec::new(),
            },
            pieces: BTreeMap::new(),
        };
        for (at, length) in [
            (HEAD, 0x108),
            (INTERPRETER, 8192),
            (THREAD, 512),
            (CONTROL_BLOCK, 0x600),
            (MUSL_KEYS, 64),
            (FRAME, 512),
            (CODE, 256),
            (TABLE, 64),
            (NAME, 64),
            (TYPE, 64),
            (TYPE_NAMED, 16),
            (METATYPE, 64),
        ] {
            made.pieces.insert(at, vec![0; length]);
        }
        let at = |object: u64, offset: u32| object + u64::from(offset);
        made.put(HEAD, INTERPRETER);
        made.put(KEY, 1);
        made.put(at(INTERPRETER, layout.interpreter_threads), THREAD);
        made.put(at(THREAD, layout.thread_interpreter), INTERPRETER);
        made.put(at(THREAD, layout.thread_frame), FRAME);
        made.put(at(THREAD, layout.thread_id), CONTROL_BLOCK);
        made.put(CONTROL_BLOCK, CONTROL_BLOCK);
        made.put(CONTROL_BLOCK + 0x310 + 16 + 8, THREAD);
        made.put(at(FRAME, layout.frame_code), CODE);
        made.put(CODE, 1);
        made.put(at(CODE, layout.object_type), TYPE);
        for field in [layout.code_filename, layout.code_name, layout.code_qualname] {
            if field != 0 {
                made.put(at(CODE, field), NAME);
            }
        }
        made.put(at(CODE, layout.code_linetable), TABLE);
        made.put(at(NAME, layout.str_length), 4);
        // One byte a character, compact, ASCII.
        made.put(at(NAME, layout.str_state), 0x64);
        made.put(
            at(NAME, layout.str_ascii),
            u64::from_le_bytes(*b"spin\0\0\0\0"),
        );
        made.put(at(TYPE, layout.object_type), METATYPE);
        made.put(at(TYPE, layout.object_type) + TYPE_NAME, TYPE_NAMED);
        made.put(TYPE_NAMED, u64::from_le_bytes(*b"code\0\0\0\0"));
        made.put(at(METATYPE, layout.object_type), METATYPE);
        made
    }

    fn put(&mut self, address: u64, word: u64) {
        let (start, piece) = self.pieces.range_mut(..=address).next_back().unwrap();
        let at = (address - start) as usize;
        piece[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }

    fn memory(&self) -> Recorded {
        let mut memory = Recorded::default();
        for (at, piece) in &self.pieces {
            memory.put(*at, piece);
        }
        memory
    }

    fn check(&self) -> Verdict {
        check(&self.memory(), &self.interpreter)
    }

    fn failure(&self) -> String {
        match self.check() {
            Verdict::Fails(seen) => seen,
            other => panic!("{other:?}"),
        }
    }
}

/// A version of each shape of the chain that needs nothing between thread and frame.
const MINORS: [u8; 4] = [6, 9, 10, 13];

#[test]
fn an_interpreter_that_is_as_its_layout_says_holds() {
    for minor in MINORS {
        let mut made = Made::new(minor);
        let learnt = Learnt {
            musl: false,
            code_type: TYPE,
        };
        assert_eq!(made.check(), Verdict::Holds(learnt), "3.{minor}");
        made.interpreter.target.code_type = 0;
        assert_eq!(made.check(), Verdict::Holds(learnt), "3.{minor}");
        made.interpreter.target.tss_key = 0;
        assert_eq!(made.check(), Verdict::Holds(learnt), "3.{minor}");
    }
}

#[test]
fn the_c_library_is_told_by_where_the_key_leads() {
    for minor in MINORS {
        let mut made = Made::new(minor);
        made.put(CONTROL_BLOCK + 0x310 + 16 + 8, 0);
        made.put(CONTROL_BLOCK + 0x80, MUSL_KEYS);
        made.put(MUSL_KEYS + 8, THREAD);
        let learnt = Learnt {
            musl: true,
            code_type: TYPE,
        };
        assert_eq!(made.check(), Verdict::Holds(learnt), "3.{minor}");
    }
}

#[test]
fn one_that_has_not_begun_is_left_for_later() {
    let layout = rows::layout(13).unwrap();
    let changes: [(u64, u64); 4] = [
        (HEAD, 0),
        (INTERPRETER + u64::from(layout.interpreter_threads), 0),
        (THREAD + u64::from(layout.thread_id), 0),
        (THREAD + u64::from(layout.thread_frame), 0),
    ];
    for (at, word) in changes {
        let mut made = Made::new(13);
        made.put(at, word);
        assert_eq!(made.check(), Verdict::NotUpYet, "{at:#x}");
    }
}

#[test]
fn what_is_not_as_the_layout_says_is_told() {
    let layout = rows::layout(13).unwrap();
    let failure = |at: u64, word: u64| {
        let mut made = Made::new(13);
        made.put(at, word);
        made.failure()
    };
    let at = |object: u64, offset: u32| object + u64::from(offset);
    assert_eq!(
        failure(HEAD, 0xdead_0000),
        format!(
            "no thread state can be read at {:#x}",
            0xdead_0000 + u64::from(layout.interpreter_threads)
        )
    );
    assert_eq!(
        failure(at(THREAD, layout.thread_interpreter), 7),
        "the thread state at 0x20000 is of an interpreter at 0x7, not of its own"
    );
    assert_eq!(
        failure(at(THREAD, layout.thread_id), 0x4242),
        "the thread state at 0x20000 has thread id 0x4242, which is no thread's"
    );
    assert_eq!(
        failure(at(THREAD, layout.thread_frame), 0x4242_0000),
        "its newest frame can't be read"
    );
    let mut made = Made::new(13);
    made.put(TYPE_NAMED, u64::from_le_bytes(*b"dict\0\0\0\0"));
    made.interpreter.target.code_type = 0;
    assert_eq!(
        made.failure(),
        "what a frame runs, at 0x50000, has type dict: not a code object"
    );
    made.put(at(CODE, layout.object_type), 7);
    assert_eq!(
        made.failure(),
        "what a frame runs, at 0x50000, has no type: not a code object"
    );
    let mut made = Made::new(13);
    made.put(at(NAME, layout.str_state), 0);
    assert_eq!(
        made.failure(),
        "what a frame runs, at 0x50000, has type code: not a code object"
    );
    let mut made = Made::new(13);
    made.put(at(NAME, layout.str_length), 0);
    assert_eq!(
        made.failure(),
        "what a frame runs, at 0x50000, has type code: it has an empty name"
    );
}

#[test]
fn a_thread_that_has_ended_does_not_speak_for_the_others() {
    let mut made = Made::new(13);
    let layout = made.interpreter.layout;
    let left = THREAD + 256;
    let next = INTERPRETER + u64::from(layout.interpreter_threads);
    made.put(next, left);
    made.put(left + u64::from(layout.thread_next), THREAD);
    made.put(left + u64::from(layout.thread_interpreter), INTERPRETER);
    made.put(left + u64::from(layout.thread_id), 0x4242_0000);
    assert!(matches!(made.check(), Verdict::Holds(_)));
}

#[test]
fn any_word_may_be_any_number() {
    for minor in MINORS {
        let addresses: Vec<u64> = Made::new(minor)
            .pieces
            .iter()
            .flat_map(|(at, piece)| (0..piece.len() as u64 / 8).map(move |word| at + 8 * word))
            .collect();
        for address in addresses {
            for word in [0, 1, HEAD, THREAD, FRAME, CODE, 1 << 63, u64::MAX] {
                let mut made = Made::new(minor);
                made.put(address, word);
                made.check();
            }
        }
    }
}
