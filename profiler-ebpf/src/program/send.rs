//! What a walk has found, into the ring buffer: of a stack that the daemon does not know yet the new
//! code objects and the stack, then the sample, which names it by its hash. What finds no room is
//! counted and not remembered.

use core::ptr;

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use profiler_ebpf::{
    Counter, Frame, KERNEL_FAILED, Layout, MAX_FRAMES, MAX_KERNEL, MAX_NATIVE, OUTCOMES_MAX,
    Sample, Stack,
    python::{Capture, Walk},
};

use super::maps::*;

/// The daemon is woken for names that could not be copied, because they must be read while the code
/// is still there, and when the ring buffer fills, but not more often than this, in nanoseconds: a
/// wake-up costs several times what a sample does. For the rest it comes by itself.
const WAKE_EVERY: u64 = 2_000_000;

/// Counts the outcome of a finished walk and sends it. `capture` copies the code objects of a stack
/// of functions that is new; None if it can't, and the daemon is to read them.
#[inline(always)]
pub(crate) fn send(
    walk: &mut Walk,
    layout: &Layout,
    target: u32,
    capture: impl FnOnce(&Walk, &Layout, u64) -> Option<&'static Capture>,
) {
    count(u32::from(walk.sample.outcome) & (OUTCOMES_MAX - 1));
    let epoch = EPOCH.get(0).copied().unwrap_or(0);
    let functions = walk.name(epoch, target);
    // A frame without an identity may be of another function the next time, and is to be read now.
    let mut urgent = walk.unproven != 0;
    if walk.stack.frames != 0 && !is_remembered(&STACKS, walk.stack.hash) {
        let mut complete = true;
        if !is_remembered(&FUNCTIONS, functions) {
            match capture(walk, layout, epoch) {
                Some(capture) => {
                    complete = capture.is_complete();
                    urgent |= !capture.is_whole();
                }
                None => urgent = true,
            }
        }
        if complete {
            remember(&FUNCTIONS, functions);
        }
        if !send_stack(walk) {
            // Without its stack the sample would say nothing.
            count(Counter::StackLost as u32);
            count(Counter::RingFull as u32);
            return;
        }
        if complete && walk.unproven == 0 {
            remember(&STACKS, walk.stack.hash);
        }
    }
    let wake = (urgent || is_filling()) && is_time_to_wake(walk.sample.time);
    let flags = if wake {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    if RECORDS
        .output::<Sample>(&walk.sample, flags.into())
        .is_err()
    {
        count(Counter::RingFull as u32);
    }
}

#[inline(always)]
fn send_stack(walk: &Walk) -> bool {
    let frames = walk.stack.frames as usize & (2 * MAX_FRAMES - 1);
    let frames = if frames > MAX_FRAMES {
        MAX_FRAMES
    } else {
        frames
    };
    let native = walk.stack.native as usize & (2 * MAX_NATIVE - 1);
    let native = if native > MAX_NATIVE {
        MAX_NATIVE
    } else {
        native
    };
    let kernel = match walk.stack.kernel {
        KERNEL_FAILED => 0,
        frames => frames as usize & MAX_KERNEL,
    };
    let words = native + kernel;
    let length = size_of::<Stack>() + frames * size_of::<Frame>() + words * size_of::<u64>();
    // SAFETY: the frames follow the stack in `Walk`, which is `#[repr(C)]`, and have room for native
    // ones and the kernel's behind them.
    let bytes =
        unsafe { core::slice::from_raw_parts((&raw const walk.stack).cast::<u8>(), length) };
    RECORDS
        .output::<[u8]>(bytes, BPF_RB_NO_WAKEUP.into())
        .is_ok()
}

/// Whether the ring buffer is half full: the daemon's next visit of its own may be too late.
#[inline(always)]
fn is_filling() -> bool {
    RECORDS.query(BPF_RB_AVAIL_DATA.into()) > u64::from(HALF_FULL.load())
}

/// Whether the daemon was last woken long enough ago. CPUs may race for it: at worst both wake it.
#[inline(always)]
pub(crate) fn is_time_to_wake(now: u64) -> bool {
    let Some(woken) = WOKEN.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: a live map value; loads and stores of aligned words do not tear.
    unsafe {
        let due = now.wrapping_sub(ptr::read_volatile(woken)) >= WAKE_EVERY;
        if due {
            ptr::write_volatile(woken, now);
        }
        due
    }
}
