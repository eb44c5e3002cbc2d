//! The current task: its ids, its memory, fields of its kernel structures.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_task,
    generated::{bpf_probe_read_kernel, bpf_probe_read_user},
};
use profiler_ebpf::python::Memory;

use super::{maps::*, namespace::*};

/// Reads the memory of the current process.
pub(crate) struct CurrentProcess;

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

/// Process and thread id of the current task in the daemon's PID namespace; 0 and 0 when it lies
/// outside of that, as the idle task does everywhere.
#[inline(always)]
pub(crate) fn current_ids() -> (u32, u32) {
    if is_nested() {
        let task = current_task();
        return (process_id_within(task), thread_id_within(task));
    }
    let ids = bpf_get_current_pid_tgid();
    ((ids >> 32) as u32, ids as u32)
}

/// The process id of a task, likewise.
#[inline(always)]
pub(crate) fn process_id(task: u64) -> u32 {
    if is_nested() {
        return process_id_within(task);
    }
    kernel_half(task.wrapping_add(u64::from(TASK_TGID.load())))
}

/// The word at this offset of the current task.
#[inline(always)]
pub(crate) fn task_word(offset: u32) -> u64 {
    kernel_word(current_task().wrapping_add(u64::from(offset)))
}

/// Memory of the kernel at this address; 0 where there is none.
#[inline(always)]
pub(crate) fn kernel_word(address: u64) -> u64 {
    let mut word = 0;
    read_kernel(&mut word, address);
    word
}

/// Likewise.
#[inline(always)]
pub(crate) fn kernel_half(address: u64) -> u32 {
    let mut half = 0;
    read_kernel(&mut half, address);
    half
}

/// What can't be read becomes 0, by the helper itself: without a branch, of which a loop has a number
/// of paths that the verifier of 5.10 does not follow.
#[inline(always)]
fn read_kernel<T>(into: &mut T, address: u64) {
    // SAFETY: `into` is writable for its length, and any bytes are a value of the integers that
    // this is called for; the helper checks the address.
    unsafe {
        bpf_probe_read_kernel(
            ptr::from_mut(into).cast::<c_void>(),
            size_of::<T>() as u32,
            address as *const c_void,
        )
    };
}

#[inline(always)]
fn current_task() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_current_task() }
}
