//! Reads a `str` of the target: every storage kind that CPython 3.6 to 3.15 use
//! (`Include/cpython/unicodeobject.h`), and the bytes of Python 2 (`Include/stringobject.h`), taken
//! for UTF-8. What is no character becomes U+FFFD; a length above the limit or a kind that does not
//! exist is a fault.

use profiler_ebpf::python::Memory;
use profiler_ebpf::{Layout, layout_flags};

use crate::memory::{read_bytes, read_u32, read_u64};

/// Why there is no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StrFault {
    /// It, or its characters, are not there to read.
    Unreadable,
    /// It has more characters than the limit, or bytes in Python 2.
    TooLong,
    /// Its kind is none: it is not a string, or one that was never made ready.
    NotText,
}

/// The text of the `str` object at `address`, at most `limit` characters.
pub(super) fn read_str(
    memory: &impl Memory,
    layout: &Layout,
    address: u64,
    limit: usize,
) -> Result<String, StrFault> {
    let at = |offset: u32| address.wrapping_add(offset.into());
    let length = read_u64(memory, at(layout.str_length)).ok_or(StrFault::Unreadable)?;
    if length > limit as u64 {
        return Err(StrFault::TooLong);
    }
    if layout.flags & layout_flags::BYTE_STRINGS != 0 {
        let bytes = read_bytes(memory, at(layout.str_ascii), length, limit);
        let bytes = bytes.ok_or(StrFault::Unreadable)?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    let state = read_u32(memory, at(layout.str_state)).ok_or(StrFault::Unreadable)?;
    // Three bits of kind, then `compact`, then `ascii`.
    let state = state >> layout.str_kind_shift;
    let kind = state & 7;
    let (compact, ascii) = (state & 8 != 0, state & 16 != 0);
    let data = match (compact, ascii) {
        (true, true) => at(layout.str_ascii),
        (true, false) => at(layout.str_compact),
        // Up to 3.11 a string can keep its characters apart; a pointer to them stands where those
        // of a compact string begin.
        (false, _) => read_u64(memory, at(layout.str_compact)).ok_or(StrFault::Unreadable)?,
    };
    if !matches!(kind, 1 | 2 | 4) || (ascii && kind != 1) {
        return Err(StrFault::NotText);
    }
    let size = length * u64::from(kind);
    let bytes = read_bytes(memory, data, size, 4 * limit).ok_or(StrFault::Unreadable)?;
    Ok(decode(&bytes, kind))
}

fn decode(bytes: &[u8], kind: u32) -> String {
    let character = |code: u32| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    match kind {
        1 => bytes.iter().map(|byte| char::from(*byte)).collect(),
        2 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|unit| character(u16::from_le_bytes(*unit).into()))
            .collect(),
        _ => bytes
            .as_chunks()
            .0
            .iter()
            .map(|unit| character(u32::from_le_bytes(*unit)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::recorded::Recorded;
    use super::super::rows::{Build, layout};
    use super::*;

    const AT: u64 = 0x1000;

    /// A string as a build lays it out: `state` is kind, compact and ascii.
    fn text(build: Build, length: u64, state: u32, data: &[u8]) -> (Recorded, Layout) {
        let layout = layout(build).unwrap();
        let mut object = vec![0; layout.str_compact as usize];
        let put = |object: &mut Vec<u8>, at: u32, bytes: &[u8]| {
            object[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        put(&mut object, layout.str_length, &length.to_le_bytes());
        if build.major == 3 {
            let state = state << layout.str_kind_shift;
            put(&mut object, layout.str_state, &state.to_le_bytes());
        }
        let mut memory = Recorded::default();
        match state & 8 {
            0 => {
                object.extend_from_slice(&0x9000_u64.to_le_bytes());
                memory.put(0x9000, data);
            }
            _ => {
                if state & 16 != 0 {
                    object.truncate(layout.str_ascii as usize);
                }
                object.extend_from_slice(data);
            }
        }
        memory.put(AT, &object);
        (memory, layout)
    }

    fn read(
        build: impl Into<Build>,
        length: u64,
        state: u32,
        data: &[u8],
    ) -> Result<String, StrFault> {
        let (memory, layout) = text(build.into(), length, state, data);
        read_str(&memory, &layout, AT, 16)
    }

    #[test]
    fn every_kind_is_read_on_both_sides_of_the_smaller_header() {
        for build in Build::ALL.into_iter().filter(|build| build.major == 3) {
            assert_eq!(read(build, 4, 1 | 8 | 16, b"spam"), Ok("spam".into()));
            let latin = read(build, 3, 1 | 8, &[b'c', 0xe9, 0xff]);
            assert_eq!(latin, Ok("céÿ".into()));
            let wide = read(build, 2, 2 | 8, &[0x42, 0x30, 0xac, 0x20]);
            assert_eq!(wide, Ok("あ€".into()));
            let astral = read(build, 2, 4 | 8, &[0x40, 0xf4, 1, 0, b'!', 0, 0, 0]);
            assert_eq!(astral, Ok("👀!".into()));
        }
    }

    #[test]
    fn the_bytes_of_python_2_are_taken_for_utf_8() {
        let old = Build::new(2, 7, false);
        let read = |length, data| read(old, length, 1 | 8 | 16, data);
        assert_eq!(read(4, b"spam!"), Ok("spam".into()));
        assert_eq!(read(3, "é!".as_bytes()), Ok("é!".into()));
        assert_eq!(read(2, b"\xff!"), Ok("\u{fffd}!".into()));
        assert_eq!(read(17, &[b'a'; 17]), Err(StrFault::TooLong));
        assert_eq!(read(u64::MAX, b""), Err(StrFault::TooLong));
        assert_eq!(read(4, b"ab"), Err(StrFault::Unreadable));
    }

    #[test]
    fn characters_that_are_kept_apart_are_followed() {
        assert_eq!(read(9, 3, 1, b"old"), Ok("old".into()));
        assert_eq!(read(9, 3, 1 | 16, b"old"), Ok("old".into()));
        assert_eq!(read(9, 1, 2, &[0xac, 0x20]), Ok("€".into()));
    }

    #[test]
    fn what_is_no_character_is_replaced() {
        let surrogate = read(12, 2, 2 | 8, &[0x00, 0xd8, b'a', 0]);
        assert_eq!(surrogate, Ok("\u{fffd}a".into()));
        let beyond = read(12, 1, 4 | 8, &[0xff; 4]);
        assert_eq!(beyond, Ok("\u{fffd}".into()));
    }

    #[test]
    fn a_length_or_a_kind_that_cannot_be_is_a_fault() {
        assert_eq!(read(12, 16, 1 | 8 | 16, &[b'a'; 16]), Ok("a".repeat(16)));
        assert_eq!(
            read(12, 17, 1 | 8 | 16, &[b'a'; 17]),
            Err(StrFault::TooLong)
        );
        assert_eq!(read(12, u64::MAX, 4 | 8, b""), Err(StrFault::TooLong));
        assert_eq!(read(12, 1, 8, b"a"), Err(StrFault::NotText));
        assert_eq!(read(12, 1, 3 | 8, b"abc"), Err(StrFault::NotText));
        assert_eq!(read(12, 1, 2 | 8 | 16, b"ab"), Err(StrFault::NotText));
        assert_eq!(read(12, 4, 1 | 8 | 16, b"ab"), Err(StrFault::Unreadable));
    }
}
