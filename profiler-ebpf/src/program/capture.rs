//! Code objects of a new stack, a copy of each that was not sent yet into the ring buffer.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, helpers::bpf_loop};
use profiler_ebpf::{
    Counter, Layout, MAX_FRAMES,
    python::{Capture, Walk},
};

use super::{maps::*, task::CurrentProcess};

/// Goes through the walk's stack. The result tells what is left to do.
#[inline(always)]
pub(crate) fn capture(walk: &Walk, layout: &Layout, epoch: u64) -> Option<&'static Capture> {
    let capture = CAPTURES.get_ptr_mut(0)?;
    // SAFETY: this CPU's own scratch value; the program does not nest on one CPU.
    unsafe { (*capture).begin(epoch) };
    let mut job = Job {
        walk,
        capture,
        layout,
    };
    // SAFETY: `step` has the signature that bpf_loop calls, and `job` outlives the call.
    unsafe {
        bpf_loop(
            MAX_FRAMES as u32,
            step as *mut c_void,
            ptr::from_mut(&mut job).cast::<c_void>(),
            0,
        )
    };
    // SAFETY: a map value lives as long as the program runs; nothing else refers to it any more.
    Some(unsafe { &*capture })
}

struct Job {
    walk: *const Walk,
    capture: *mut Capture,
    layout: *const Layout,
}

/// One frame, as `bpf_loop` calls it: 0 goes on, 1 ends.
unsafe extern "C" fn step(_index: u64, job: *mut c_void) -> i64 {
    // SAFETY: bpf_loop passes on the `Job` that `capture` made, whose pointers are live map values.
    let (walk, capture, layout) = unsafe {
        let job = &*job.cast::<Job>();
        (&*job.walk, &mut *job.capture, &*job.layout)
    };
    i64::from(!capture_frame(walk, capture, layout))
}

/// Takes one frame of the stack; false when that was the last. All state lies in `capture`, so any
/// kind of loop can drive it.
#[inline(always)]
pub(crate) fn capture_frame(walk: &Walk, capture: &mut Capture, layout: &Layout) -> bool {
    let Some(hash) = capture.step(walk) else {
        return false;
    };
    if hash == 0 || is_remembered(&CODES, hash) {
        return true;
    }
    if !capture.may_copy() {
        capture.leave();
        return false;
    }
    if !capture.copy(&CurrentProcess, layout) {
        capture.leave();
        return true;
    }
    if RECORDS
        .output::<[u8]>(capture.record(), BPF_RB_NO_WAKEUP.into())
        .is_err()
    {
        count(Counter::CodeLost as u32);
        capture.leave();
        return false;
    }
    remember(&CODES, hash);
    true
}
