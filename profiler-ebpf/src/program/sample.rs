//! A tick of a CPU's clock: whose process it caught, its Python stack, and the record of it.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_loop},
    macros::perf_event,
    programs::PerfEventContext,
};
use profiler_ebpf::{
    Counter, Layout, MAX_STEPS, RecordKind, Target, TargetState, layout_flags,
    python::{Capture, Walk},
};

use super::{
    capture::capture, kernel::walk_kernel, maps::*, native::walk_native, processes::wait,
    send::send, task::*,
};

/// Runs when the clock fires.
#[perf_event]
fn sample(ctx: PerfEventContext) -> u32 {
    let Some(target) = caught() else {
        return 0;
    };
    let Some((walk, layout)) = scratch(target) else {
        return 0;
    };
    if begin(walk, layout, target) {
        let mut job = Job {
            walk,
            layout,
            target,
        };
        // SAFETY: `step` has the signature that bpf_loop calls, and `job` outlives the call.
        unsafe {
            bpf_loop(
                MAX_STEPS,
                step as *mut c_void,
                ptr::from_mut(&mut job).cast::<c_void>(),
                0,
            )
        };
    }
    if NATIVE.load() != 0 {
        walk_native(walk, target);
    }
    finish(&ctx, walk, layout, target, capture);
    0
}

/// The current process, if it is known to be Python; else how the run ended is counted.
#[inline(always)]
pub(crate) fn caught() -> Option<&'static Target> {
    count(Counter::Fired as u32);
    let (pid, _) = current_ids();
    // The idle task has process id 0, as what lies outside of our PID namespace.
    let Some(target) = TARGETS.get_ptr_mut(pid) else {
        count(Counter::NotTarget as u32);
        return None;
    };
    // SAFETY: a map value lives as long as the program runs; the daemon may replace its bytes
    // meanwhile, in which case the walk fails its checks and says so.
    let target = unsafe { &mut *target };
    if target.state != TargetState::Python as u32 {
        wait(target);
        return None;
    }
    Some(target)
}

/// This CPU's working memory, and the layout of a target.
#[inline(always)]
pub(crate) fn scratch(target: &Target) -> Option<(&'static mut Walk, &'static Layout)> {
    let (Some(walk), Some(layout)) = (WALKS.get_ptr_mut(0), LAYOUTS.get(target.layout)) else {
        count(Counter::NotWalked as u32);
        return None;
    };
    // SAFETY: this CPU's own value; the program does not nest on one CPU.
    Some((unsafe { &mut *walk }, layout))
}

/// Finds the current thread's state; false when there is no frame to step over.
#[inline(always)]
pub(crate) fn begin(walk: &mut Walk, layout: &Layout, target: &Target) -> bool {
    if TIMED.load() != 0 {
        // SAFETY: a helper without arguments.
        walk.began = unsafe { bpf_ktime_get_ns() };
    }
    if NATIVE.load() != 0 {
        let told = layout.flags & layout_flags::ENTRY_FRAMES | layout.frame_is_entry;
        walk.entries.want(told != 0);
    }
    let control_block = task_word(TASK_FSBASE.load());
    walk.begin(&CurrentProcess, layout, target, control_block)
}

/// Fills in what the walk does not know, and sends the sample. How code objects are copied is
/// [`send`]'s `capture`.
#[inline(always)]
pub(crate) fn finish(
    ctx: &PerfEventContext,
    walk: &mut Walk,
    layout: &Layout,
    target: &Target,
    capture: impl FnOnce(&Walk, &Layout, u64) -> Option<&'static Capture>,
) {
    if KERNEL.load() != 0 {
        walk_kernel(ctx, walk);
    }
    if walk.unproven != 0 {
        add(Counter::FrameUnproven as u32, u64::from(walk.unproven));
    }
    let (pid, tid) = current_ids();
    let sample = &mut walk.sample;
    sample.kind = RecordKind::Sample as u32;
    sample.target = target.id;
    sample.pid = pid;
    sample.tid = tid;
    // SAFETY: a helper without arguments.
    sample.time = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    sample.weight = PERIODS.get(cpu).copied().unwrap_or(0) as u32;
    sample.comm = bpf_get_current_comm().unwrap_or_default();
    send(walk, layout, target.id, capture);
    if TIMED.load() != 0 {
        // SAFETY: a helper without arguments.
        let took = unsafe { bpf_ktime_get_ns() }.wrapping_sub(walk.began);
        add(Counter::Nanoseconds as u32, took);
    }
}

struct Job {
    walk: *mut Walk,
    layout: *const Layout,
    target: *const Target,
}

/// One step of the walk, as `bpf_loop` calls it: 0 goes on, 1 ends.
unsafe extern "C" fn step(_index: u64, job: *mut c_void) -> i64 {
    // SAFETY: bpf_loop passes on the `Job` that `walk` made, whose pointers are live map values.
    let (walk, layout, target) = unsafe {
        let job = &*job.cast::<Job>();
        (&mut *job.walk, &*job.layout, &*job.target)
    };
    i64::from(!walk.step(&CurrentProcess, layout, target))
}
