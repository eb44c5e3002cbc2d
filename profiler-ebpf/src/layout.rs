//! What the daemon tells the kernel program: what each process is, and where the fields of its
//! CPython's structures lie.

use bytemuck::{Pod, Zeroable};

#[cfg(doc)]
use crate::python;

/// What is known about a process; value of the map of targets, keyed by process id.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Target {
    /// A [`TargetState`].
    pub state: u32,
    /// Names this incarnation of the process, from one exec to the next, in every sample.
    pub id: u32,
    /// Index into the map of layouts.
    pub layout: u32,
    /// How many samples found it not looked at yet, since it began.
    pub waiting: u32,
    /// Address of the pointer to the first interpreter state.
    pub interpreters: u64,
    /// Address of the pointer to the thread state that holds the GIL (3.6–3.11), or 0.
    pub current: u64,
    /// Address of the `pthread_key_t` of the GIL-state key (3.6–3.14), or 0.
    pub tss_key: u64,
    /// 3.15: where the thread's own state is kept in thread-local storage. With `tls_module` 0 the
    /// offset is from the thread control block, else from the module's block in the DTV.
    pub tls_offset: i64,
    /// Module id in the thread's DTV, or 0.
    pub tls_module: u64,
    /// Address of `PyCode_Type`, or 0 where that is not known.
    pub code_type: u64,
    /// The process's part of the map of mappings: its first slot, and how many they are; none before it
    /// was sampled, or where native frames are not asked for.
    pub first_mapping: u32,
    pub mapping_count: u32,
    /// Names these mappings: no others have had it. What is forked shares it with them.
    pub mappings_id: u64,
}

/// What a process is to the kernel program. Append-only; 1 was used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TargetState {
    /// Nobody has looked at it, or nobody had to: its samples are counted.
    Unseen = 0,
    /// It is followed and is not Python (yet): no stack to walk.
    Other = 2,
    /// It runs a CPython whose layout is known.
    Python = 3,
}

/// Offsets of one CPython minor version and build flavour, in bytes, as far as they are used.
/// Which header each comes from: `profiler/src/cpython/rows.rs` and `cpython/debug_offsets.rs`.
/// 0 means "this version has none" for the fields that say so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Layout {
    /// `major << 8 | minor`.
    pub version: u32,
    /// A [`Chain`].
    pub chain: u32,
    /// Bits of [`layout_flags`].
    pub flags: u32,

    // PyInterpreterState
    pub interpreter_next: u32,
    pub interpreter_threads: u32,

    // PyThreadState
    pub thread_next: u32,
    pub thread_interpreter: u32,
    /// `frame`, `cframe` or `current_frame`, as [`Chain`] says.
    pub thread_frame: u32,
    /// `thread_id`, which is `pthread_self()` of the thread.
    pub thread_id: u32,
    /// `_PyCFrame.current_frame` (3.11, 3.12), else 0.
    pub cframe_frame: u32,
    /// `_PyCFrame.previous` (3.11), or 0.
    pub cframe_previous: u32,
    /// `exc_info` (3.12), or 0: the innermost generator that runs, by its `gi_exc_state`.
    pub thread_exceptions: u32,
    /// `datastack_top` (3.12), or 0.
    pub thread_stack_top: u32,

    /// A [`Gil`].
    pub gil: u32,
    pub gil_offset: u32,
    pub gil_mask: u32,

    // PyFrameObject (up to 3.10) or _PyInterpreterFrame
    /// First byte of the frame that is read.
    pub frame_start: u32,
    /// How many bytes are read from there; less than [`python::FRAME_SPAN_MAX`].
    pub frame_span: u32,
    pub frame_code: u32,
    pub frame_previous: u32,
    /// `f_lasti`, `prev_instr` or `instr_ptr`.
    pub frame_instruction: u32,
    /// `owner`, or 0.
    pub frame_owner: u32,
    /// `is_entry` (3.11), or 0: the frame is the first that its interpreter's loop has run.
    pub frame_is_entry: u32,
    /// `tlbc_index` (free-threaded 3.14+), or 0.
    pub frame_tlbc: u32,

    // PyCodeObject
    /// First byte of a code object that is read where its type is not.
    pub code_start: u32,
    /// How many bytes of a code object are read; less than [`python::CODE_SPAN_MAX`].
    pub code_span: u32,
    pub code_first_line: u32,
    pub code_filename: u32,
    pub code_name: u32,
    /// `co_qualname`, or 0.
    pub code_qualname: u32,
    /// `co_lnotab` or `co_linetable`.
    pub code_linetable: u32,
    /// `co_code` (up to 3.10, a pointer) or `co_code_adaptive` (from 3.11, the code itself).
    pub code_bytes: u32,
    /// `co_version` (from 3.12), or 0.
    pub code_version: u32,
    /// `co_framesize` (3.12), or 0.
    pub code_frame_size: u32,
    /// `co_tlbc` (free-threaded 3.14+), or 0: the threads' own copies of the code.
    pub code_tlbc: u32,

    // PyObject, bytes, str
    pub object_type: u32,
    pub bytes_size: u32,
    pub bytes_data: u32,
    pub str_length: u32,
    pub str_hash: u32,
    pub str_state: u32,
    /// Where the two-bit-shifted `kind` begins in `state`: 2, or 8 in free-threaded 3.14+.
    pub str_kind_shift: u32,
    /// `sizeof(PyASCIIObject)`: where the data of an ASCII string begins, or that of any string of
    /// Python 2.
    pub str_ascii: u32,
    /// `sizeof(PyCompactUnicodeObject)`: where the data of any other compact string begins.
    pub str_compact: u32,
}

/// The shape of a thread's frame chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Chain {
    /// `tstate->frame`, a list of `PyFrameObject` (up to 3.10).
    FrameObject = 0,
    /// `tstate->cframe->current_frame`, a list of `_PyInterpreterFrame` (3.11, 3.12).
    CFrame = 1,
    /// `tstate->current_frame`, a list of `_PyInterpreterFrame` (from 3.13).
    CurrentFrame = 2,
}

/// How a thread state tells that it holds the GIL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Gil {
    /// There is none to hold.
    None = 0,
    /// `*Target::current` is the thread state (up to 3.11).
    Current = 1,
    /// `gil = *(interpreter + gil_offset)`: `last_holder` (+8) is the thread state and `locked`
    /// (+16) is set (3.12).
    Holder = 2,
    /// The `u32` at `gil_offset` of the thread state has a bit of `gil_mask` (from 3.13).
    Status = 3,
    /// The `u32` at `gil_offset` of the thread state is 1, `_Py_THREAD_ATTACHED`: in a free-threaded
    /// build the thread may run Python code, and holds the GIL if that was enabled again.
    Attached = 4,
}

/// Bits of [`Layout::flags`].
pub mod layout_flags {
    /// A whole chain ends with a frame whose owner is 3 or more (from 3.12).
    pub const ENDS_AT_ENTRY: u32 = 1;
    /// The chain is wrong for a few instructions of a call (3.11, 3.12): a frame whose code object
    /// can't be read is garbage, not merely absent from memory; see `python/torn.rs`.
    pub const TORN_CALLS: u32 = 2;
    /// Frames with `owner` 3 and more enter the interpreter and are not shown (from 3.12).
    pub const ENTRY_FRAMES: u32 = 4;
    /// Names are strings of bytes (Python 2): there is no `str_state`.
    pub const BYTE_STRINGS: u32 = 8;
    /// Objects begin with the header of a free-threaded build: another reference count.
    pub const FREE_THREADED: u32 = 16;
    /// Threads are those of musl, not of glibc.
    pub const MUSL: u32 = 32;
}
