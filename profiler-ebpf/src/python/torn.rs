//! The instants of a call at which 3.11 and 3.12 have published a frame and not yet linked it, or an
//! evaluation and not yet its frame: a few in a thousand. Where a generator of 3.12 is resumed its
//! caller is found by another way; elsewhere the stack is marked, it is never taken for whole. (In
//! `_PyCFrame.previous` nothing can be trusted: compilers differ in when they set it.)

use super::bytes::read_word;
use super::{ENTRY, GENERATOR, Memory, Walk};
use crate::{Layout, Target};

/// How far an evaluation's entry frame can lie from its `_PyCFrame`: both are variables of one C
/// function (`_PyEval_EvalFrameDefault`).
const SAME_FUNCTION: u64 = 1024;
/// How far before a generator's frame its `gi_exc_state` lies, and in that `previous_item`
/// (`_PyGenObject_HEAD` of Include/cpython/genobject.h, 3.12).
const EXCEPTIONS: u64 = 32;
const PREVIOUS_ITEM: u64 = 8;
/// Sizes of frames that are tried, in words: from the fixed part to one of a page.
const FRAME_WORDS: core::ops::Range<u32> = 9..512;
/// Most generators and entries between two frames of the data stack that are looked at.
const BETWEEN: u32 = 8;

/// What mending a torn chain gave.
pub(super) enum Mended {
    /// The chain goes on with this frame.
    Caller(u64),
    /// The caller is looked for, a size of frame each step.
    Searching,
    /// There is no telling.
    No,
}

impl Walk {
    /// Whether the frame at `address` is the newest evaluation's entry frame, filled or not (3.12).
    #[inline(always)]
    pub(super) fn is_own_entry(&self, layout: &Layout, address: u64) -> bool {
        let evaluation = self.thread.frame(layout);
        layout.thread_stack_top != 0
            && address.wrapping_sub(evaluation).wrapping_add(SAME_FUNCTION) < 2 * SAME_FUNCTION
    }

    /// The caller of the generator that is the newest frame and has none yet (3.12): what resumed it
    /// is the newest frame of the data stack, or a generator that this one resumed in turn.
    #[inline(always)]
    pub(super) fn begin_search<M: Memory>(&mut self, memory: &M, layout: &Layout) -> Mended {
        if layout.thread_stack_top == 0 {
            return Mended::No;
        }
        let top = self
            .thread_state
            .wrapping_add(u64::from(layout.thread_stack_top));
        match read_word(memory, top) {
            Some(top) => {
                self.stack_top = top;
                self.words = FRAME_WORDS.start;
                Mended::Searching
            }
            None => Mended::No,
        }
    }

    /// Whether the newest frame of the data stack is this many words long; then what resumed the
    /// generator.
    #[inline(always)]
    pub(super) fn search<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        target: &Target,
    ) -> Mended {
        let words = self.words;
        self.words = words + 1;
        if words >= FRAME_WORDS.end {
            return Mended::No;
        }
        let frame = self.stack_top.wrapping_sub(8 * u64::from(words));
        let Some(code) = read_word(memory, frame.wrapping_add(u64::from(layout.frame_code))) else {
            // Below the chunk, or not in memory.
            return Mended::No;
        };
        let kind = code.wrapping_add(u64::from(layout.object_type));
        if read_word(memory, kind) != Some(target.code_type) {
            return Mended::Searching;
        }
        // Two fields of half a word: read the word that the second ends.
        let size = code.wrapping_add(u64::from(layout.code_frame_size & !7));
        let size = read_word(memory, size).map(|word| (word >> 32) as u32);
        if size != Some(words) || owner(memory, layout, frame) != Some(0) {
            return Mended::Searching;
        }
        self.words = 0;
        match self.resumer(memory, layout, frame) {
            Some(caller) => Mended::Caller(caller),
            None => Mended::No,
        }
    }

    /// Which resumed the newest frame: `frame`, the newest of the data stack, or the generator that
    /// ran before, if that is newer. Each generator that runs is in a list by its exceptions.
    #[inline(always)]
    fn resumer<M: Memory>(&self, memory: &M, layout: &Layout, frame: u64) -> Option<u64> {
        let mut item = self.thread.word(layout.thread_exceptions);
        if item == self.newest.wrapping_sub(EXCEPTIONS) {
            item = read_word(memory, item.wrapping_add(PREVIOUS_ITEM))?;
        }
        // The thread's own, with which the list ends.
        if read_word(memory, item.wrapping_add(PREVIOUS_ITEM))? == 0 {
            return Some(frame);
        }
        let generator = item.wrapping_add(EXCEPTIONS);
        if u32::from(owner(memory, layout, generator)?) != GENERATOR {
            return None;
        }
        let mut caller = generator;
        for _ in 0..BETWEEN {
            caller = read_word(
                memory,
                caller.wrapping_add(u64::from(layout.frame_previous)),
            )?;
            if caller == frame {
                return Some(generator);
            }
            match u32::from(owner(memory, layout, caller)?) {
                GENERATOR | ENTRY => {}
                // Another frame of the data stack: the newest was called since.
                _ => return Some(frame),
            }
        }
        None
    }
}

/// The `owner` of the frame at `frame`.
#[inline(always)]
fn owner<M: Memory>(memory: &M, layout: &Layout, frame: u64) -> Option<u8> {
    let mut byte = [0];
    let at = frame.wrapping_add(u64::from(layout.frame_owner));
    memory.read(at, &mut byte).then_some(byte[0])
}
