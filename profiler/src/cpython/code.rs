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
            CodeFault::Unreadable | CodeFault::NoIdentity => Reason::Unreadable,
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
        Err(CodeFault::Unreadable | CodeFault::NoIdentity) => Err(Reason::Unreadable),
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
mod tests;
