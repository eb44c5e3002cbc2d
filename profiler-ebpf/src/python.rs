//! The walk over a thread's Python frames: from its thread control block to the list of (code
//! object, instruction, identity), newest first, and an [`Outcome`]. It names nothing.
//!
//! Generic over [`Memory`], so that the same code runs in the kernel, against a live process and
//! against recorded memory. [`Walk::begin`] finds the thread state, then [`Walk::step`] is called
//! until it returns false; the kernel drives it with `bpf_loop`. All state lies in [`Walk`], a map
//! value there: what the verifier sees loaded from a map is an unknown number and needs no tracking
//! from step to step, and each index is masked right where it is used.

use bytemuck::Zeroable;

use crate::{
    Chain, Frame, Gil, Layout, MAX_FRAMES, MAX_THREADS_WALKED, Outcome, Sample, Target,
    layout_flags,
};

/// Most bytes of a frame that are read at once.
pub const FRAME_SPAN_MAX: usize = 128;
/// Most bytes of a code object that are read at once.
pub const CODE_SPAN_MAX: usize = 256;
/// Most bytes of a thread state that are read at once.
pub const THREAD_SPAN_MAX: usize = 512;

/// The data stack is read in windows of at most a page, which is some thirty frames: a window that
/// ends within the page where it began can't fail when that page is in memory.
const WINDOW: usize = 4096;
/// The window, then room for one frame that lies elsewhere. A power of two, so that a mask bounds
/// an offset into it.
const BUFFER: usize = 2 * WINDOW;
/// A frame at most this far below the last one is taken to lie in the data stack as that one does;
/// any other lies alone: in a generator's object, or on the C stack.
const NEAR: u64 = 1 << 16;
/// Slots of the caches of code objects and of file names that one walk has met.
const SEEN: usize = 64;
const SEEN_FILES: usize = 16;

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

/// A process's memory, wherever it is read from.
pub trait Memory {
    /// Fills `into` from `address`; false when any byte of it can't be read.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;
}

/// Why a code object gave no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeFault {
    /// It, or a string that identifies it, could not be read.
    Unreadable,
    /// What lies there is not a code object.
    NotCode,
}

/// The bytes of one code object, in its first half: see `read_part`.
pub type CodeBytes = [u8; 2 * CODE_SPAN_MAX];

#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
struct Seen {
    address: u64,
    walk: u64,
    digest: u64,
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
    /// The thread state that holds the GIL, as far as that was looked up.
    current: u64,
    /// Number of this walk: what the caches hold is of this walk alone, because a code object may
    /// be another one the next time.
    serial: u64,
    /// 1 when the last frame was one that enters the interpreter.
    at_entry: u32,
    /// How many kept frames had no identity.
    pub unproven: u32,
    buffer: [u8; BUFFER + 8],
    thread: [u8; 2 * THREAD_SPAN_MAX],
    code: CodeBytes,
    text: [u8; 64],
    seen: [Seen; SEEN],
    files: [Seen; SEEN_FILES],
    /// The sample; `frames` of it are the first `sample.frames` of [`Walk::frames`], which follow
    /// it in memory as they do in a record.
    pub sample: Sample,
    pub frames: [Frame; MAX_FRAMES],
}

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
        self.serial = self.serial.wrapping_add(1);
        // The fields that are not reset are set before they are read, or (window_low) do no harm.
        self.window_high = 0;
        self.at_entry = 0;
        self.unproven = 0;
        self.current = 0;
        self.sample.frames = 0;
        self.sample.gil = 0;
        // What holds if the steps run out: a chain of entry frames alone may have no end.
        self.sample.outcome = Outcome::TruncatedDepth as u8;

        let thread = match self.find_thread(memory, layout, target, control_block) {
            Ok(thread) => thread,
            Err(outcome) => return self.end(outcome),
        };
        self.sample.gil = u8::from(self.holds_gil(memory, layout, thread));
        let source = word(&self.thread, layout.thread_frame);
        let frame = if layout.chain == Chain::CFrame as u32 && source != 0 {
            match read_word(memory, source.wrapping_add(u64::from(layout.cframe_frame))) {
                Some(frame) => frame,
                None => return self.end(Outcome::UnreadableThread),
            }
        } else {
            source
        };
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
        let address = self.next;
        if address == 0 {
            let whole = layout.flags & layout_flags::ENDS_AT_ENTRY == 0 || self.at_entry != 0;
            return self.end(match (whole, self.sample.frames) {
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
            0..=2 => self.at_entry = 0,
            // FRAME_OWNED_BY_CSTACK, FRAME_OWNED_BY_INTERPRETER: Include/internal/pycore_frame.h.
            3 | 4 if layout.flags & layout_flags::ENTRY_FRAMES != 0 => {
                self.at_entry = 1;
                return true;
            }
            _ => return self.end_at_frame(Outcome::UnreadableCode, Outcome::TruncatedCode),
        }
        let count = self.sample.frames;
        if count as usize >= MAX_FRAMES {
            return self.end(Outcome::TruncatedDepth);
        }
        let torn_calls = layout.flags & layout_flags::TORN_CALLS != 0;
        let identity = match self.identity(memory, layout, target, code) {
            Ok(identity) => identity,
            Err(CodeFault::Unreadable) if !torn_calls => {
                self.unproven += 1;
                0
            }
            Err(_) => return self.end_at_frame(Outcome::UnreadableCode, Outcome::TruncatedCode),
        };
        let instruction = if layout.chain == Chain::FrameObject as u32 {
            half(&self.buffer, at.wrapping_add(layout.frame_instruction)) as i32
        } else {
            let pointer = word(&self.buffer, at.wrapping_add(layout.frame_instruction));
            let start = code.wrapping_add(u64::from(layout.code_bytes));
            let distance = pointer.wrapping_sub(start) as i64;
            i32::try_from(distance).unwrap_or(i32::MIN)
        };
        self.frames[count as usize & (MAX_FRAMES - 1)] = Frame {
            code,
            instruction,
            identity,
        };
        self.sample.frames = count + 1;
        true
    }

    #[inline(always)]
    fn end(&mut self, outcome: Outcome) -> bool {
        self.sample.outcome = outcome as u8;
        false
    }

    /// Ends at a frame that is no good: `newest` if it would have been the first.
    #[inline(always)]
    fn end_at_frame(&mut self, newest: Outcome, caller: Outcome) -> bool {
        let outcome = if self.sample.frames == 0 {
            newest
        } else {
            caller
        };
        self.end(outcome)
    }

    /// Leaves the thread state in `self.thread` and returns its address. Every route is checked by
    /// the same read: `thread_id` is the address of the thread control block, on every version.
    #[inline(always)]
    fn find_thread<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        target: &Target,
        control_block: u64,
    ) -> Result<u64, Outcome> {
        if target.current != 0
            && let Some(thread) = read_word(memory, target.current)
        {
            self.current = thread;
            if self.load_thread(memory, layout, thread, control_block) {
                return Ok(thread);
            }
        }
        if target.tss_key != 0
            && let Some(thread) = read_tss(memory, target.tss_key, control_block)
            && self.load_thread(memory, layout, thread, control_block)
        {
            return Ok(thread);
        }
        if target.tls_offset != 0
            && let Some(thread) = read_tls(memory, target, control_block)
            && self.load_thread(memory, layout, thread, control_block)
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
                return if self.load_thread(memory, layout, thread, control_block) {
                    Ok(thread)
                } else {
                    Err(Outcome::UnreadableThread)
                };
            }
        }
        Err(Outcome::NoThreadState)
    }

    #[inline(always)]
    fn load_thread<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        thread: u64,
        control_block: u64,
    ) -> bool {
        // From the first to the last field that is of interest, so as to touch few cache lines.
        let (start, end) = (layout.thread_interpreter, layout.thread_id + 8);
        thread != 0
            && read_part(memory, thread, start, end, &mut self.thread)
            && word(&self.thread, layout.thread_id) == control_block
    }

    #[inline(always)]
    fn holds_gil<M: Memory>(&self, memory: &M, layout: &Layout, thread: u64) -> bool {
        if layout.gil == Gil::Current as u32 {
            self.current == thread
        } else if layout.gil == Gil::Holder as u32 {
            let interpreter = word(&self.thread, layout.thread_interpreter);
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
            half(&self.thread, layout.gil_offset) & layout.gil_mask != 0
        } else {
            false
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

    /// [`identity`], remembering what this walk has met: deep stacks are mostly repetition.
    #[inline(always)]
    fn identity<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        target: &Target,
        code: u64,
    ) -> Result<u32, CodeFault> {
        let slot = slot(code) & (SEEN - 1);
        if self.seen[slot].address == code && self.seen[slot].walk == self.serial {
            return Ok(self.seen[slot].digest as u32);
        }
        let versioned = read_code(memory, layout, target.code_type, code, &mut self.code)?;
        let identity = if versioned {
            version_identity(layout, &self.code)
        } else {
            let name = word(&self.code, layout.code_name);
            let file = word(&self.code, layout.code_filename);
            let hash = name_hash(memory, layout, name).ok_or(CodeFault::Unreadable)?;
            let strings = hash ^ self.file_digest(memory, layout, file)?;
            pointer_identity(layout, &self.code, strings)
        };
        self.seen[slot] = Seen {
            address: code,
            walk: self.serial,
            digest: u64::from(identity),
        };
        Ok(identity)
    }

    #[inline(always)]
    fn file_digest<M: Memory>(
        &mut self,
        memory: &M,
        layout: &Layout,
        file: u64,
    ) -> Result<u64, CodeFault> {
        let slot = slot(file) & (SEEN_FILES - 1);
        if self.files[slot].address == file && self.files[slot].walk == self.serial {
            return Ok(self.files[slot].digest);
        }
        let digest =
            file_digest(memory, layout, file, &mut self.text).ok_or(CodeFault::Unreadable)?;
        self.files[slot] = Seen {
            address: file,
            walk: self.serial,
            digest,
        };
        Ok(digest)
    }
}

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
    let mut bytes = [0; 2 * CODE_SPAN_MAX];
    if read_code(memory, layout, code_type, code, &mut bytes)? {
        return Ok(version_identity(layout, &bytes));
    }
    let name = word(&bytes, layout.code_name);
    let file = word(&bytes, layout.code_filename);
    let hash = name_hash(memory, layout, name).ok_or(CodeFault::Unreadable)?;
    let digest = file_digest(memory, layout, file, &mut [0; 64]).ok_or(CodeFault::Unreadable)?;
    Ok(pointer_identity(layout, &bytes, hash ^ digest))
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
        layout.code_first_line & !7
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
        return Err(CodeFault::Unreadable);
    }
    Ok(false)
}

/// Reads bytes `start..end` of the object at `object` to the same place in `into`, of which half is
/// in use: with both the start and the length below half, the verifier need not know their sum.
#[inline(always)]
fn read_part<M: Memory, const N: usize>(
    memory: &M,
    object: u64,
    start: u32,
    end: u32,
    into: &mut [u8; N],
) -> bool {
    let bound = N / 2 - 1;
    let length = end.wrapping_sub(start) as usize & bound;
    let start = start as usize & bound;
    memory.read(
        object.wrapping_add(start as u64),
        &mut into[start..start + length],
    )
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
    // The header of the string: PyASCIIObject up to `state`, at most 40 bytes on these versions.
    if !memory.read(file, &mut text[..40]) {
        return None;
    }
    let length = word(text, layout.str_length);
    let state = half(text, layout.str_state);
    let kind = u64::from(state >> layout.str_kind_shift & 7);
    // Bit 4 of the shifted state is `ascii`: kind has three bits, then `compact`, then `ascii`.
    let data = if state >> (layout.str_kind_shift + 4) & 1 != 0 {
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

#[inline(always)]
fn read_word<M: Memory>(memory: &M, address: u64) -> Option<u64> {
    let mut bytes = [0u8; 8];
    memory
        .read(address, &mut bytes)
        .then(|| u64::from_ne_bytes(bytes))
}

/// A step of a multiplicative hash over words (the constant is 2^64 / golden ratio).
#[inline(always)]
fn mix(hash: u64, value: u64) -> u64 {
    (hash.rotate_left(29) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[inline(always)]
fn slot(address: u64) -> usize {
    (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize
}

/// The 8 bytes at `offset`, which wraps within the buffer: layouts are checked when they are made,
/// the mask is for the verifier. Fields of 8 bytes are aligned to 8.
#[inline(always)]
fn word<const N: usize>(bytes: &[u8; N], offset: u32) -> u64 {
    let at = offset as usize & (mask(N) & !7);
    // SAFETY: `mask(N) & !7` is at most N - 8, so 8 bytes from `at` lie within the array.
    unsafe { bytes.as_ptr().add(at).cast::<u64>().read_unaligned() }
}

#[inline(always)]
fn half<const N: usize>(bytes: &[u8; N], offset: u32) -> u32 {
    let at = offset as usize & (mask(N) & !3);
    // SAFETY: `mask(N) & !3` is at most N - 4, so 4 bytes from `at` lie within the array.
    unsafe { bytes.as_ptr().add(at).cast::<u32>().read_unaligned() }
}

#[inline(always)]
fn byte<const N: usize>(bytes: &[u8; N], offset: u32) -> u8 {
    bytes[offset as usize & mask(N)]
}

/// The largest 2^k - 1 below `length`.
const fn mask(length: usize) -> usize {
    if length.is_power_of_two() {
        length - 1
    } else {
        length.next_power_of_two() / 2 - 1
    }
}
