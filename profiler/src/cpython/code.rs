//! Reads a code object of the target: its names, file and line table. What was read is kept only
//! if the object is still the one that the sample saw, because addresses come back for others.

use std::fmt;

use profiler_ebpf::python::{CODE_SPAN_MAX, CodeFault, Memory, identity};
use profiler_ebpf::{Layout, layout_flags};

use super::lines::LineTable;
use super::unicode::{StrFault, read_str};
use crate::memory::{read_bytes, read_u64};

/// Most characters of a name and of a file name that are read: what a path can have (PATH_MAX).
const TEXT_MAX: usize = 4096;
/// Most bytes of a line table that are read: a module of some fifty thousand lines.
const TABLE_MAX: usize = 1 << 18;

/// What a code object says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// `co_name`.
    pub name: String,
    /// `co_qualname`, from 3.11 on.
    pub qualname: Option<String>,
    /// `co_filename`.
    pub filename: String,
    /// `co_firstlineno`.
    pub first_line: u32,
    pub lines: LineTable,
}

/// Why a frame has no name: data, shown in its place as `[unknown: reason]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The code object, or something that it leads to, can't be read: freed, or the process is
    /// gone.
    Unreadable,
    /// Another object has taken the code object's place since the sample.
    Replaced,
    /// What lies there is not a code object, or has no text where its names should be.
    NotCode,
    /// A name above the bound.
    TooLong,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Reason::Unreadable => "code object no longer readable",
            Reason::Replaced => "code object replaced since the sample",
            Reason::NotCode => "not a code object",
            Reason::TooLong => "name too long",
        })
    }
}

impl From<CodeFault> for Reason {
    fn from(fault: CodeFault) -> Reason {
        match fault {
            CodeFault::Unreadable => Reason::Unreadable,
            CodeFault::NotCode => Reason::NotCode,
        }
    }
}

impl From<StrFault> for Reason {
    fn from(fault: StrFault) -> Reason {
        match fault {
            StrFault::Unreadable => Reason::Unreadable,
            StrFault::TooLong => Reason::TooLong,
            StrFault::NotText => Reason::NotCode,
        }
    }
}

impl Code {
    /// Whether this is no function of the program but the frame that CPython 3.13 and later put
    /// below an inlined constructor, to check what `__init__` returned (`_Py_InitCleanup` in
    /// `Objects/codeobject.c`): not to be shown.
    pub fn phantom(&self) -> bool {
        self.first_line == 0 && self.filename == "__init__"
    }
}

/// Reads the code object at `address`. `code_type` is `Target::code_type`; `sampled` is the
/// identity that the sample carries, or 0 when it has none: then only a change while reading is
/// noticed, and what is read may belong to a later function.
///
/// # Errors
/// Says why the frame can't be named.
pub fn read(
    memory: &impl Memory,
    layout: &Layout,
    code_type: u64,
    address: u64,
    sampled: u32,
) -> Result<Code, Reason> {
    read_if_same(memory, layout, code_type, address, sampled, true)
}

/// As [`read`], without the line table.
///
/// # Errors
/// Says why the frame can't be named.
pub fn read_names(
    memory: &impl Memory,
    layout: &Layout,
    code_type: u64,
    address: u64,
    sampled: u32,
) -> Result<Code, Reason> {
    read_if_same(memory, layout, code_type, address, sampled, false)
}

fn read_if_same(
    memory: &impl Memory,
    layout: &Layout,
    code_type: u64,
    address: u64,
    sampled: u32,
    with_lines: bool,
) -> Result<Code, Reason> {
    let before = match identity(memory, layout, code_type, address) {
        // The walk has seen a code object there.
        Err(CodeFault::NotCode) if sampled != 0 => return Err(Reason::Replaced),
        before => before?,
    };
    if sampled != 0 && before != sampled {
        return Err(Reason::Replaced);
    }
    let code = read_unproven(memory, layout, code_type, address, with_lines);
    // Read in pieces while the process runs on: all of them belong together only if this is still
    // the same object, and one that lives. A dead one looks the same until its place is taken,
    // while its names and its table, freed before it, may be others' already.
    match identity(memory, layout, code_type, address) {
        Ok(after) if after == before && lives(memory, layout, address) => code,
        Ok(_) | Err(CodeFault::NotCode) => Err(Reason::Replaced),
        Err(CodeFault::Unreadable) => Err(Reason::Unreadable),
    }
}

/// Whether the object at `address` has references: `ob_refcnt`, the first word of every object of a
/// build with a GIL (`Include/object.h`, 2.7 to 3.15). It is 0 from the moment that the object
/// begins to die until its memory is given back, when `pymalloc` puts a pointer there.
///
/// No count comes near 2^32; from 3.14 on that is a separate field, which is 0 unless the count
/// overflowed, with flags above it. Pointers into `pymalloc`'s memory, which is mapped, are larger.
fn lives(memory: &impl Memory, layout: &Layout, address: u64) -> bool {
    if layout.flags & layout_flags::FREE_THREADED != 0 {
        return lives_without_gil(memory, address);
    }
    read_u64(memory, address).is_some_and(|word| word as u32 != 0 && word >> 32 & 0xffff == 0)
}

/// The same in a free-threaded build, where an object has two counts: its own thread's,
/// `ob_ref_local`, and that of the others, `ob_ref_shared` above two bits of flags. What gives the
/// memory back writes over neither.
fn lives_without_gil(memory: &impl Memory, address: u64) -> bool {
    let local = read_u64(memory, address.wrapping_add(8)).map(|word| word >> 32);
    let shared = read_u64(memory, address.wrapping_add(16)).map(|word| word as i64 >> 2);
    matches!((local, shared), (Some(local), Some(shared)) if local != 0 || shared > 0)
}

fn read_unproven(
    memory: &impl Memory,
    layout: &Layout,
    code_type: u64,
    address: u64,
    with_lines: bool,
) -> Result<Code, Reason> {
    let mut bytes = [0; CODE_SPAN_MAX];
    let object = bytes
        .get_mut(..layout.code_span as usize)
        .ok_or(Reason::NotCode)?;
    if !memory.read(address, object) {
        return Err(Reason::Unreadable);
    }
    let pointer = |offset: u32| field(&bytes, offset).map(u64::from_le_bytes);
    // The walk looks at the type only where a frame may be garbage.
    if code_type != 0 && pointer(layout.object_type) != Some(code_type) {
        return Err(Reason::NotCode);
    }
    let text = |offset: u32| -> Result<String, Reason> {
        let address = pointer(offset).ok_or(Reason::NotCode)?;
        Ok(read_str(memory, layout, address, TEXT_MAX)?)
    };
    let first_line = field(&bytes, layout.code_first_line).map(u32::from_le_bytes);
    let first_line = first_line.ok_or(Reason::NotCode)?;
    let table = pointer(layout.code_linetable).ok_or(Reason::NotCode)?;
    Ok(Code {
        name: text(layout.code_name)?,
        qualname: match layout.code_qualname {
            0 => None,
            offset => Some(text(offset)?),
        },
        filename: text(layout.code_filename)?,
        first_line,
        lines: if with_lines {
            match read_table(memory, layout, table)? {
                Some(table) => LineTable::new(layout.version, first_line, table),
                None => LineTable::absent(first_line),
            }
        } else {
            LineTable::absent(first_line)
        },
    })
}

/// The content of a `bytes` object, unless it is above the bound: then the code has its names and no
/// lines.
fn read_table(
    memory: &impl Memory,
    layout: &Layout,
    address: u64,
) -> Result<Option<Vec<u8>>, Reason> {
    let at = |offset: u32| address.wrapping_add(offset.into());
    let size = read_u64(memory, at(layout.bytes_size)).ok_or(Reason::Unreadable)?;
    if size > TABLE_MAX as u64 {
        return Ok(None);
    }
    match read_bytes(memory, at(layout.bytes_data), size, TABLE_MAX) {
        None => Err(Reason::Unreadable),
        table => Ok(table),
    }
}

fn field<const N: usize>(bytes: &[u8], offset: u32) -> Option<[u8; N]> {
    let at = offset as usize;
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::recorded::{Recorded, Same};
    use super::super::rows;
    use super::*;

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
}
