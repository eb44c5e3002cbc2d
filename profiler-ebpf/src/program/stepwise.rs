//! The same sample on kernels before 5.17, which have no `bpf_loop`: a program that takes a number of
//! frames and then calls itself anew, which the kernel allows 33 times (`MAX_TAIL_CALL_CNT`,
//! include/linux/bpf.h). Between two calls all there is lies in maps. The last of them takes the native
//! frames, all of them: there are few.

use core::ptr;

use aya_ebpf::{
    macros::{map, perf_event},
    maps::{PerCpuArray, ProgramArray},
    programs::PerfEventContext,
};
use profiler_ebpf::{Counter, MAX_FRAMES, MAX_STEPS, Target, python::Capture};

use super::{
    capture::capture_frame,
    maps::*,
    native::{NATIVE_STEPS, begin_native, take_native},
    sample::{begin, caught, finish, scratch},
    task::*,
};

/// Steps of one call.
const STEPS_PER_CALL: u32 = MAX_STEPS / 32;

/// Slot 0 is [`walk_on`]: set by the daemon.
#[map]
static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The process whose stack this CPU walks, as it was when the walk began.
#[map]
static WALKED: PerCpuArray<Target> = PerCpuArray::with_max_entries(1, 0);

/// Runs when the clock fires, in the place of `sample`.
#[perf_event]
fn sample_stepwise(ctx: PerfEventContext) -> u32 {
    let Some(target) = caught() else {
        return 0;
    };
    let Some((walk, layout)) = scratch(target) else {
        return 0;
    };
    if let Some(walked) = WALKED.get_ptr_mut(0) {
        // SAFETY: this CPU's own value.
        unsafe { ptr::write(walked, *target) };
    }
    if begin(walk, layout, target) {
        go_on(&ctx);
    }
    // There are no frames, so nothing is to be copied.
    finish(&ctx, walk, layout, target, |_, _, _| None);
    0
}

/// Takes some frames and calls itself for the rest; takes native ones when there are no more.
#[perf_event]
fn walk_on(ctx: PerfEventContext) -> u32 {
    let mut steps = 0;
    while steps < STEPS_PER_CALL && walk_step() != 0 {
        steps += 1;
    }
    if steps == STEPS_PER_CALL {
        go_on(&ctx);
    }
    let Some(target) = WALKED.get(0) else {
        return 0;
    };
    if NATIVE.load() != 0
        && let Some((walk, _)) = scratch(target)
        && begin_native(walk, target).is_some()
    {
        let mut frames = 0;
        while frames < NATIVE_STEPS && native_step() != 0 {
            frames += 1;
        }
    }
    if let Some((walk, layout)) = scratch(target) {
        finish(&ctx, walk, layout, target, |_, _, epoch| copy(epoch));
    }
    0
}

/// Takes one frame; 0 ends. A global function, which the verifier looks at once and not in each
/// round of a loop: with what is in a step it would look at more than its million instructions. Such
/// a function may have no pointers as arguments before 5.12, so it finds all it needs in maps.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_step() -> u32 {
    let (Some(target), Some(walk)) = (WALKED.get(0), WALKS.get_ptr_mut(0)) else {
        return 0;
    };
    let Some(layout) = LAYOUTS.get(target.layout) else {
        return 0;
    };
    // SAFETY: this CPU's own value; the program does not nest on one CPU.
    let walk = unsafe { &mut *walk };
    u32::from(walk.step(&CurrentProcess, layout, target))
}

/// Takes one native frame; 0 ends. A function of the same kind as [`walk_step`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn native_step() -> u32 {
    let (Some(target), Some(walk), Some(native)) =
        (WALKED.get(0), WALKS.get_ptr_mut(0), NATIVES.get_ptr_mut(0))
    else {
        return 0;
    };
    // SAFETY: this CPU's own values; the program does not nest on one CPU.
    let (walk, native) = unsafe { (&mut *walk, &mut *native) };
    u32::from(take_native(walk, native, target))
}

/// Copies the code objects of the walk's stack, as [`super::capture::capture`] does.
#[inline(always)]
fn copy(epoch: u64) -> Option<&'static Capture> {
    let capture = CAPTURES.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value; the program does not nest on one CPU.
    unsafe { (*capture).begin(epoch) };
    let mut frames = 0;
    while frames < MAX_FRAMES && copy_step() != 0 {
        frames += 1;
    }
    // SAFETY: a map value lives as long as the program runs; nothing else refers to it any more.
    Some(unsafe { &*capture })
}

/// Takes one frame of the stack; 0 ends. A function of the same kind as [`walk_step`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn copy_step() -> u32 {
    let (Some(target), Some(walk)) = (WALKED.get(0), WALKS.get(0)) else {
        return 0;
    };
    let (Some(layout), Some(capture)) = (LAYOUTS.get(target.layout), CAPTURES.get_ptr_mut(0))
    else {
        return 0;
    };
    // SAFETY: as above.
    let capture = unsafe { &mut *capture };
    u32::from(capture_frame(walk, capture, layout))
}

/// Returns only when that fails: the walk then ends here, with the outcome that it began with.
#[inline(always)]
fn go_on(ctx: &PerfEventContext) {
    // SAFETY: nothing of this program's is needed again.
    unsafe { NEXT.tail_call(ctx, 0) };
    count(Counter::CallFailed as u32);
}
