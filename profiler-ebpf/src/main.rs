//! The kernel programs and their maps. Thin: the walk is in the library's `python` module.
//!
//! `sample` runs on every CPU's perf event; `on_exec`, `on_exit` and `on_fork` keep the map of
//! targets right between two looks of the daemon.

#![no_std]
#![no_main]

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::{
    Global,
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task,
        bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_loop, bpf_probe_read_kernel,
        generated::bpf_probe_read_user,
    },
    macros::{map, perf_event, raw_tracepoint},
    maps::{Array, HashMap, PerCpuArray, RingBuf},
    programs::{PerfEventContext, RawTracePointContext},
};
use aya_log_ebpf::warn;
use profiler_ebpf::{
    COUNTERS, Counter, Frame, Layout, MAX_FRAMES, MAX_LAYOUTS, MAX_STEPS, MAX_TARGETS, Process,
    ProcessEvent, RecordKind, Sample, Target, TargetState,
    python::{Memory, Walk},
};

/// Processes by id: what they are and where their interpreter's roots lie.
#[map]
static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// Layouts by [`Target::layout`].
#[map]
static LAYOUTS: Array<Layout> = Array::with_max_entries(MAX_LAYOUTS, 0);

/// Per-CPU working memory: too large for the 512 bytes of BPF stack.
#[map]
static WALKS: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// Records for the daemon, which sets the size when it loads the object.
#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// The sampling period of each CPU in nanoseconds, as the daemon set it last. (The event's own
/// `sample_period` stays what it was when the event was opened.)
#[map]
static PERIODS: Array<u64> = Array::with_max_entries(1, 0);

/// Stacks of functions that were seen, by some bits of [`Walk::digest`]; shared by all CPUs, where a
/// race costs a wake-up more or less.
#[map]
static SEEN: Array<u64> = Array::with_max_entries(SEEN_STACKS, 0);

/// When the daemon was last woken for a sample: one slot, nanoseconds of `CLOCK_MONOTONIC`.
#[map]
static WOKEN: Array<u64> = Array::with_max_entries(1, 0);

/// Outcomes and [`Counter`]s.
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);

// Set by the daemon at load. Offsets come from the running kernel's BTF.
/// `offsetof(struct task_struct, thread) + offsetof(struct thread_struct, fsbase)`.
#[unsafe(no_mangle)]
static TASK_FSBASE: Global<u32> = Global::new(0);
/// `offsetof(struct task_struct, tgid)`, `pid`, `flags` and `signal`.
#[unsafe(no_mangle)]
static TASK_TGID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_FLAGS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_SIGNAL: Global<u32> = Global::new(0);
/// `offsetof(struct signal_struct, live)`.
#[unsafe(no_mangle)]
static SIGNAL_LIVE: Global<u32> = Global::new(0);
/// 1: processes that are not in [`TARGETS`] are asked about; 0: they are none of our business.
#[unsafe(no_mangle)]
static ALL_PROCESSES: Global<u32> = Global::new(0);
/// 1: children of followed processes are followed.
#[unsafe(no_mangle)]
static FOLLOW_CHILDREN: Global<u32> = Global::new(0);

/// The daemon is woken for a stack of functions that is new, because names must be read while the
/// code is still there, but not more often than this, in nanoseconds: a wake-up costs several
/// times what a sample does. For the rest it comes by itself.
const WAKE_EVERY: u64 = 2_000_000;
/// How many stacks are remembered. A power of two.
const SEEN_STACKS: u32 = 4096;
/// `PF_KTHREAD`: include/linux/sched.h.
const KERNEL_THREAD: u32 = 0x0020_0000;
/// When a question about a process is asked again if nobody answered: one second.
const ASK_AGAIN: u64 = 1_000_000_000;

/// Reads the memory of the current process.
struct CurrentProcess;

impl Memory for CurrentProcess {
    #[inline(always)]
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        // SAFETY: `into` is writable for its length; the helper checks the address.
        unsafe {
            bpf_probe_read_user(
                into.as_mut_ptr().cast::<c_void>(),
                into.len() as u32,
                address as *const c_void,
            ) == 0
        }
    }
}

#[perf_event]
fn sample(ctx: PerfEventContext) -> u32 {
    count(Counter::Fired as u32);
    let (pid, tid) = current_ids();
    if pid == 0 {
        return 0;
    }
    let Some(target) = TARGETS.get_ptr_mut(pid) else {
        if ALL_PROCESSES.load() != 0 {
            meet(&ctx, pid);
        }
        return 0;
    };
    // SAFETY: a map value lives as long as the program runs; the daemon may replace its bytes
    // meanwhile, in which case the walk fails its checks and says so.
    let target = unsafe { &mut *target };
    if target.state != TargetState::Python as u32 {
        ask(target, pid);
        return 0;
    }
    walk(target, pid, tid);
    0
}

/// Walks the current thread's Python stack and sends it.
#[inline(always)]
fn walk(target: &Target, pid: u32, tid: u32) {
    let (Some(walk), Some(layout)) = (WALKS.get_ptr_mut(0), LAYOUTS.get(target.layout)) else {
        return;
    };
    let control_block = task_word(TASK_FSBASE.load());
    // SAFETY: this CPU's own scratch value; the program does not nest on one CPU.
    let begun = unsafe { (*walk).begin(&CurrentProcess, layout, target, control_block) };
    if begun {
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
    // SAFETY: as above; nothing else refers to it any more.
    let state = unsafe { &mut *walk };
    if state.unproven != 0 {
        add(Counter::FrameUnproven as u32, u64::from(state.unproven));
    }
    let sample = &mut state.sample;
    sample.kind = RecordKind::Sample as u32;
    sample.target = target.id;
    sample.pid = pid;
    sample.tid = tid;
    // SAFETY: a helper without arguments.
    sample.time = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    sample.weight = PERIODS.get(cpu).copied().unwrap_or(0);
    sample.comm = bpf_get_current_comm().unwrap_or_default();
    send(state);
}

/// Counts the outcome and puts the sample with its frames into the ring buffer.
#[inline(always)]
fn send(state: &mut Walk) {
    count(u32::from(state.sample.outcome & 15));
    let frames = state.sample.frames as usize & (2 * MAX_FRAMES - 1);
    let frames = if frames > MAX_FRAMES {
        MAX_FRAMES
    } else {
        frames
    };
    let length = size_of::<Sample>() + frames * size_of::<Frame>();
    // SAFETY: the frames follow the sample in `Walk`, which is `#[repr(C)]`.
    let bytes =
        unsafe { core::slice::from_raw_parts((&raw const state.sample).cast::<u8>(), length) };
    let flags = if is_new(state.digest) && is_time_to_wake(state.sample.time) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    if RECORDS.output::<[u8]>(bytes, flags.into()).is_err() {
        count(Counter::RingFull as u32);
    }
}

/// Whether no stack of these functions was seen lately.
#[inline(always)]
fn is_new(digest: u64) -> bool {
    let Some(seen) = SEEN.get_ptr_mut(digest as u32 & (SEEN_STACKS - 1)) else {
        return true;
    };
    // SAFETY: a live map value; loads and stores of aligned words do not tear.
    unsafe {
        let new = ptr::read_volatile(seen) != digest;
        if new {
            ptr::write_volatile(seen, digest);
        }
        new
    }
}

/// Whether the daemon was last woken long enough ago. CPUs may race for it: at worst both wake it.
#[inline(always)]
fn is_time_to_wake(now: u64) -> bool {
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

/// First sight of a process: remember it and ask the daemon what it is.
#[inline(always)]
fn meet(ctx: &PerfEventContext, pid: u32) {
    if task_half(TASK_FLAGS.load()) & KERNEL_THREAD != 0 {
        return;
    }
    let target = Target {
        state: TargetState::Asked as u32,
        // SAFETY: a helper without arguments.
        again: unsafe { bpf_ktime_get_ns() } + ASK_AGAIN,
        waiting: 1,
        ..Target::default()
    };
    if TARGETS.insert(pid, target, 0).is_err() {
        count(Counter::TargetsFull as u32);
        warn!(ctx, "no room for process {} in the map of targets", pid);
        return;
    }
    count(Counter::NotLooked as u32);
    tell(ProcessEvent::Look, pid, 0);
}

/// A sample of a process that is not known to be Python: ask if it is time to.
#[inline(always)]
fn ask(target: &mut Target, pid: u32) {
    let other = target.state == TargetState::Other as u32;
    if other {
        count(Counter::NotPython as u32);
    } else {
        count(Counter::NotLooked as u32);
        target.waiting += 1;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if target.state == TargetState::Unseen as u32 || now >= target.again {
        target.again = now + ASK_AGAIN;
        if target.state == TargetState::Unseen as u32 {
            target.state = TargetState::Asked as u32;
        }
        tell(
            ProcessEvent::Look,
            pid,
            if other { target.looks } else { 0 },
        );
    }
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn on_exec(_ctx: RawTracePointContext) -> i32 {
    let (pid, _) = current_ids();
    if let Some(target) = TARGETS.get_ptr_mut(pid) {
        // SAFETY: a live map value, as in `sample`.
        let target = unsafe { &mut *target };
        target.state = TargetState::Unseen as u32;
        target.looks = 0;
        target.again = 0;
        target.waiting = 0;
        // Told even if nobody knew what it was: the daemon may be looking at it right now, and what
        // it finds will be of the old program.
        tell(ProcessEvent::Exec, pid, 0);
    }
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn on_exit(_ctx: RawTracePointContext) -> i32 {
    let (pid, _) = current_ids();
    let Some(target) = TARGETS.get_ptr(pid) else {
        return 0;
    };
    // SAFETY: a live map value, as in `sample`.
    let known = unsafe { (*target).state } != TargetState::Other as u32;
    let signal = task_word(TASK_SIGNAL.load());
    // `live` was decremented before this tracepoint (kernel/exit.c, do_exit).
    if kernel_half(signal.wrapping_add(u64::from(SIGNAL_LIVE.load()))) != 0 {
        return 0;
    }
    let _ = TARGETS.remove(pid);
    if known {
        tell(ProcessEvent::Exit, pid, 0);
    }
    0
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn on_fork(ctx: RawTracePointContext) -> i32 {
    if FOLLOW_CHILDREN.load() == 0 {
        return 0;
    }
    let (parent, _) = current_ids();
    // The tracepoint's arguments: parent, child (include/trace/events/sched.h).
    let child: u64 = ctx.arg(1);
    let child = kernel_half(child.wrapping_add(u64::from(TASK_TGID.load())));
    if child == parent || TARGETS.get_ptr(parent).is_none() {
        return 0;
    }
    if TARGETS.insert(child, Target::default(), 0).is_err() {
        count(Counter::TargetsFull as u32);
        return 0;
    }
    tell(ProcessEvent::Fork, child, parent);
    0
}

#[inline(always)]
fn tell(event: ProcessEvent, pid: u32, detail: u32) {
    let record = Process {
        kind: RecordKind::Process as u32,
        event: event as u32,
        pid,
        detail,
    };
    if RECORDS
        .output::<Process>(record, u64::from(BPF_RB_FORCE_WAKEUP))
        .is_err()
    {
        count(Counter::EventLost as u32);
    }
}

/// Process and thread id of the current task, in the initial PID namespace.
#[inline(always)]
fn current_ids() -> (u32, u32) {
    let ids = bpf_get_current_pid_tgid();
    ((ids >> 32) as u32, ids as u32)
}

#[inline(always)]
fn count(slot: u32) {
    add(slot, 1);
}

#[inline(always)]
fn add(slot: u32, amount: u64) {
    if let Some(counter) = COUNTS.get_ptr_mut(slot) {
        // SAFETY: this CPU's own slot.
        unsafe { *counter += amount };
    }
}

#[inline(always)]
fn task_word(offset: u32) -> u64 {
    // SAFETY: a helper without arguments; the read is checked by the helper.
    unsafe {
        let task = bpf_get_current_task();
        bpf_probe_read_kernel((task + u64::from(offset)) as *const u64).unwrap_or(0)
    }
}

#[inline(always)]
fn task_half(offset: u32) -> u32 {
    // SAFETY: a helper without arguments.
    kernel_half(unsafe { bpf_get_current_task() } + u64::from(offset))
}

#[inline(always)]
fn kernel_half(address: u64) -> u32 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const u32).unwrap_or(0) }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
