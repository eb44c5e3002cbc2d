//! What tells one code object from another that took its place in memory: a number made of as
//! little as will do. The same for the walk, which remembers what it has met, and for the daemon.

use bytemuck::Zeroable;

use super::Memory;
use super::bytes::{half, read_part, read_word, word};
use crate::{Layout, layout_flags};

/// Most bytes of a code object that are read at once.
pub const CODE_SPAN_MAX: usize = 256;

/// Slots of the caches of code objects and of file names that one walk has met: powers of two.
const CODES_SEEN: usize = 64;
const FILES_SEEN: usize = 16;

/// How much of a string object holds its length at least.
const MIN_HEADER: usize = 24;

/// 2^64 / golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Why a code object gave no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeFault {
    /// It could not be read.
    Unreadable,
    /// It is code, as far as its type was looked at, but not all of what identifies it could be
    /// read. The kernel takes pages away for a while, to move them to larger ones, and at low
    /// priority: on a busy CPU what the process does not use itself stays away for a second.
    NoIdentity,
    /// What lies there is not a code object.
    NotCode,
}

/// The bytes of one code object, in its first half: see [`read_part`].
type CodeBytes = [u8; 2 * CODE_SPAN_MAX];

/// The identity of the code object at `code`: equal for as long as the object there is the same
/// one, different (but for chance, 2^-32) once another took its place. Never 0.
///
/// From 3.12 on `co_version` counts code objects. Before, nothing does, and pointers come back for
/// other functions within milliseconds: the name's cached hash and the file name's length and last
/// bytes are read, too.
///
/// # Errors
/// When it can't be read, or is not a code object (`code_type` is `&PyCode_Type`, 0 if unknown).
pub fn identity<M: Memory>(
    memory: &M,
    layout: &Layout,
    code_type: u64,
    code: u64,
) -> Result<u32, CodeFault> {
    read_identity(memory, layout, code_type, code, &mut [0; _], |file| {
        file_digest(memory, layout, file, &mut [0; 64])
    })
}

/// [`identity`] with a memory of what one walk has met: deep stacks are mostly repetition.
#[derive(Zeroable)]
#[repr(C)]
pub(super) struct Identities {
    /// Number of this walk: what the caches hold is of this walk alone, because a code object may
    /// be another one the next time.
    walk: u64,
    code: CodeBytes,
    text: [u8; 64],
    codes: Seen<CODES_SEEN>,
    files: Seen<FILES_SEEN>,
}

impl Identities {
    /// Forgets what the last walk has met.
    #[inline(always)]
    pub(super) fn begin(&mut self) {
        self.walk = self.walk.wrapping_add(1);
    }

    /// As [`identity`].
    #[inline(always)]
    pub(super) fn of<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        code_type: u64,
        code: u64,
    ) -> Result<u32, CodeFault> {
        let Identities {
            walk,
            code: bytes,
            text,
            codes,
            files,
        } = self;
        if let Some(identity) = codes.get(code, *walk) {
            return Ok(identity as u32);
        }
        let identity = read_identity(memory, layout, code_type, code, bytes, |file| {
            if let Some(digest) = files.get(file, *walk) {
                return Some(digest);
            }
            let digest = file_digest(memory, layout, file, text)?;
            files.put(file, *walk, digest);
            Some(digest)
        })?;
        codes.put(code, *walk, identity.into());
        Ok(identity)
    }
}

/// Digests by address; each address has one slot, which it may lose to another.
#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
struct Seen<const N: usize>([Met; N]);

#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
struct Met {
    address: u64,
    walk: u64,
    digest: u64,
}

impl<const N: usize> Seen<N> {
    #[inline(always)]
    fn get(&self, address: u64, walk: u64) -> Option<u64> {
        let met = &self.0[Self::slot(address)];
        (met.address == address && met.walk == walk).then_some(met.digest)
    }

    #[inline(always)]
    fn put(&mut self, address: u64, walk: u64, digest: u64) {
        self.0[Self::slot(address)] = Met {
            address,
            walk,
            digest,
        };
    }

    #[inline(always)]
    fn slot(address: u64) -> usize {
        (address.wrapping_mul(GOLDEN) >> 48) as usize & (N - 1)
    }
}

/// Reads the identity of a code object by way of `bytes`; `file_digest` is asked when the file name
/// is part of it.
#[inline(always)]
fn read_identity<M: Memory>(
    memory: &M,
    layout: &Layout,
    code_type: u64,
    code: u64,
    bytes: &mut CodeBytes,
    file_digest: impl FnOnce(u64) -> Option<u64>,
) -> Result<u32, CodeFault> {
    if read_code(memory, layout, code_type, code, bytes)? {
        return Ok(version_identity(layout, bytes));
    }
    let name = word(bytes, layout.code_name);
    let file = word(bytes, layout.code_filename);
    let hash = name_hash(memory, layout, name).ok_or(CodeFault::NoIdentity)?;
    let digest = file_digest(file).ok_or(CodeFault::NoIdentity)?;
    Ok(pointer_identity(layout, bytes, hash ^ digest))
}

/// Reads what identifies a code object to where it lies in it, as few cache lines as will do. True
/// if it has a version; then only `co_version` and `co_firstlineno` were read.
#[inline(always)]
fn read_code<M: Memory>(
    memory: &M,
    layout: &Layout,
    code_type: u64,
    code: u64,
    into: &mut CodeBytes,
) -> Result<bool, CodeFault> {
    // Where a frame may be garbage its code object's type tells; elsewhere the type need not be
    // read, and the daemon checks it before it reads a name.
    let typed = layout.flags & layout_flags::TORN_CALLS != 0 && code_type != 0;
    let start = if typed {
        layout.object_type
    } else {
        layout.code_start
    };
    let versioned = layout.code_version != 0;
    let end = if versioned {
        (layout.code_version + 11) & !7
    } else {
        layout.code_span
    };
    if code == 0 || !read_part(memory, code, start, end, into) {
        return Err(CodeFault::Unreadable);
    }
    if typed && word(into, layout.object_type) != code_type {
        return Err(CodeFault::NotCode);
    }
    if versioned && half(into, layout.code_version) != 0 {
        return Ok(true);
    }
    // Version 0: static code, or made after the counter had overflowed.
    if versioned && !read_part(memory, code, end, layout.code_span, into) {
        return Err(CodeFault::NoIdentity);
    }
    Ok(false)
}

#[inline(always)]
fn version_identity(layout: &Layout, code: &CodeBytes) -> u32 {
    let version = u64::from(half(code, layout.code_version));
    let first_line = u64::from(half(code, layout.code_first_line));
    not_zero(mix(first_line << 32 | version, 0))
}

#[inline(always)]
fn pointer_identity(layout: &Layout, code: &CodeBytes, strings: u64) -> u32 {
    let mut hash = mix(strings, u64::from(half(code, layout.code_first_line)));
    hash = mix(hash, word(code, layout.code_name));
    hash = mix(hash, word(code, layout.code_filename));
    hash = mix(hash, word(code, layout.code_linetable));
    not_zero(hash)
}

#[inline(always)]
fn not_zero(hash: u64) -> u32 {
    match (hash >> 32) as u32 ^ hash as u32 {
        0 => 1,
        identity => identity,
    }
}

/// The cached hash of a `str`.
#[inline(always)]
fn name_hash<M: Memory>(memory: &M, layout: &Layout, name: u64) -> Option<u64> {
    read_word(memory, name.wrapping_add(u64::from(layout.str_hash)))
}

/// Length and last 16 bytes of a file name, which carries no hash of its own.
#[inline(always)]
fn file_digest<M: Memory>(
    memory: &M,
    layout: &Layout,
    file: u64,
    text: &mut [u8; 64],
) -> Option<u64> {
    // The header of the string: PyASCIIObject up to `state`, or PyStringObject.
    let header = layout.str_state.wrapping_add(8) as usize & 63;
    let header = if header < MIN_HEADER {
        MIN_HEADER
    } else {
        header
    };
    if !memory.read(file, &mut text[..header]) {
        return None;
    }
    let length = word(text, layout.str_length);
    let (kind, ascii) = if layout.flags & layout_flags::BYTE_STRINGS != 0 {
        (1, true)
    } else {
        // Three bits of kind, then `compact`, then `ascii`.
        let state = half(text, layout.str_state) >> layout.str_kind_shift;
        (u64::from(state & 7), state >> 4 & 1 != 0)
    };
    let data = if ascii {
        layout.str_ascii
    } else {
        layout.str_compact
    };
    // The 16 bytes before the end lie within the object even when the text is shorter.
    let end = file
        .wrapping_add(u64::from(data))
        .wrapping_add(length.wrapping_mul(kind));
    if !memory.read(end.wrapping_sub(16), &mut text[..16]) {
        return None;
    }
    Some(mix(mix(length, word(text, 0)), word(text, 8)))
}

/// A step of a multiplicative hash over words.
#[inline(always)]
pub(crate) fn mix(hash: u64, value: u64) -> u64 {
    (hash.rotate_left(29) ^ value).wrapping_mul(GOLDEN)
}
