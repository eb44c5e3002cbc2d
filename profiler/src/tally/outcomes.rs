//! The one place for what outcomes are called: to a person, to a program, in a stack; and what to do
//! about each that is not a whole stack.

use profiler_ebpf::Outcome;

/// How a sample with this outcome is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Whole,
    /// Under this root frame, which says what is wrong with the stack.
    Marked(&'static str),
    /// There is no Python stack to show; it is counted under this name.
    Not(&'static str),
}

/// How it is shown in a profile and named in the summary.
pub fn shown(outcome: Outcome) -> Shown {
    match outcome {
        Outcome::Complete => Shown::Whole,
        Outcome::TruncatedDepth => Shown::Marked("[truncated: deeper than 1024 frames]"),
        Outcome::TruncatedFrame => Shown::Marked("[truncated: caller's frame unreadable]"),
        Outcome::TruncatedCode => Shown::Marked("[truncated: caller not linked yet]"),
        Outcome::TruncatedEntry => Shown::Marked("[truncated: generator not linked yet]"),
        Outcome::UnreadableThread => Shown::Marked("[unreadable: thread state]"),
        Outcome::UnreadableFrame => Shown::Marked("[unreadable: newest frame]"),
        Outcome::UnreadableCode => Shown::Marked("[unreadable: newest frame not set up yet]"),
        Outcome::NoThreadState => Shown::Not("not Python: threads without a thread state"),
        Outcome::NoInterpreter => {
            Shown::Not("not Python: the interpreter was starting or had ended")
        }
        Outcome::NoFrames => Shown::Not("not Python: threads between two calls into Python"),
        Outcome::UnreadableInterpreter => {
            Shown::Marked("[unreadable: frames in several interpreters]")
        }
    }
}

/// What programs call it, in JSON and in pprof's comments. Names stay.
pub fn key(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Complete => "complete",
        Outcome::TruncatedDepth => "truncated_depth",
        Outcome::TruncatedFrame => "truncated_frame",
        Outcome::TruncatedCode => "truncated_code",
        Outcome::TruncatedEntry => "truncated_entry",
        Outcome::UnreadableThread => "unreadable_thread",
        Outcome::UnreadableFrame => "unreadable_frame",
        Outcome::UnreadableCode => "unreadable_code",
        Outcome::NoThreadState => "no_thread_state",
        Outcome::NoInterpreter => "no_interpreter",
        Outcome::NoFrames => "no_frames",
        Outcome::UnreadableInterpreter => "unreadable_interpreter",
    }
}

/// What to do when many stacks end so; `None` where there is no Python stack to lose.
pub(super) fn advice(outcome: Outcome) -> Option<&'static str> {
    Some(match outcome {
        Outcome::Complete | Outcome::NoThreadState | Outcome::NoInterpreter | Outcome::NoFrames => {
            return None;
        }
        Outcome::TruncatedDepth => {
            "only the innermost 1024 frames are kept: own times are right, those of the outermost \
             callers are not"
        }
        Outcome::TruncatedFrame | Outcome::UnreadableThread | Outcome::UnreadableFrame => {
            "that memory was not there to be read: `grep VmSwap /proc/PID/status` tells what is \
             swapped out; give the process more memory, or record while it is busy"
        }
        Outcome::UnreadableInterpreter => {
            "up to CPython 3.11 a thread that has frames in several subinterpreters, and has released \
             the GIL, does not say in which of them it runs; 3.12 and later do"
        }
        // Python/ceval.c of 3.11 and 3.12: a frame is published some instructions before it is
        // linked, which every call and every resumed generator goes through.
        Outcome::TruncatedCode | Outcome::TruncatedEntry | Outcome::UnreadableCode => {
            "CPython 3.11 and 3.12 are in between for an instant of each call: such samples fall \
             evenly, so the shares among the whole stacks hold; 3.13 and later have no such instant"
        }
    })
}
