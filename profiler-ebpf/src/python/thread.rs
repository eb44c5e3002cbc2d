//! Finds a thread's thread state from its thread control block, by the version's own route or by
//! the interpreter's list, and says whether it holds the GIL. Knows glibc's thread structures.

use bytemuck::Zeroable;

use super::Memory;
use super::bytes::{half, read_part, read_word, word};
use crate::{Gil, Layout, MAX_THREADS_WALKED, Outcome, Target};

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
/// `offsetof(tcbhead_t, dtv)` and `sizeof(dtv_t)`; glibc sysdeps/x86_64/nptl/tls.h.
const GLIBC_DTV: u64 = 8;
const GLIBC_DTV_ENTRY: u64 = 16;

/// A thread state's bytes, in the first half of `bytes` (see [`read_part`]), and what was learnt on
/// the way to them.
#[derive(Zeroable)]
#[repr(C)]
pub(super) struct ThreadState {
    /// The thread state that holds the GIL, as far as that was looked up.
    current: u64,
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
        if target.current != 0
            && let Some(thread) = read_word(memory, target.current)
        {
            self.current = thread;
            if self.load(memory, layout, thread, control_block) {
                return Ok(thread);
            }
        }
        if target.tss_key != 0
            && let Some(thread) = read_tss(memory, target.tss_key, control_block)
            && self.load(memory, layout, thread, control_block)
        {
            return Ok(thread);
        }
        if target.tls_offset != 0
            && let Some(thread) = read_tls(memory, target, control_block)
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
                    break;
                }
                first = true;
                continue;
            }
            let id = thread.wrapping_add(u64::from(layout.thread_id));
            if read_word(memory, id) == Some(control_block) {
                return if self.load(memory, layout, thread, control_block) {
                    Ok(thread)
                } else {
                    Err(Outcome::UnreadableThread)
                };
            }
        }
        Err(Outcome::NoThreadState)
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

/// The value of the pthread key whose number is at `key`, for the thread with this control block.
#[inline(always)]
fn read_tss<M: Memory>(memory: &M, key: u64, control_block: u64) -> Option<u64> {
    let mut bytes = [0u8; 4];
    if !memory.read(key, &mut bytes) {
        return None;
    }
    let key = u32::from_ne_bytes(bytes);
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
fn read_tls<M: Memory>(memory: &M, target: &Target, control_block: u64) -> Option<u64> {
    let block = if target.tls_module == 0 {
        control_block
    } else {
        let vector = read_word(memory, control_block.wrapping_add(GLIBC_DTV))?;
        let entry = target.tls_module.wrapping_mul(GLIBC_DTV_ENTRY);
        match read_word(memory, vector.wrapping_add(entry)) {
            // TLS_DTV_UNALLOCATED: this thread never touched the module's variables.
            Some(u64::MAX) | None => return None,
            Some(block) => block,
        }
    };
    read_word(memory, block.wrapping_add(target.tls_offset as u64))
}
