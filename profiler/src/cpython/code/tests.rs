//! Code objects laid out in made memory, as they are and as they change, die and lie.

use std::cell::Cell;

use super::*;
use crate::cpython::recorded::{Recorded, Same};
use crate::cpython::rows;

const CODE: u64 = 0x1000;
const TYPE: u64 = 0x77_7000;
const NAME: u64 = 0x2000;
const FILE: u64 = 0x3000;
const TABLE: u64 = 0x4000;

fn put(object: &mut [u8], at: u32, bytes: &[u8]) {
    object[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

/// A code object at [`CODE`] named `name` in `/srv/some/folder.py`, whose table says that it
/// has `table` bytes.
fn recorded(layout: &Layout, name: &str, table: u64) -> Recorded {
    let mut memory = Recorded::default();
    for (address, text) in [(NAME, name), (FILE, "/srv/some/folder.py")] {
        let mut object = vec![0; layout.str_ascii as usize];
        put(
            &mut object,
            layout.str_length,
            &(text.len() as u64).to_le_bytes(),
        );
        if layout.flags & layout_flags::BYTE_STRINGS == 0 {
            // One byte a character, compact, ASCII.
            let state = (1_u32 | 8 | 16) << layout.str_kind_shift;
            put(&mut object, layout.str_state, &state.to_le_bytes());
        }
        object.extend_from_slice(text.as_bytes());
        memory.put(address, &object);
    }
    let mut object = vec![0; layout.bytes_data as usize];
    put(&mut object, layout.bytes_size, &table.to_le_bytes());
    object.extend_from_slice(&[0xe8, 4]);
    memory.put(TABLE, &object);
    let mut object = vec![0; 256];
    let count = match layout.flags & layout_flags::FREE_THREADED {
        0 => 0,
        _ => 12,
    };
    put(&mut object, count, &1_u32.to_le_bytes());
    put(&mut object, layout.object_type, &TYPE.to_le_bytes());
    put(&mut object, layout.code_name, &NAME.to_le_bytes());
    put(&mut object, layout.code_filename, &FILE.to_le_bytes());
    put(&mut object, layout.code_linetable, &TABLE.to_le_bytes());
    put(&mut object, layout.code_first_line, &7_u32.to_le_bytes());
    if layout.code_qualname != 0 {
        put(&mut object, layout.code_qualname, &NAME.to_le_bytes());
    }
    memory.put(CODE, &object);
    memory
}

/// Becomes other memory after some reads.
struct Changing {
    before: Recorded,
    after: Recorded,
    reads: Cell<u32>,
}

impl Memory for Changing {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let left = self.reads.get();
        self.reads.set(left.saturating_sub(1));
        let memory = if left > 0 { &self.before } else { &self.after };
        memory.read(address, into)
    }
}

#[test]
fn a_code_object_is_read_for_the_identity_that_was_sampled() {
    for build in rows::Build::ALL {
        let layout = rows::layout(build).unwrap();
        let memory = recorded(&layout, "spam", 2);
        let sampled = identity(&memory, &layout, TYPE, CODE).unwrap();
        for known in [sampled, 0] {
            let code = read(&memory, &layout, TYPE, CODE, known).unwrap();
            assert_eq!(code.name, "spam");
            assert_eq!(code.qualname.is_some(), build.minor >= 11);
            assert_eq!(code.filename, "/srv/some/folder.py");
            assert_eq!(code.first_line, 7);
        }
        let other = read(&memory, &layout, TYPE, CODE, sampled ^ 1);
        assert_eq!(other, Err(Reason::Replaced));
        let not_code = read(&memory, &layout, TYPE + 8, CODE, sampled);
        // Where the walk checks the type, the object was code when it was sampled.
        let reason = match build.minor {
            11 | 12 => Reason::Replaced,
            _ => Reason::NotCode,
        };
        assert_eq!(not_code, Err(reason));
        let unproven = read(&memory, &layout, TYPE + 8, CODE, 0);
        assert_eq!(unproven, Err(Reason::NotCode));
        let gone = read(&memory, &layout, TYPE, CODE + 0x10_0000, sampled);
        assert_eq!(gone, Err(Reason::Unreadable));
    }
}

#[test]
fn an_object_that_changes_while_it_is_read_is_not_named() {
    for minor in [9, 12] {
        let layout = rows::layout(minor).unwrap();
        let mut named = 0;
        for reads in 0..32 {
            let memory = Changing {
                before: recorded(&layout, "spam", 2),
                after: Recorded::default(),
                reads: Cell::new(reads),
            };
            if let Ok(code) = read(&memory, &layout, TYPE, CODE, 0) {
                assert_eq!(code.name, "spam");
                named += 1;
            }
        }
        assert!((1..25).contains(&named), "{named}");
        for reads in 0..32 {
            let memory = Changing {
                before: recorded(&layout, "spam", 2),
                after: eggs(&layout),
                reads: Cell::new(reads),
            };
            match read(&memory, &layout, TYPE, CODE, 0) {
                Ok(code) if code.first_line == 7 => assert_eq!(code.name, "spam"),
                Ok(code) => assert_eq!((code.name.as_str(), code.first_line), ("eggs", 8)),
                Err(reason) => assert_eq!(reason, Reason::Replaced),
            }
        }
    }
}

/// Another function with the same pointers, a line further down.
fn eggs(layout: &Layout) -> Recorded {
    let mut memory = recorded(layout, "eggs", 2);
    let mut object = vec![0; 256];
    assert!(memory.read(CODE, &mut object));
    put(&mut object, layout.code_first_line, &8_u32.to_le_bytes());
    memory.put(CODE, &object);
    memory
}

#[test]
fn an_object_that_died_while_it_was_read_is_not_named() {
    for build in rows::Build::ALL.iter().filter(|build| !build.free_threaded) {
        let layout = rows::layout(*build).unwrap();
        let with_count = |count: u64| {
            let mut memory = recorded(&layout, "spam", 2);
            let mut object = vec![0; 256];
            assert!(memory.read(CODE, &mut object));
            put(&mut object, 0, &count.to_le_bytes());
            memory.put(CODE, &object);
            read(&memory, &layout, TYPE, CODE, 0)
        };
        // A few references, immortal in 3.11, 3.12 and 3.14, and immortal with flags.
        for alive in [1, 40, 999_999_999, 0xffff_ffff, 3 << 30, 5 << 48 | 3 << 30] {
            assert!(with_count(alive).is_ok(), "{alive:#x}");
        }
        // No reference left, the last block of a pool, and a block with another after it.
        for dead in [0, 5 << 48, 0x7f3a_2c41_0e40] {
            assert_eq!(with_count(dead), Err(Reason::Replaced), "{dead:#x}");
        }
    }
}

#[test]
fn without_a_gil_an_object_lives_while_either_count_does() {
    for build in rows::Build::ALL.iter().filter(|build| build.free_threaded) {
        let layout = rows::layout(*build).unwrap();
        let with_counts = |local: u32, shared: i64| {
            let mut memory = recorded(&layout, "spam", 2);
            let mut object = vec![0; 256];
            assert!(memory.read(CODE, &mut object));
            // What the collector or the allocator links objects by, and a lock.
            put(&mut object, 0, &0x7f3a_2c41_0e40_u64.to_le_bytes());
            put(&mut object, 10, &[1]);
            put(&mut object, 12, &local.to_le_bytes());
            put(&mut object, 16, &shared.to_le_bytes());
            memory.put(CODE, &object);
            read(&memory, &layout, TYPE, CODE, 0)
        };
        // Of its own thread, of others, immortal, given away by others than its own thread.
        for (local, shared) in [(1, 0), (0, 4), (0, 7), (u32::MAX, 0), (3, -8)] {
            assert!(with_counts(local, shared).is_ok(), "{local} {shared}");
        }
        // Only flags are left.
        for shared in [0, 1, 2, 3, -4] {
            assert_eq!(with_counts(0, shared), Err(Reason::Replaced), "{shared}");
        }
    }
}

#[test]
fn what_is_too_long_is_not_read() {
    let layout = rows::layout(11).unwrap();
    let memory = recorded(&layout, &"n".repeat(TEXT_MAX), 2);
    assert!(read(&memory, &layout, TYPE, CODE, 0).is_ok());
    let memory = recorded(&layout, &"n".repeat(TEXT_MAX + 1), 2);
    assert_eq!(read(&memory, &layout, TYPE, CODE, 0), Err(Reason::TooLong));
    for size in [TABLE_MAX as u64 + 1, u64::MAX] {
        let memory = recorded(&layout, "spam", size);
        let code = read(&memory, &layout, TYPE, CODE, 0).unwrap();
        assert_eq!((code.name.as_str(), code.lines.is_known()), ("spam", false));
    }
}

#[test]
fn any_memory_ends_without_a_panic() {
    for build in rows::Build::ALL {
        let layout = rows::layout(build).unwrap();
        for word in [
            0,
            1,
            0x64,
            0x2c,
            0x30,
            4096,
            1 << 20,
            u64::MAX,
            u64::MAX - 7,
        ] {
            let found = read(&Same(word), &layout, 0, 64, 0);
            assert!(found.is_err() || word < 1 << 21, "{word}: {found:?}");
        }
    }
}
