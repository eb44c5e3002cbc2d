//! Finds a thread's thread state from its thread control block, by the version's own route or by
//! the interpreter's list, and says whether it holds the GIL. Knows the thread structures of glibc and
//! musl.

use bytemuck::Zeroable;

use super::Memory;
use super::bytes::{half, read_part, read_word, word};
use crate::{Chain, Gil, Layout, MAX_THREADS_WALKED, Outcome, Target, layout_flags};

/// Most bytes of a thread state that are read at once.
pub const THREAD_SPAN_MAX: usize = 512;

/// `offsetof(struct pthread, specific_1stblock)`, `offsetof(struct pthread, specific)` and the
/// sizes of `pthread_key_data` and of one second-level block; glibc nptl/descr.h, x86-64, the same
/// from 2.17 to 2.43.
const GLIBC_FIRST_BLOCK: u64 = 0x310;
const GLIBC_BLOCKS: u64 = 0x510;
const GLIBC_KEY_SIZE: u64 = 16;
const GLIBC_BLOCK_KEYS: u32 = 32;
const GLIBC_KEYS_MAX: u32 = 1024;
/// `sizeof(dtv_t)`; glibc sysdeps/x86_64/nptl/tls.h.
const GLIBC_DTV_ENTRY: u64 = 16;
/// `offsetof(struct pthread, tsd)`, the values of a thread's keys, and `PTHREAD_KEYS_MAX`; musl
/// src/internal/pthread_impl.h and include/limits.h, x86-64, the same from 1.2.0 to 1.2.6. Its DTV
/// holds plain addresses.
const MUSL_KEYS: u64 = 0x80;
const MUSL_KEYS_MAX: u32 = 128;
const MUSL_DTV_ENTRY: u64 = 8;
/// Where both keep the address of the thread's DTV: part of the ABI (glibc `tcbhead_t.dtv`).
const DTV: u64 = 8;

/// A thread state's bytes, in the first half of `bytes` (see [`read_part`]), and what was learnt on
/// the way to them.
#[derive(Zeroable)]
#[repr(C)]
pub(super) struct ThreadState {
    /// The thread state that holds the GIL, as far as that was looked up.
    current: u64,
    /// Of a thread that has several thread states, one for each interpreter that it was in: the one
    /// that is taken if no other has a frame, and the other that has one.
    outer: u64,
    inner: u64,
    bytes: [u8; 2 * THREAD_SPAN_MAX],
}

impl ThreadState {
    /// Reads the thread state of the thread with this control block and returns its address. Every
    /// route is checked by the same read: `thread_id` is the address of the thread control block, on
    /// every version.
    #[inline(always)]
    pub(super) fn find<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        target: &Target,
        control_block: u64,
    ) -> Result<u64, Outcome> {
        self.current = 0;
        self.outer = 0;
        self.inner = 0;
        // Up to 3.11 the key keeps the first thread state that a thread got, whichever it runs in;
        // later ones change it with the interpreter.
        let keeps_first = layout.gil == Gil::Current as u32;
        if target.current != 0
            && let Some(thread) = read_word(memory, target.current)
        {
            self.current = thread;
            if self.load(memory, layout, thread, control_block) {
                return Ok(thread);
            }
        }
        if target.tss_key != 0
            && let Some(thread) = read_tss(memory, layout, target.tss_key, control_block)
            && self.load(memory, layout, thread, control_block)
        {
            if !keeps_first || self.is_of_only_interpreter(memory, layout, target) {
                return Ok(thread);
            }
            self.outer = thread;
        }
        if target.tls_offset != 0
            && let Some(thread) = read_tls(memory, layout, target, control_block)
            && self.load(memory, layout, thread, control_block)
        {
            return Ok(thread);
        }
        let mut interpreter = match read_word(memory, target.interpreters) {
            Some(0) => return Err(Outcome::NoInterpreter),
            Some(interpreter) => interpreter,
            None => return Err(Outcome::UnreadableThread),
        };
        let mut thread = 0;
        let mut first = true;
        for _ in 0..MAX_THREADS_WALKED {
            let link = if first {
                interpreter.wrapping_add(u64::from(layout.interpreter_threads))
            } else {
                u64::wrapping_add(thread, u64::from(layout.thread_next))
            };
            thread = match read_word(memory, link) {
                Some(thread) => thread,
                None => return Err(Outcome::UnreadableThread),
            };
            first = false;
            if thread == 0 {
                let link = interpreter.wrapping_add(u64::from(layout.interpreter_next));
                interpreter = read_word(memory, link).unwrap_or(0);
                if interpreter == 0 {
                    return self.innermost(memory, layout, control_block);
                }
                first = true;
                continue;
            }
            let id = thread.wrapping_add(u64::from(layout.thread_id));
            if thread == self.outer || read_word(memory, id) != Some(control_block) {
                continue;
            }
            if !keeps_first {
                self.outer = thread;
                return self.innermost(memory, layout, control_block);
            }
            if !has_frame(memory, layout, thread) {
                if self.outer == 0 {
                    self.outer = thread;
                }
            } else if self.inner == 0 {
                self.inner = thread;
            } else {
                return Err(Outcome::UnreadableInterpreter);
            }
        }
        // The list goes on, and may hold the one in which the thread really runs.
        match self.outer {
            0 => self.innermost(memory, layout, control_block),
            _ => Err(Outcome::UnreadableInterpreter),
        }
    }

    /// Whether the interpreter of this thread state is the process's only one: the first of the list
    /// and the last.
    #[inline(always)]
    fn is_of_only_interpreter<M: Memory>(
        &self,
        memory: &M,
        layout: &Layout,
        target: &Target,
    ) -> bool {
        let interpreter = word(&self.bytes, layout.thread_interpreter);
        let next = interpreter.wrapping_add(u64::from(layout.interpreter_next));
        // What has no list to search is taken as it is.
        target.interpreters == 0
            || read_word(memory, target.interpreters) == Some(interpreter)
                && read_word(memory, next) == Some(0)
    }

    /// Takes, of the thread states that were seen to be this thread's, the one in which it runs: an
    /// interpreter's code was called by the one that made it, so it runs within that one's frames.
    #[inline(always)]
    fn innermost<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        control_block: u64,
    ) -> Result<u64, Outcome> {
        let thread = if self.inner != 0 {
            self.inner
        } else {
            self.outer
        };
        if thread == 0 {
            Err(Outcome::NoThreadState)
        } else if self.load(memory, layout, thread, control_block) {
            Ok(thread)
        } else {
            Err(Outcome::UnreadableThread)
        }
    }

    /// A word of the thread state: one between `thread_interpreter` and `thread_id`.
    #[inline(always)]
    pub(super) fn word(&self, offset: u32) -> u64 {
        word(&self.bytes, offset)
    }

    /// The word at `thread_frame`, where the chain of frames begins.
    #[inline(always)]
    pub(super) fn frame(&self, layout: &Layout) -> u64 {
        word(&self.bytes, layout.thread_frame)
    }

    /// Whether the thread state that was found, at `thread`, holds the GIL.
    #[inline(always)]
    pub(super) fn holds_gil<M: Memory>(&self, memory: &M, layout: &Layout, thread: u64) -> bool {
        if layout.gil == Gil::Current as u32 {
            self.current == thread
        } else if layout.gil == Gil::Holder as u32 {
            let interpreter = word(&self.bytes, layout.thread_interpreter);
            let Some(gil) = read_word(
                memory,
                interpreter.wrapping_add(u64::from(layout.gil_offset)),
            ) else {
                return false;
            };
            // struct _gil_runtime_state: last_holder at 8, locked at 16 (pycore_gil.h).
            read_word(memory, gil.wrapping_add(8)) == Some(thread)
                && read_word(memory, gil.wrapping_add(16)).is_some_and(|locked| locked as u32 == 1)
        } else if layout.gil == Gil::Status as u32 {
            half(&self.bytes, layout.gil_offset) & layout.gil_mask != 0
        } else if layout.gil == Gil::Attached as u32 {
            half(&self.bytes, layout.gil_offset) == 1
        } else {
            false
        }
    }

    /// Reads the thread state at `thread`; false when it is not that of this thread.
    #[inline(always)]
    fn load<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        thread: u64,
        control_block: u64,
    ) -> bool {
        // From the first to the last field that is of interest, so as to touch few cache lines.
        let (start, end) = (layout.thread_interpreter, layout.thread_id + 8);
        thread != 0
            && read_part(memory, thread, start, end, &mut self.bytes)
            && word(&self.bytes, layout.thread_id) == control_block
    }
}

/// Whether the thread state at `thread` has a Python frame.
#[inline(always)]
fn has_frame<M: Memory>(memory: &M, layout: &Layout, thread: u64) -> bool {
    let source = read_word(memory, thread.wrapping_add(u64::from(layout.thread_frame)));
    let frame = match source {
        Some(source) if source != 0 && layout.chain == Chain::CFrame as u32 => {
            read_word(memory, source.wrapping_add(u64::from(layout.cframe_frame)))
        }
        source => source,
    };
    frame.is_some_and(|frame| frame != 0)
}

/// The value of the pthread key whose number is at `key`, for the thread with this control block.
#[inline(always)]
fn read_tss<M: Memory>(memory: &M, layout: &Layout, key: u64, control_block: u64) -> Option<u64> {
    let mut bytes = [0u8; 4];
    if !memory.read(key, &mut bytes) {
        return None;
    }
    let key = u32::from_ne_bytes(bytes);
    if is_musl(layout) {
        if key >= MUSL_KEYS_MAX {
            return None;
        }
        let values = read_word(memory, control_block.wrapping_add(MUSL_KEYS))?;
        return read_word(memory, values.wrapping_add(8 * u64::from(key)));
    }
    let slot = u64::from(key % GLIBC_BLOCK_KEYS) * GLIBC_KEY_SIZE + 8;
    let block = if key < GLIBC_BLOCK_KEYS {
        control_block.wrapping_add(GLIBC_FIRST_BLOCK)
    } else if key < GLIBC_KEYS_MAX {
        let index = u64::from(key / GLIBC_BLOCK_KEYS);
        match read_word(memory, control_block.wrapping_add(GLIBC_BLOCKS + 8 * index)) {
            Some(0) | None => return None,
            Some(block) => block,
        }
    } else {
        return None;
    };
    read_word(memory, block.wrapping_add(slot))
}

/// The thread-local variable that [`Target`] names, for the thread with this control block.
#[inline(always)]
fn read_tls<M: Memory>(
    memory: &M,
    layout: &Layout,
    target: &Target,
    control_block: u64,
) -> Option<u64> {
    let block = if target.tls_module == 0 {
        control_block
    } else {
        let vector = read_word(memory, control_block.wrapping_add(DTV))?;
        let size = if is_musl(layout) {
            MUSL_DTV_ENTRY
        } else {
            GLIBC_DTV_ENTRY
        };
        let entry = target.tls_module.wrapping_mul(size);
        match read_word(memory, vector.wrapping_add(entry)) {
            // TLS_DTV_UNALLOCATED: this thread never touched the module's variables.
            Some(u64::MAX) | None => return None,
            Some(block) => block,
        }
    };
    read_word(memory, block.wrapping_add(target.tls_offset as u64))
}

#[inline(always)]
fn is_musl(layout: &Layout) -> bool {
    layout.flags & layout_flags::MUSL != 0
}
