//! The contract between the kernel program and the daemon: every type that crosses, every limit
//! that both sides must agree on, and the list of outcomes. No code runs here; the frame walk that
//! both sides share is in [`python`].
//!
//! The ring buffer carries records. Each begins with a `u32` [`RecordKind`]; the kinds are
//! append-only. Maps carry [`Target`] and [`Layout`] values from the daemon to the kernel.

#![no_std]

use bytemuck::{Pod, Zeroable};

pub mod python;

/// Most Python frames that one sample keeps; what is deeper is cut at the root end.
/// A power of two: the walk masks its index with it, which is how the verifier knows the bound.
pub const MAX_FRAMES: usize = 1024;

/// Most steps of one walk. Entry frames are steps but not kept frames, so this exceeds
/// [`MAX_FRAMES`]; `bpf_loop` itself allows 2^23.
pub const MAX_STEPS: u32 = 4 * MAX_FRAMES as u32;

/// Most thread states that the kernel looks at when no direct route names the thread's own.
pub const MAX_THREADS_WALKED: u32 = 64;

/// Most code objects that are copied at one sample, which bounds the time that it takes; what is
/// left is copied at the next one.
pub const MAX_CAPTURES: u32 = 64;

/// Capacity of the map of processes: those that are followed, and in a profile of all Python also
/// those that have begun a program since.
pub const MAX_TARGETS: u32 = 32_768;

/// Capacity of the map of layouts: one per CPython minor version and build flavour in use.
pub const MAX_LAYOUTS: u32 = 64;

/// What a ring-buffer record is; its first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RecordKind {
    /// A [`Sample`].
    Sample = 1,
    /// A [`Process`].
    Process = 2,
    /// A [`Stack`] followed by its frames, before the first sample that names it.
    Stack = 3,
    /// A [`Code`] followed by its pieces, before the first stack with it.
    Code = 4,
}

/// One observation of one thread. Its frames are those of the [`Stack`] record of the same target
/// and hash that was sent last.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Sample {
    /// [`RecordKind::Sample`].
    pub kind: u32,
    /// [`Target::id`] of the process: which incarnation of the pid was walked.
    pub target: u32,
    /// Process id, as seen from the daemon's PID namespace.
    pub pid: u32,
    /// Thread id, likewise.
    pub tid: u32,
    /// When: nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// [`Stack::hash`], or 0 when there is no frame.
    pub stack: u64,
    /// The thread's `comm`, NUL-padded.
    pub comm: [u8; 16],
    /// For how much time this sample stands: this CPU's sampling period, in nanoseconds.
    pub weight: u32,
    /// How the walk ended: an [`Outcome`].
    pub outcome: u8,
    /// 1 when the thread held the GIL, else 0.
    pub gil: u8,
    pub padding: u16,
}

/// [`Frame::instruction`] of a frame whose instruction is not known: beyond any code, so no line's.
pub const NO_INSTRUCTION: i32 = i32::MAX;

/// A stack that the kernel does not remember to have sent, followed in the ring buffer by `frames` ×
/// [`Frame`], newest frame first. It is remembered, and from then on crosses as its hash, once this
/// record is in the ring buffer.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Stack {
    /// [`RecordKind::Stack`].
    pub kind: u32,
    /// [`Target::id`].
    pub target: u32,
    /// Of the target, the daemon's epoch, and each frame's code object, identity and instruction;
    /// never 0. Means nothing without the target: another one's stack may have the same.
    pub hash: u64,
    /// How many [`Frame`]s follow.
    pub frames: u32,
    pub padding: u32,
}

/// One Python frame of a stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Frame {
    /// Address of the code object in the target.
    pub code: u64,
    /// The instruction: `f_lasti` as the version stores it (bytes up to 3.9, code units in 3.10),
    /// from 3.11 on the byte distance from the first instruction. Negative: not started yet;
    /// [`NO_INSTRUCTION`] where it is not known.
    pub instruction: i32,
    /// [`python::identity`] of the code object, read with the frame; 0 when it could not be read.
    pub identity: u32,
}

/// A code object and what it leads to, copied from where they lie when it was first met, followed in
/// the ring buffer by its pieces. Each has its length, and is filled up to a multiple of 8.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Code {
    /// [`RecordKind::Code`].
    pub kind: u32,
    /// [`Target::id`].
    pub target: u32,
    /// [`Frame::code`].
    pub address: u64,
    /// [`Frame::identity`]. What was copied belongs to it only if it gives the same.
    pub identity: u32,
    pub padding: u32,
    /// The code object, its file name, name, qualified name and line table, in this order.
    pub pieces: [Piece; CODE_PIECES],
}

/// How many pieces a [`Code`] has.
pub const CODE_PIECES: usize = 5;

/// Where a piece of a [`Code`] was copied from.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Piece {
    pub address: u64,
    /// In bytes; 0 when it was not copied: it is not in memory, is too long, is of no known form,
    /// or is the same object as the piece before.
    pub length: u32,
    pub padding: u32,
}

/// Something that happened to a process.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Process {
    /// [`RecordKind::Process`].
    pub kind: u32,
    /// A [`ProcessEvent`].
    pub event: u32,
    /// Process id, as seen from the daemon's PID namespace.
    pub pid: u32,
    /// [`Target::id`] of the incarnation that begins ([`ProcessEvent::Exec`],
    /// [`ProcessEvent::Fork`]) or ends ([`ProcessEvent::Exit`]).
    pub target: u32,
    /// [`ProcessEvent::Fork`]: the parent's process id. Else 0.
    pub parent: u32,
    /// [`ProcessEvent::Fork`]: [`Target::id`] of the parent, whose interpreter the child has.
    /// 0 when the parent is not known to be Python. Else 0.
    pub parent_target: u32,
    /// [`ProcessEvent::Exit`]: how many samples found it not looked at. Else 0.
    pub waiting: u32,
    pub padding: u32,
}

/// What happened to the process of a [`Process`] record. Append-only; 1 was used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProcessEvent {
    /// It replaced its program; what was known about it no longer holds.
    Exec = 2,
    /// Its last thread exited.
    Exit = 3,
    /// It was forked from a process that is followed. Where that one is Python, so is the child, and
    /// the kernel walks it already, with the parent's addresses.
    Fork = 4,
}

impl ProcessEvent {
    /// The event with this number, if there is one.
    pub fn from_number(number: u32) -> Option<ProcessEvent> {
        [Self::Exec, Self::Exit, Self::Fork]
            .into_iter()
            .find(|&event| event as u32 == number)
    }
}

/// Set in each [`Target::id`] that the kernel gives out, at an exec or a fork. The daemon gives out
/// the ids without it, to processes that it finds by itself.
pub const KERNEL_ID: u32 = 1 << 31;

/// How a run of the kernel program on a target ended. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// The whole Python stack, to the thread's first frame.
    Complete = 0,
    /// More than [`MAX_FRAMES`] frames: the newest are kept.
    TruncatedDepth = 1,
    /// A caller's frame could not be read.
    TruncatedFrame = 2,
    /// A caller's frame did not lead to a code object.
    TruncatedCode = 3,
    /// The chain ended before the frame that enters the interpreter (from 3.12), or with a
    /// generator (3.11), which no chain begins with.
    TruncatedEntry = 4,
    /// The thread state was found but could not be read.
    UnreadableThread = 5,
    /// The newest frame could not be read.
    UnreadableFrame = 6,
    /// The newest frame did not lead to a code object.
    UnreadableCode = 7,
    /// No thread state of this thread was found: it never ran Python, or it is not among the
    /// [`MAX_THREADS_WALKED`] that were looked at.
    NoThreadState = 8,
    /// The interpreter has no thread state at all yet, or no longer.
    NoInterpreter = 9,
    /// The thread has a thread state but no Python frame: it is outside Python code.
    NoFrames = 10,
    /// The thread has frames in several interpreters, and in which of them it runs could not be told
    /// (up to 3.11).
    UnreadableInterpreter = 11,
}

impl Outcome {
    /// Every outcome, in the order of its number.
    pub const ALL: [Outcome; 12] = [
        Outcome::Complete,
        Outcome::TruncatedDepth,
        Outcome::TruncatedFrame,
        Outcome::TruncatedCode,
        Outcome::TruncatedEntry,
        Outcome::UnreadableThread,
        Outcome::UnreadableFrame,
        Outcome::UnreadableCode,
        Outcome::NoThreadState,
        Outcome::NoInterpreter,
        Outcome::NoFrames,
        Outcome::UnreadableInterpreter,
    ];

    /// The outcome with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Outcome> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What the kernel program counts on its own, one per-CPU slot each. The first slots are the
/// [`Outcome`]s by their number; these follow. Append-only.
///
/// Each run ends in exactly one of them, so that at any time between two runs
/// `Fired = Σ ENDS + Σ outcomes`, and of the outcomes all but `RingFull` were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// The perf event fired, whatever came of it.
    Fired = 16,
    /// A sample of a process that is followed, or has begun its program since the recording began,
    /// and that is not known to be Python or not.
    NotLooked = 17,
    /// A sample that found no room in the ring buffer, or whose stack did not.
    RingFull = 18,
    /// A process record that found no room in the ring buffer.
    EventLost = 19,
    /// A process that found no room in the map of targets.
    TargetsFull = 20,
    /// A frame whose code object could not be read: identity 0.
    FrameUnproven = 21,
    /// A sample of a process that is followed, was looked at and is not Python, or not yet.
    NotPython = 22,
    /// A stack that found no room in the ring buffer; its sample is a [`Self::RingFull`].
    StackLost = 23,
    /// A run that caught nothing that is followed: a process that nobody asked for, a thread of the
    /// kernel, the idle task.
    NotTarget = 24,
    /// A run on a target that was being changed: the layout that it names is not there.
    NotWalked = 25,
    /// A walk that was cut because a program could not call the next (before 5.17): the kernel
    /// allows no more calls.
    CallFailed = 26,
    /// A code object that found no room in the ring buffer: it is copied again at its next sample.
    CodeLost = 27,
}

impl Counter {
    /// How a run ends that is no walk and has no [`Outcome`].
    pub const ENDS: [Counter; 4] = [
        Counter::NotTarget,
        Counter::NotLooked,
        Counter::NotPython,
        Counter::NotWalked,
    ];
}

/// Slots of the counter map.
pub const COUNTERS: u32 = 32;

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

const _: () = {
    assert!(size_of::<Sample>() == 56);
    assert!(size_of::<Stack>() == 24);
    assert!(size_of::<Frame>() == 16);
    assert!(size_of::<Code>() == 104);
    assert!(size_of::<Process>() == 32);
    assert!(size_of::<Target>() == 64);
    assert!(size_of::<Layout>() == 4 * 42);
    assert!(MAX_FRAMES.is_power_of_two());
    // A per-CPU map value is at most 32 KiB (PCPU_MIN_UNIT_SIZE of the kernel).
    assert!(size_of::<python::Walk>() <= 32 * 1024);
    assert!(size_of::<python::Capture>() <= 32 * 1024);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: each type is `#[repr(C)]` without implicit padding (bytemuck's derive proves that),
    // so any byte pattern is a value of it and all its bytes are initialised.
    unsafe impl aya::Pod for super::Target {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Layout {}
}
