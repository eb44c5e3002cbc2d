//! The walk over a thread's Python frames: from its thread control block to the list of (code
//! object, instruction, identity), newest first, its hash, and an [`Outcome`]. It names nothing.
//!
//! Generic over [`Memory`], so that the same code runs in the kernel, against a live process and
//! against recorded memory. [`Walk::begin`] finds the thread state, then [`Walk::step`] is called
//! until it returns false; the kernel drives it with `bpf_loop`. All state lies in [`Walk`], a map
//! value there: what the verifier sees loaded from a map is an unknown number and needs no tracking
//! from step to step, and each index is masked right where it is used.

mod bytes;
mod capture;
mod identity;
mod thread;
mod torn;

use core::hint::black_box;

use bytemuck::Zeroable;

use crate::{
    Chain, Frame, KERNEL_FAILED, Layout, MAX_FRAMES, MAX_KERNEL, MAX_NATIVE, NO_INSTRUCTION,
    Outcome, RecordKind, Sample, Stack, Target, layout_flags,
    native::{Entries, Native},
};

use bytes::{byte, half, read_word, word};
pub use capture::{Capture, code_hash};
use identity::Identities;
pub(crate) use identity::mix;
pub use identity::{CODE_SPAN_MAX, CodeFault, identity};
pub use thread::THREAD_SPAN_MAX;
use thread::ThreadState;
use torn::Mended;

/// Most bytes of a frame that are read at once.
pub const FRAME_SPAN_MAX: usize = 128;

/// The data stack is read in windows of at most a page, which is some thirty frames: a window that
/// ends within the page where it began can't fail when that page is in memory.
const WINDOW: usize = 4096;
/// The window, then room for one frame that lies elsewhere. A power of two, so that a mask bounds
/// an offset into it.
const BUFFER: usize = 2 * WINDOW;
/// Owners of frames: `enum _frameowner` of Include/internal/pycore_frame.h.
const GENERATOR: u32 = 1;
const ENTRY: u32 = 3;
/// A frame at most this far below the last one is taken to lie in the data stack as that one does;
/// any other lies alone: in a generator's object, or on the C stack.
const NEAR: u64 = 1 << 16;

#[inline(always)]
fn not_zero(hash: u64) -> u64 {
    if hash == 0 { 1 } else { hash }
}

/// A process's memory, wherever it is read from.
pub trait Memory {
    /// Fills `into` from `address`; false when any byte of it can't be read.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;
}

/// The state of one walk and the sample that it fills.
#[derive(Zeroable)]
#[repr(C)]
pub struct Walk {
    /// Address of the next frame; 0 at the chain's end.
    next: u64,
    /// Which part of the data stack `buffer` holds.
    window_low: u64,
    window_high: u64,
    /// The last frame that was read alone: the data stack may go on below it, in another chunk.
    alone: u64,
    /// The thread state, and its newest frame.
    thread_state: u64,
    newest: u64,
    /// While the newest frame's caller is looked for: the end of the data stack, and the size of
    /// frame that is tried next; 0 otherwise.
    stack_top: u64,
    words: u32,
    /// The `owner` of the last frame; 3 stands for 4, too.
    last: u32,
    /// 3.11: the `_PyCFrame` of the loop that runs the next frame.
    cframe: u64,
    /// When it began, nanoseconds of `CLOCK_MONOTONIC`, where that is asked for.
    pub began: u64,
    /// How many kept frames had no identity.
    pub unproven: u32,
    /// Of the kept frames' code objects and identities: equal for stacks of the same functions.
    functions: u64,
    /// Of the kept frames' identities and instructions.
    places: u64,
    buffer: [u8; BUFFER + 8],
    thread: ThreadState,
    identities: Identities,
    /// Where this walk has met the native stack.
    pub entries: Entries,
    pub sample: Sample,
    /// The stack, whose frames are the first `stack.frames` of [`Walk::frames`], which follow it in
    /// memory as they do in a record; right behind them are its native frames and then the kernel's, two in the place
    /// of one.
    pub stack: Stack,
    pub frames: [Frame; WORDS / 2],
}

/// Of the frames, which is room for all three kinds.
const WORDS: usize = 2 * MAX_FRAMES + MAX_NATIVE + MAX_KERNEL + 1;

impl Walk {
    /// Finds the thread state of the thread whose thread control block is at `control_block`, and
    /// its newest frame. True when there are frames to [`step`](Self::step) over; else the
    /// sample's outcome says why not.
    #[inline(always)]
    pub fn begin<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        target: &Target,
        control_block: u64,
    ) -> bool {
        self.identities.begin();
        // The fields that are not reset are set before they are read, or (window_low) do no harm.
        self.window_high = 0;
        self.last = 0;
        self.words = 0;
        self.unproven = 0;
        self.functions = 0;
        self.places = 0;
        self.stack.frames = 0;
        self.stack.native = 0;
        self.stack.native_end = 0;
        self.stack.kernel = 0;
        self.entries.begin();
        self.sample.gil = 0;
        // What holds if the steps run out: a chain of entry frames alone may have no end.
        self.sample.outcome = Outcome::TruncatedDepth as u8;

        let thread = match self.thread.find(memory, layout, target, control_block) {
            Ok(thread) => thread,
            Err(outcome) => return self.end(outcome),
        };
        self.thread_state = thread;
        self.sample.gil = u8::from(self.thread.holds_gil(memory, layout, thread));
        let source = self.thread.frame(layout);
        let frame = if layout.chain == Chain::CFrame as u32 && source != 0 {
            match read_word(memory, source.wrapping_add(u64::from(layout.cframe_frame))) {
                Some(frame) => frame,
                None => return self.end(Outcome::UnreadableThread),
            }
        } else {
            source
        };
        self.newest = frame;
        self.cframe = source;
        if frame == 0 {
            return self.end(Outcome::NoFrames);
        }
        self.next = frame;
        // The newest frame is most likely in the data stack, below itself so to say.
        self.alone = frame;
        true
    }

    /// Takes one frame of the chain. False when the walk is over and the outcome is set.
    #[inline(always)]
    pub fn step<M: Memory>(&mut self, memory: &M, layout: &Layout, target: &Target) -> bool {
        if self.words != 0 {
            let mended = self.search(memory, layout, target);
            return self.mend(mended, Outcome::TruncatedEntry);
        }
        let address = self.next;
        let count = self.stack.frames;
        let torn_calls = layout.flags & layout_flags::TORN_CALLS != 0;
        if address == 0 {
            // A generator that is being resumed is published before it is linked to its caller.
            if torn_calls && count == 1 && self.last == GENERATOR {
                let mended = self.begin_search(memory, layout);
                return self.mend(mended, Outcome::TruncatedEntry);
            }
            // No chain of 3.11 begins with a generator: what leads to one that rests is garbage.
            let whole = match layout.flags & layout_flags::ENDS_AT_ENTRY {
                0 => !torn_calls || self.last != GENERATOR,
                _ => self.last == ENTRY,
            };
            return self.end(match (whole, self.stack.frames) {
                (true, 0) => Outcome::NoFrames,
                (true, _) => Outcome::Complete,
                (false, _) => Outcome::TruncatedEntry,
            });
        }
        let Some(at) = self.locate(memory, layout, address) else {
            return self.end_at_frame(Outcome::UnreadableFrame, Outcome::TruncatedFrame);
        };
        self.next = word(&self.buffer, at.wrapping_add(layout.frame_previous));
        // The low bits of a reference are tags from 3.14 on, and zero before.
        let code = word(&self.buffer, at.wrapping_add(layout.frame_code)) & !7;
        let owner = match layout.frame_owner {
            0 => 0,
            offset => byte(&self.buffer, at.wrapping_add(offset)),
        };
        match owner {
            0..=2 => self.last = u32::from(owner),
            // FRAME_OWNED_BY_CSTACK, FRAME_OWNED_BY_INTERPRETER: Include/internal/pycore_frame.h.
            3 | 4 if layout.flags & layout_flags::ENTRY_FRAMES != 0 => {
                self.last = ENTRY;
                self.entries.meet(address, count);
                return true;
            }
            _ => return self.end_at_frame(Outcome::UnreadableCode, Outcome::TruncatedCode),
        }
        // An entry frame that is not one yet.
        if torn_calls && count <= 1 && self.is_own_entry(layout, address) {
            return self.end_at_frame(Outcome::UnreadableCode, Outcome::TruncatedCode);
        }
        if count as usize >= MAX_FRAMES {
            return self.end(Outcome::TruncatedDepth);
        }
        let identity = match self.identities.of(memory, layout, target.code_type, code) {
            Ok(identity) => identity,
            Err(fault)
                if fault == CodeFault::NoIdentity
                    || fault == CodeFault::Unreadable && !torn_calls =>
            {
                self.unproven += 1;
                0
            }
            Err(_) => return self.end_at_frame(Outcome::UnreadableCode, Outcome::TruncatedCode),
        };
        let instruction = if layout.chain == Chain::FrameObject as u32 {
            half(&self.buffer, at.wrapping_add(layout.frame_instruction)) as i32
        } else {
            let pointer = word(&self.buffer, at.wrapping_add(layout.frame_instruction));
            let start = match layout.frame_tlbc {
                0 => Some(code.wrapping_add(u64::from(layout.code_bytes))),
                offset => {
                    let copy = half(&self.buffer, at.wrapping_add(offset));
                    first_instruction(memory, layout, code, copy)
                }
            };
            distance(start, pointer)
        };
        // The compiler knows that the mask changes nothing, and would leave it out; a verifier that
        // has lost sight of the comparison, as that of 5.10 may, needs it.
        let index = black_box(count as usize) & (MAX_FRAMES - 1);
        self.frames[index] = Frame {
            code,
            instruction,
            identity,
        };
        self.stack.frames = count + 1;
        self.note_entry(memory, layout, at);
        let identity = u64::from(identity) << 32;
        self.functions = mix(self.functions ^ identity, code);
        self.places = mix(self.places, identity | u64::from(instruction as u32));
        true
    }

    /// 3.11: a frame that its loop has run first tells where the native stack is met, by the loop's
    /// `_PyCFrame`, a local variable of it (Python/ceval.c).
    #[inline(always)]
    fn note_entry<M: Memory>(&mut self, memory: &M, layout: &Layout, at: u32) {
        if layout.frame_is_entry == 0
            || !self.entries.are_wanted()
            || byte(&self.buffer, at.wrapping_add(layout.frame_is_entry)) == 0
        {
            return;
        }
        self.entries.meet(self.cframe, self.stack.frames);
        let previous = self.cframe.wrapping_add(u64::from(layout.cframe_previous));
        self.cframe = read_word(memory, previous).unwrap_or(0);
    }

    /// Puts a native frame where it belongs in the record.
    #[inline(always)]
    pub fn keep_native(&mut self, index: u32, frame: u64) {
        let at = (2 * self.stack.frames + index) as usize;
        if let Some(word) = self.words().get_mut(at) {
            *word = frame;
        }
    }

    #[inline(always)]
    fn words(&mut self) -> &mut [u64; WORDS] {
        let words = (&raw mut self.frames).cast::<[u64; WORDS]>();
        // SAFETY: the frames are as many words long, plain numbers without padding, aligned to 8.
        unsafe { &mut *words }
    }

    /// Where in the record the kernel's frames belong, behind the native ones.
    #[inline(always)]
    pub fn room_for_kernel(&mut self) -> Option<&mut [u64; MAX_KERNEL]> {
        let at = self.kernel_at();
        if at > WORDS - MAX_KERNEL {
            return None;
        }
        // SAFETY: that leaves as many words as are asked for.
        Some(unsafe { &mut *self.words().as_mut_ptr().add(at).cast() })
    }

    #[inline(always)]
    fn kernel_at(&self) -> usize {
        black_box(2 * self.stack.frames as usize + usize::from(self.stack.native))
    }

    /// The kernel has put so many bytes of frames there; none or less: it failed.
    #[inline(always)]
    pub fn take_kernel(&mut self, bytes: i64) {
        let frames = bytes / size_of::<u64>() as i64;
        self.stack.kernel = if frames > 0 && frames <= MAX_KERNEL as i64 {
            frames as u8
        } else {
            KERNEL_FAILED
        };
    }

    /// After that: the kernel's frames are a part of what names the stack.
    #[inline(always)]
    pub fn mix_kernel(&mut self) {
        let kernel = usize::from(self.stack.kernel);
        let mut places = mix(self.places, kernel as u64);
        if kernel != usize::from(KERNEL_FAILED)
            && let Some(frames) = self.room_for_kernel()
        {
            for (index, &frame) in frames.iter().enumerate() {
                if index >= kernel {
                    break;
                }
                places = mix(places, frame);
            }
        }
        self.places = places;
    }

    /// After the last step over native frames.
    #[inline(always)]
    pub fn take_native(&mut self, native: &Native) {
        self.stack.native = native.frames as u16;
        self.stack.native_end = native.end as u8;
        self.places = mix(mix(self.places, native.hash), u64::from(native.end));
    }

    /// After the last step: names the stack, for as long as the daemon's `epoch` lasts. Returns the
    /// hash of its functions alone, which leaves out where in them the frames are.
    #[inline(always)]
    pub fn name(&mut self, epoch: u64, target: u32) -> u64 {
        let functions = not_zero(mix(mix(epoch, u64::from(target)), self.functions));
        let hash = match self.stack.frames {
            0 => 0,
            _ => not_zero(mix(functions, self.places)),
        };
        self.stack.kind = RecordKind::Stack as u32;
        self.stack.target = target;
        self.stack.hash = hash;
        self.sample.stack = hash;
        functions
    }

    #[inline(always)]
    fn end(&mut self, outcome: Outcome) -> bool {
        self.sample.outcome = outcome as u8;
        false
    }

    /// Ends at a frame that is no good: `newest` if it would have been the first.
    #[inline(always)]
    fn end_at_frame(&mut self, newest: Outcome, caller: Outcome) -> bool {
        let outcome = if self.stack.frames == 0 {
            newest
        } else {
            caller
        };
        self.end(outcome)
    }

    /// Goes on where a torn chain was mended; ends with `outcome` where it was not.
    #[inline(always)]
    fn mend(&mut self, mended: Mended, outcome: Outcome) -> bool {
        match mended {
            Mended::Caller(caller) => {
                self.next = caller;
                self.alone = caller;
                self.words = 0;
                true
            }
            Mended::Searching => true,
            Mended::No => self.end(outcome),
        }
    }

    /// Where in `buffer` the frame at `address` begins (less `frame_start`), reading it if needed.
    #[inline(always)]
    fn locate<M: Memory>(&mut self, memory: &M, layout: &Layout, address: u64) -> Option<u32> {
        let end = address.wrapping_add(u64::from(layout.frame_span));
        // Garbage: an address at the end of the address space would wrap into the window, one
        // between words would be rounded there.
        if end < address || address & 7 != 0 {
            return None;
        }
        if address >= self.window_low && end <= self.window_high {
            return Some((address - self.window_low) as u32);
        }
        let below =
            self.window_low.wrapping_sub(address) < NEAR || self.alone.wrapping_sub(address) < NEAR;
        let page = address & !(WINDOW as u64 - 1);
        if below && layout.chain != Chain::FrameObject as u32 && end - page <= WINDOW as u64 {
            let length = (end - page) as usize & (BUFFER - 1);
            if memory.read(page, &mut self.buffer[..length]) {
                self.window_low = page;
                self.window_high = end;
                return Some((address - page) as u32);
            }
            return None;
        }
        self.alone = address;
        let start = layout.frame_start;
        let length = layout.frame_span as usize & (FRAME_SPAN_MAX - 1);
        memory
            .read(
                address.wrapping_add(u64::from(start)),
                &mut self.buffer[WINDOW..WINDOW + length],
            )
            .then(|| (WINDOW as u32).wrapping_sub(start))
    }
}

/// Where the code begins that a frame with this `tlbc_index` runs: 0 is the code object's own, else
/// it is a copy for one thread (`_PyCodeArray` of Include/cpython/code.h: a size, then pointers).
#[inline(always)]
fn first_instruction<M: Memory>(memory: &M, layout: &Layout, code: u64, copy: u32) -> Option<u64> {
    if copy == 0 {
        return Some(code.wrapping_add(u64::from(layout.code_bytes)));
    }
    let copies = read_word(memory, code.wrapping_add(u64::from(layout.code_tlbc)))?;
    read_word(memory, copies.wrapping_add(8 + 8 * u64::from(copy)))
}

/// [`Frame::instruction`] from 3.11 on.
#[inline(always)]
fn distance(start: Option<u64>, pointer: u64) -> i32 {
    let Some(start) = start else {
        return NO_INSTRUCTION;
    };
    let distance = pointer.wrapping_sub(start) as i64;
    i32::try_from(distance).unwrap_or(NO_INSTRUCTION)
}
