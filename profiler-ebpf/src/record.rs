//! What the ring buffer carries: samples, their stacks, copies of code objects, and what happens to
//! processes. Each record begins with a `u32` [`RecordKind`].

use bytemuck::{Pod, Zeroable};

#[cfg(doc)]
use crate::{MAX_KERNEL, NativeEnd, Outcome, Target, native, python};

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
    /// Of the target, the daemon's epoch, and each frame's code object, identity and instruction, and
    /// the native and the kernel's frames;
    /// never 0. Means nothing without the target: another one's stack may have the same.
    pub hash: u64,
    /// How many [`Frame`]s follow.
    pub frames: u32,
    /// How many native frames follow those, each as [`native::frame`] makes it, newest first.
    pub native: u16,
    /// How the walk over these ended: a [`NativeEnd`].
    pub native_end: u8,
    /// How many frames of the kernel follow those, as its own stack walker gives them, newest first: at
    /// most [`MAX_KERNEL`], none for a thread in user space; [`KERNEL_FAILED`]: it gave none.
    pub kernel: u8,
}

/// [`Stack::kernel`] where the kernel's stack walker failed; no frames follow.
pub const KERNEL_FAILED: u8 = 0xff;

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
