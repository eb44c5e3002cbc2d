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

/// Capacity of the map of processes that were seen, Python or not.
pub const MAX_TARGETS: u32 = 32_768;

/// Capacity of the map of layouts: one per CPython minor version and build flavour in use.
pub const MAX_LAYOUTS: u32 = 64;

/// What a ring-buffer record is; its first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RecordKind {
    /// A [`Sample`] followed by its frames.
    Sample = 1,
    /// A [`Process`].
    Process = 2,
}

/// One observation of one thread, followed in the ring buffer by `frames` × [`Frame`], newest
/// frame first.
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
    /// For how much time this sample stands: this CPU's sampling period, in nanoseconds.
    pub weight: u64,
    /// The thread's `comm`, NUL-padded.
    pub comm: [u8; 16],
    /// How many [`Frame`]s follow.
    pub frames: u32,
    /// How the walk ended: an [`Outcome`].
    pub outcome: u8,
    /// 1 when the thread held the GIL, else 0.
    pub gil: u8,
    pub padding: u16,
}

/// One Python frame of a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Frame {
    /// Address of the code object in the target.
    pub code: u64,
    /// The instruction: `f_lasti` as the version stores it (bytes up to 3.9, code units in 3.10),
    /// from 3.11 on the byte distance from the first instruction. Negative: not started yet.
    pub instruction: i32,
    /// [`python::identity`] of the code object, read with the frame; 0 when it could not be read.
    pub identity: u32,
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
    /// [`ProcessEvent::Fork`]: the parent's process id. [`ProcessEvent::Look`]: how many looks have
    /// found no Python in it so far. Else 0.
    pub detail: u32,
}

/// What happened to the process of a [`Process`] record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProcessEvent {
    /// It was sampled and nobody has looked yet at what it is (or it is time to look again).
    Look = 1,
    /// It replaced its program; what was known about it no longer holds.
    Exec = 2,
    /// Its last thread exited.
    Exit = 3,
    /// It was forked from a process that is followed.
    Fork = 4,
}

impl ProcessEvent {
    /// The event with this number, if there is one.
    pub fn from_number(number: u32) -> Option<ProcessEvent> {
        [Self::Look, Self::Exec, Self::Exit, Self::Fork]
            .into_iter()
            .find(|&event| event as u32 == number)
    }
}

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
}

impl Outcome {
    /// Every outcome, in the order of its number.
    pub const ALL: [Outcome; 11] = [
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
    ];

    /// The outcome with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Outcome> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What the kernel program counts on its own, one per-CPU slot each. The first slots are the
/// [`Outcome`]s by their number; these follow. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// The perf event fired, whatever came of it.
    Fired = 16,
    /// A sample of a process that nobody had looked at yet, Python or not.
    NotLooked = 17,
    /// A sample that found no room in the ring buffer.
    RingFull = 18,
    /// A process record that found no room in the ring buffer.
    EventLost = 19,
    /// A process that found no room in the map of targets.
    TargetsFull = 20,
    /// A frame whose code object could not be read: identity 0.
    FrameUnproven = 21,
    /// A sample of a process that was looked at and is not Python, or not yet.
    NotPython = 22,
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
    /// How many samples found it not looked at yet, since it was first asked about.
    pub waiting: u32,
    /// How many looks have found no Python in it.
    pub looks: u32,
    pub padding: u32,
    /// [`TargetState::Other`] and [`TargetState::Asked`]: when to ask about it again, nanoseconds
    /// of `CLOCK_MONOTONIC`; `u64::MAX` is never.
    pub again: u64,
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
    /// Address of `PyCode_Type`.
    pub code_type: u64,
}

/// What a process is to the kernel program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TargetState {
    /// Nobody has looked at it; the next sample asks.
    Unseen = 0,
    /// The daemon was asked to look and has not answered.
    Asked = 1,
    /// It is not Python (yet): no stack to walk.
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

    // PyCodeObject
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

    // PyObject, bytes, str
    pub object_type: u32,
    pub bytes_size: u32,
    pub bytes_data: u32,
    pub str_length: u32,
    pub str_hash: u32,
    pub str_state: u32,
    /// Where the two-bit-shifted `kind` begins in `state`: 2, or 8 in free-threaded 3.14+.
    pub str_kind_shift: u32,
    /// `sizeof(PyASCIIObject)`: where the data of an ASCII string begins.
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
}

/// Bits of [`Layout::flags`].
pub mod layout_flags {
    /// A whole chain ends with a frame whose owner is 3 or more (from 3.12).
    pub const ENDS_AT_ENTRY: u32 = 1;
    /// The chain is wrong for a few instructions of a call (3.11, 3.12): a frame whose code object
    /// can't be read is garbage, not merely absent from memory.
    pub const TORN_CALLS: u32 = 2;
    /// Frames with `owner` 3 and more enter the interpreter and are not shown (from 3.12).
    pub const ENTRY_FRAMES: u32 = 4;
}

const _: () = {
    assert!(size_of::<Sample>() == 56);
    assert!(size_of::<Frame>() == 16);
    assert!(size_of::<Process>() == 16);
    assert!(size_of::<Target>() == 80);
    assert!(size_of::<Layout>() == 4 * 36);
    assert!(MAX_FRAMES.is_power_of_two());
    // A per-CPU map value is at most 32 KiB (PCPU_MIN_UNIT_SIZE of the kernel).
    assert!(size_of::<python::Walk>() <= 32 * 1024);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: each type is `#[repr(C)]` without implicit padding (bytemuck's derive proves that),
    // so any byte pattern is a value of it and all its bytes are initialised.
    unsafe impl aya::Pod for super::Target {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Layout {}
}
