//! Copies of code objects with their names and line tables, for a process that may be gone before
//! the daemon can read them. It copies what lies there, by the layout; what it says is read later,
//! by the same code that reads a live process.

use bytemuck::Zeroable;

use super::Memory;
use super::bytes::{half, word};
use super::identity::{CODE_SPAN_MAX, mix};
use super::{Walk, not_zero};
use crate::{
    CODE_PIECES, Code, Frame, Layout, MAX_CAPTURES, MAX_FRAMES, Piece, RecordKind, layout_flags,
};

/// Most bytes of a name's, a file name's and a line table's object that are copied. The verifier
/// takes the masks as bounds: powers of two, less one.
const NAME_MAX: u32 = 511;
const FILE_MAX: u32 = 1023;
const TABLE_MAX: u32 = 4095;
/// Room for all pieces. A power of two, so that a mask bounds an offset into it.
const ROOM: usize = 8192;

/// The object's, in [`Code::pieces`].
const OBJECT: usize = 0;
const FILE: usize = 1;
const NAME: usize = 2;
const QUALNAME: usize = 3;
const TABLE: usize = 4;

/// What tells (target, code object, identity) from others while the daemon's `epoch` lasts.
#[inline(always)]
pub fn code_hash(epoch: u64, target: u32, frame: &Frame) -> u64 {
    let seed = mix(epoch, u64::from(target));
    not_zero(mix(mix(seed, u64::from(frame.identity)), frame.code))
}

/// The state of going through a stack for code objects to copy, and one copy.
#[derive(Zeroable)]
#[repr(C)]
pub struct Capture {
    epoch: u64,
    /// Which frame is next.
    next: u32,
    /// How many code objects may still be copied.
    left: u32,
    /// 1 unless a piece is missing, which the daemon then has to read.
    whole: u32,
    /// 1 unless some code object was not copied at all.
    complete: u32,
    /// How many of `bytes` the pieces take.
    used: u32,
    padding: u32,
    /// The copy, whose pieces follow it in memory as they do in a record.
    pub code: Code,
    /// With an offset and a length both below half, the verifier need not know their sum.
    bytes: [u8; 2 * ROOM],
}

impl Capture {
    /// Begins to go through a stack.
    #[inline(always)]
    pub fn begin(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.next = 0;
        self.left = MAX_CAPTURES;
        self.whole = 1;
        self.complete = 1;
    }

    /// Whether every code object was copied, now or before: the stack needs no more copies.
    #[inline(always)]
    pub fn is_complete(&self) -> bool {
        self.complete != 0
    }

    /// Whether nothing is left for the daemon to read.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.complete != 0 && self.whole != 0
    }

    /// Notes that a code object was not copied.
    #[inline(always)]
    pub fn leave(&mut self) {
        self.complete = 0;
    }

    /// Takes one frame of the walk's stack. None when there are no more, else [`code_hash`] of its
    /// code object, or 0 if there is nothing to copy.
    #[inline(always)]
    pub fn step(&mut self, walk: &Walk) -> Option<u64> {
        let index = self.next;
        if index >= walk.stack.frames {
            return None;
        }
        self.next = index + 1;
        let frame = &walk.frames[index as usize & (MAX_FRAMES - 1)];
        if frame.identity == 0 {
            return Some(0);
        }
        self.code.target = walk.stack.target;
        self.code.address = frame.code;
        self.code.identity = frame.identity;
        Some(code_hash(self.epoch, walk.stack.target, frame))
    }

    /// Whether another code object may be copied at this sample.
    #[inline(always)]
    pub fn may_copy(&self) -> bool {
        self.left != 0
    }

    /// Copies the code object of the last step. False when it is not there.
    #[inline(always)]
    pub fn copy<M: Memory>(&mut self, memory: &M, layout: &Layout) -> bool {
        self.left = self.left.wrapping_sub(1);
        self.code.kind = RecordKind::Code as u32;
        self.code.pieces = [Piece::default(); CODE_PIECES];
        self.used = 0;
        let span = layout.code_span as usize & (CODE_SPAN_MAX - 1);
        if !memory.read(self.code.address, &mut self.bytes[..span]) {
            return false;
        }
        self.keep(OBJECT, self.code.address, span as u32);
        self.text(memory, layout, FILE, layout.code_filename, FILE_MAX);
        self.text(memory, layout, NAME, layout.code_name, NAME_MAX);
        if layout.code_qualname != 0 {
            let same =
                word(&self.bytes, layout.code_qualname) == word(&self.bytes, layout.code_name);
            if !same {
                self.text(memory, layout, QUALNAME, layout.code_qualname, NAME_MAX);
            }
        }
        self.table(memory, layout);
        true
    }

    /// The copy as it goes into the ring buffer.
    #[inline(always)]
    pub fn record(&self) -> &[u8] {
        let length = size_of::<Code>() + (self.used as usize & (ROOM - 1));
        // SAFETY: the pieces follow the head, without padding, in this `#[repr(C)]` type, which has
        // more than `ROOM` bytes of them.
        unsafe { core::slice::from_raw_parts((&raw const self.code).cast::<u8>(), length) }
    }

    /// Copies the `str` that the code object refers to at `field`.
    #[inline(always)]
    fn text<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        piece: usize,
        field: u32,
        most: u32,
    ) {
        let address = word(&self.bytes, field);
        let start = self.used;
        let head = layout.str_ascii;
        if !self.read(memory, address, 0, head, NAME_MAX) {
            return self.give_up();
        }
        // Three bits of kind, then `compact`, then `ascii`: see `cpython/unicode.rs`.
        let state = if layout.flags & layout_flags::BYTE_STRINGS != 0 {
            1 | 8 | 16
        } else {
            half(&self.bytes, start.wrapping_add(layout.str_state)) >> layout.str_kind_shift
        };
        let length = word(&self.bytes, start.wrapping_add(layout.str_length));
        let compact = state & 8 != 0;
        if !compact || length > u64::from(most) {
            return self.give_up();
        }
        let data = if state & 16 != 0 {
            layout.str_ascii
        } else {
            layout.str_compact
        };
        let end = data.wrapping_add(length as u32 * (state & 7));
        if end > most || !self.read(memory, address, head, end, most) {
            return self.give_up();
        }
        self.keep(piece, address, end);
    }

    /// Copies the line table, a `bytes`.
    #[inline(always)]
    fn table<M: Memory>(&mut self, memory: &M, layout: &Layout) {
        let address = word(&self.bytes, layout.code_linetable);
        let start = self.used;
        let head = layout.bytes_data;
        if !self.read(memory, address, 0, head, NAME_MAX) {
            return self.give_up();
        }
        let size = word(&self.bytes, start.wrapping_add(layout.bytes_size));
        if size > u64::from(TABLE_MAX - NAME_MAX) {
            return self.give_up();
        }
        let end = head.wrapping_add(size as u32);
        if !self.read(memory, address, head, end, TABLE_MAX) {
            return self.give_up();
        }
        self.keep(TABLE, address, end);
    }

    /// Reads bytes `from..to` of the object at `address` to behind the pieces so far.
    #[inline(always)]
    fn read<M: Memory>(&mut self, memory: &M, address: u64, from: u32, to: u32, mask: u32) -> bool {
        let length = (to.wrapping_sub(from) & mask) as usize;
        let start = self.used.wrapping_add(from) as usize & (ROOM - 1);
        memory.read(
            address.wrapping_add(u64::from(from)),
            &mut self.bytes[start..start + length],
        )
    }

    #[inline(always)]
    fn keep(&mut self, piece: usize, address: u64, length: u32) {
        self.code.pieces[piece] = Piece {
            address,
            length,
            padding: 0,
        };
        self.used = self.used.wrapping_add(length.wrapping_add(7) & !7);
    }

    /// Leaves out a piece.
    #[inline(always)]
    fn give_up(&mut self) {
        self.whole = 0;
    }
}

const _: () = {
    assert!((CODE_SPAN_MAX + 4 * 8) as u32 + 2 * NAME_MAX + FILE_MAX + TABLE_MAX < ROOM as u32);
    assert!(CODE_SPAN_MAX.is_power_of_two());
};
