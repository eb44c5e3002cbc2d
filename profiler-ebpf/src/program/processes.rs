//! Processes as they come and go: exec, exit and fork. What a process begins here, an incarnation,
//! gets its id here, so that no sample can be taken for one of its predecessor or its parent.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use aya_log_ebpf::warn;
use profiler_ebpf::{Counter, KERNEL_ID, Process, ProcessEvent, RecordKind, Target, TargetState};

use super::{maps::*, send::is_time_to_wake, task::*};

/// A new program. Its interpreter, if it gets one, is mapped later: the daemon hears of that from
/// the mappings themselves. It is woken to listen, but not for each of many.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn on_exec(ctx: RawTracePointContext) -> i32 {
    let (pid, _) = current_ids();
    if pid == 0 || ALL_PROCESSES.load() == 0 && TARGETS.get_ptr(pid).is_none() {
        return 0;
    }
    let target = Target {
        state: TargetState::Unseen as u32,
        id: next_id(),
        ..Target::default()
    };
    if TARGETS.insert(pid, target, 0).is_err() {
        count(Counter::TargetsFull as u32);
        warn!(&ctx, "no room for process {} in the map of targets", pid);
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let flags = if is_time_to_wake(now) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    tell(
        Process {
            target: target.id,
            ..record(ProcessEvent::Exec, pid)
        },
        flags,
    );
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn on_exit(_ctx: RawTracePointContext) -> i32 {
    let (pid, _) = current_ids();
    let Some(target) = TARGETS.get_ptr(pid) else {
        return 0;
    };
    // SAFETY: a live map value, as in `sample`.
    let target = unsafe { *target };
    let signal = task_word(TASK_SIGNAL.load());
    // `live` was decremented before this tracepoint (kernel/exit.c, do_exit).
    if kernel_half(signal.wrapping_add(u64::from(SIGNAL_LIVE.load()))) != 0 {
        return 0;
    }
    let _ = TARGETS.remove(pid);
    let known = target.state == TargetState::Python as u32;
    if known || target.waiting != 0 || ALL_PROCESSES.load() == 0 {
        let exit = Process {
            target: target.id,
            waiting: target.waiting,
            ..record(ProcessEvent::Exit, pid)
        };
        tell(exit, BPF_RB_NO_WAKEUP);
    }
    0
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn on_fork(ctx: RawTracePointContext) -> i32 {
    if FOLLOW_CHILDREN.load() == 0 {
        return 0;
    }
    let (parent, _) = current_ids();
    let Some(followed) = TARGETS.get_ptr(parent) else {
        return 0;
    };
    // The tracepoint's arguments: parent, child (include/trace/events/sched.h).
    let child = process_id(ctx.arg(1));
    if child == 0 || child == parent {
        return 0;
    }
    // SAFETY: a live map value, as in `sample`.
    let mut target = unsafe { *followed };
    let python = target.state == TargetState::Python as u32;
    if !python && ALL_PROCESSES.load() != 0 {
        return 0;
    }
    let parent_target = if python { target.id } else { 0 };
    target.id = next_id();
    target.waiting = 0;
    if TARGETS.insert(child, target, 0).is_err() {
        count(Counter::TargetsFull as u32);
        return 0;
    }
    let fork = Process {
        target: target.id,
        parent,
        parent_target,
        ..record(ProcessEvent::Fork, child)
    };
    // The child of a Python is walked already; of another, there may be no sample to be late for.
    tell(fork, BPF_RB_NO_WAKEUP);
    0
}

/// A sample of a process that is not known to be Python.
#[inline(always)]
pub(crate) fn wait(target: &mut Target) {
    if target.state == TargetState::Other as u32 {
        count(Counter::NotPython as u32);
    } else {
        count(Counter::NotLooked as u32);
        target.waiting = target.waiting.saturating_add(1);
    }
}

/// An id that no other incarnation of the last 2^31 has.
#[inline(always)]
fn next_id() -> u32 {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let given = match IDS.get_ptr_mut(0) {
        // SAFETY: this CPU's own slot; atomics that give back a value are newer than Linux 5.10.
        Some(given) => unsafe {
            *given = (*given).wrapping_add(1);
            *given
        },
        None => 0,
    };
    KERNEL_ID | given.wrapping_mul(CPUS.load()).wrapping_add(cpu)
}

#[inline(always)]
fn record(event: ProcessEvent, pid: u32) -> Process {
    Process {
        kind: RecordKind::Process as u32,
        event: event as u32,
        pid,
        target: 0,
        parent: 0,
        parent_target: 0,
        waiting: 0,
        padding: 0,
    }
}

#[inline(always)]
fn tell(record: Process, flags: u32) {
    if RECORDS.output::<Process>(record, flags.into()).is_err() {
        count(Counter::EventLost as u32);
    }
}
