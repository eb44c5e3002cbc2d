//! Native frames of a sample: the thread's registers as it left user space, the tables of its files
//! from maps, and the loop over its frames.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::{
    bpf_get_current_task_btf, bpf_loop, bpf_task_pt_regs, generated::bpf_probe_read_kernel,
};
use profiler_ebpf::{
    MAX_NATIVE, Mapping, NativeEnd, PAGE_WORDS, REGISTERS, Rule, Target,
    native::{Native, Tables},
    python::Walk,
};

use super::{
    maps::*,
    task::{CurrentProcess, task_word},
};

/// Steps of a walk: as many again for guesses that lead nowhere, and the last one finds that there are
/// [`MAX_NATIVE`] frames.
pub(crate) const NATIVE_STEPS: u32 = 2 * MAX_NATIVE as u32 + 1;

/// `struct pt_regs` of arch/x86/include/asm/ptrace.h as words: r15, r14, r13, r12, bp, bx, r11, r10,
/// r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss. Part of the ABI (ptrace(2)).
const WORDS: usize = 21;
const IP: usize = 16;
const CS: usize = 17;
/// Where in it the registers are, by DWARF's numbers.
const PLACES: [usize; REGISTERS] = [10, 12, 11, 5, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0];

/// Walks the native frames of the current thread, below the Python frames that `walk` has found.
#[inline(always)]
pub(crate) fn walk_native(walk: &mut Walk, target: &Target) {
    let Some(native) = begin_native(walk, target) else {
        return;
    };
    let mut job = Job {
        walk,
        native,
        target,
    };
    // SAFETY: `step` has the signature that bpf_loop calls, and `job` outlives the call.
    unsafe {
        bpf_loop(
            NATIVE_STEPS,
            step as *mut c_void,
            ptr::from_mut(&mut job).cast::<c_void>(),
            0,
        )
    };
}

/// Begins such a walk. None when there is no frame to take, and the stack says why.
#[inline(always)]
pub(crate) fn begin_native(walk: &mut Walk, target: &Target) -> Option<&'static mut Native> {
    // A stack without Python frames is not shown.
    if walk.stack.frames == 0 {
        return None;
    }
    let native = NATIVES.get_ptr_mut(0)?;
    // SAFETY: this CPU's own scratch value; the program does not nest on one CPU.
    let native = unsafe { &mut *native };
    let ip = read_registers(native);
    let begun = native.begin(target, &walk.entries, ip);
    if ip == 0 {
        native.end = NativeEnd::NoRegisters as u32;
    }
    if begun && ip != 0 {
        return Some(native);
    }
    walk.take_native(native);
    None
}

/// Takes one frame. False when that was the last one, and the stack has all of them.
#[inline(always)]
pub(crate) fn take_native(walk: &mut Walk, native: &mut Native, target: &Target) -> bool {
    let taken = native.frames;
    let more = native.step((&CurrentProcess, &Maps), target, &walk.entries);
    if native.frames > taken {
        walk.keep_native(taken, native.last);
    }
    if !more {
        walk.take_native(native);
    }
    more
}

/// The registers with which the thread was in user space last: where it was interrupted, or has called
/// the kernel. Gives its instruction; 0 when they can't be had.
#[inline(always)]
fn read_registers(native: &mut Native) -> u64 {
    let mut words = [0u64; WORDS];
    let registers = match STACK_REGISTERS.load() {
        // SAFETY: the helpers take the current task.
        0 => unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as u64 },
        offset => task_word(TASK_STACK.load()).wrapping_add(u64::from(offset)),
    };
    // SAFETY: `words` is writable for its length, and any bytes are a value of it; the helper checks the
    // address.
    let read = unsafe {
        bpf_probe_read_kernel(
            words.as_mut_ptr().cast::<c_void>(),
            size_of::<[u64; WORDS]>() as u32,
            registers as *const c_void,
        )
    };
    // The two low bits tell the ring: 3 is user space.
    if read != 0 || words[CS] & 3 != 3 {
        return 0;
    }
    for (register, place) in native.registers.iter_mut().zip(PLACES) {
        *register = words[place];
    }
    words[IP]
}

struct Job {
    walk: *mut Walk,
    native: *mut Native,
    target: *const Target,
}

/// One frame, as `bpf_loop` calls it: 0 goes on, 1 ends.
unsafe extern "C" fn step(_index: u64, job: *mut c_void) -> i64 {
    // SAFETY: bpf_loop passes on the `Job` that `walk_native` made, whose pointers are live map values.
    let (walk, native, target) = unsafe {
        let job = &*job.cast::<Job>();
        (&mut *job.walk, &mut *job.native, &*job.target)
    };
    i64::from(!take_native(walk, native, target))
}

/// The tables, from the maps that the daemon has filled.
struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn mapping(&self, slot: u32) -> Option<Mapping> {
        MAPPINGS.get(slot).copied()
    }

    #[inline(always)]
    fn word(&self, index: u32) -> Option<u32> {
        let page = TABLES.get(index / PAGE_WORDS)?;
        Some(page[(index % PAGE_WORDS) as usize])
    }

    #[inline(always)]
    fn rule(&self, number: u16) -> Option<Rule> {
        RULES.get(number.into()).copied()
    }
}
