//! The maps of the kernel programs, the numbers that the daemon sets at load, and the counters.

use core::ptr;

use aya_ebpf::{
    Global,
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use profiler_ebpf::{
    COUNTERS, Layout, MAX_LAYOUTS, MAX_TARGETS, Mapping, Page, Rule, Target,
    native::Native,
    python::{Capture, Walk},
};

/// How many stacks, lists of functions and code objects are remembered, each. A power of two.
pub(crate) const REMEMBERED: u32 = 16_384;

/// Processes by id: what they are and where their interpreter's roots lie.
#[map]
pub(crate) static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// Layouts by [`Target::layout`].
#[map]
pub(crate) static LAYOUTS: Array<Layout> = Array::with_max_entries(MAX_LAYOUTS, 0);

/// Per-CPU working memory: too large for the 512 bytes of BPF stack.
#[map]
pub(crate) static WALKS: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// Likewise, for copies of code objects.
#[map]
pub(crate) static CAPTURES: PerCpuArray<Capture> = PerCpuArray::with_max_entries(1, 0);

/// Records for the daemon, which sets the size when it loads the object.
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// The sampling period of each CPU in nanoseconds, as the daemon set it last. (The event's own
/// `sample_period` stays what it was when the event was opened.)
#[map]
pub(crate) static PERIODS: Array<u64> = Array::with_max_entries(1, 0);

/// Hashes of the stacks that the daemon knows, by their low bits: shared by all CPUs. One that loses
/// its slot to another is sent anew.
#[map]
pub(crate) static STACKS: Array<u64> = Array::with_max_entries(REMEMBERED, 0);

/// Likewise the hashes of their functions alone, of which nothing more is to be copied.
#[map]
pub(crate) static FUNCTIONS: Array<u64> = Array::with_max_entries(REMEMBERED, 0);

/// Likewise [`code_hash`](profiler_ebpf::python::code_hash) of the code objects that were sent.
#[map]
pub(crate) static CODES: Array<u64> = Array::with_max_entries(REMEMBERED, 0);

/// One slot, a number that goes into every hash: the daemon changes it when it forgets stacks.
#[map]
pub(crate) static EPOCH: Array<u64> = Array::with_max_entries(1, 0);

/// When the daemon was last woken for a sample: one slot, nanoseconds of `CLOCK_MONOTONIC`.
#[map]
pub(crate) static WOKEN: Array<u64> = Array::with_max_entries(1, 0);

/// How many ids each CPU has given out to incarnations: one slot.
#[map]
pub(crate) static IDS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// Outcomes and [`Counter`]s.
#[map]
pub(crate) static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);

/// Per-CPU working memory of the walk over native frames.
#[map]
pub(crate) static NATIVES: PerCpuArray<Native> = PerCpuArray::with_max_entries(1, 0);

/// Mappings of all processes: [`Target::first_mapping`]. The daemon sets the size of this and the next
/// two when it loads the object; without native frames they have one slot.
#[map]
pub(crate) static MAPPINGS: Array<Mapping> = Array::with_max_entries(1, 0);

/// Tables of all files: [`Mapping::table`].
#[map]
pub(crate) static TABLES: Array<Page> = Array::with_max_entries(1, 0);

/// Rules by their number.
#[map]
pub(crate) static RULES: Array<Rule> = Array::with_max_entries(1, 0);

// Set by the daemon at load. Offsets come from the running kernel's BTF.
/// `offsetof(struct task_struct, thread) + offsetof(struct thread_struct, fsbase)`.
#[unsafe(no_mangle)]
pub(crate) static TASK_FSBASE: Global<u32> = Global::new(0);
/// `offsetof(struct task_struct, tgid)` and `signal`.
#[unsafe(no_mangle)]
pub(crate) static TASK_TGID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static TASK_SIGNAL: Global<u32> = Global::new(0);
/// `offsetof(struct task_struct, stack)`.
#[unsafe(no_mangle)]
pub(crate) static TASK_STACK: Global<u32> = Global::new(0);
/// `offsetof(struct signal_struct, live)`.
#[unsafe(no_mangle)]
pub(crate) static SIGNAL_LIVE: Global<u32> = Global::new(0);
/// Where on a task's kernel stack the registers of user space are; 0 where the kernel has
/// `bpf_task_pt_regs`.
#[unsafe(no_mangle)]
pub(crate) static STACK_REGISTERS: Global<u32> = Global::new(0);
/// Half of the size of [`RECORDS`].
#[unsafe(no_mangle)]
pub(crate) static HALF_FULL: Global<u32> = Global::new(0);
/// How many CPUs there may be: their ids interleave.
#[unsafe(no_mangle)]
pub(crate) static CPUS: Global<u32> = Global::new(1);
/// 1: every process that begins a program is of interest; 0: only those in [`TARGETS`] are.
#[unsafe(no_mangle)]
pub(crate) static ALL_PROCESSES: Global<u32> = Global::new(0);
/// 1: children of followed processes are followed.
#[unsafe(no_mangle)]
pub(crate) static FOLLOW_CHILDREN: Global<u32> = Global::new(0);

/// 1: native frames are walked, too.
#[unsafe(no_mangle)]
pub(crate) static NATIVE: Global<u32> = Global::new(0);

/// 1: the kernel's frames are taken, too.
#[unsafe(no_mangle)]
pub(crate) static KERNEL: Global<u32> = Global::new(0);

/// Whether it is told how long walks take.
#[unsafe(no_mangle)]
pub(crate) static TIMED: Global<u32> = Global::new(0);

#[inline(always)]
pub(crate) fn count(slot: u32) {
    add(slot, 1);
}

#[inline(always)]
pub(crate) fn add(slot: u32, amount: u64) {
    if let Some(counter) = COUNTS.get_ptr_mut(slot) {
        // SAFETY: this CPU's own slot.
        unsafe { *counter += amount };
    }
}

/// Whether `hash` has the slot of its low bits.
#[inline(always)]
pub(crate) fn is_remembered(hashes: &Array<u64>, hash: u64) -> bool {
    match hashes.get_ptr(hash as u32 & (REMEMBERED - 1)) {
        // SAFETY: a live map value; loads and stores of aligned words do not tear.
        Some(slot) => unsafe { ptr::read_volatile(slot) == hash },
        None => false,
    }
}

/// Gives `hash` the slot of its low bits.
#[inline(always)]
pub(crate) fn remember(hashes: &Array<u64>, hash: u64) {
    if let Some(slot) = hashes.get_ptr_mut(hash as u32 & (REMEMBERED - 1)) {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(slot, hash) };
    }
}
