//! How each run of the kernel program ends, and what it counts on its own.

#[cfg(doc)]
use crate::{MAX_FRAMES, MAX_THREADS_WALKED};

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

/// Slots of the counter map that are kept for outcomes. A power of two: a number is cut to its low bits
/// to be one of them.
pub const OUTCOMES_MAX: u32 = 16;

const _: () =
    assert!(Outcome::ALL.len() <= OUTCOMES_MAX as usize && OUTCOMES_MAX.is_power_of_two());
const _: () = assert!(Counter::Fired as u32 == OUTCOMES_MAX);

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
    /// Nanoseconds that walks took and what they have sent, where that is asked for.
    Nanoseconds = 28,
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
