//! The current task: its ids, its memory, fields of its kernel structures.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel,
    generated::bpf_probe_read_user,
};
use profiler_ebpf::python::Memory;

use super::maps::*;

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

/// Process and thread id of the current task, in the initial PID namespace.
#[inline(always)]
pub(crate) fn current_ids() -> (u32, u32) {
    let ids = bpf_get_current_pid_tgid();
    ((ids >> 32) as u32, ids as u32)
}

#[inline(always)]
pub(crate) fn task_word(offset: u32) -> u64 {
    // SAFETY: a helper without arguments; the read is checked by the helper.
    unsafe {
        let task = bpf_get_current_task();
        bpf_probe_read_kernel((task + u64::from(offset)) as *const u64).unwrap_or(0)
    }
}

#[inline(always)]
pub(crate) fn kernel_half(address: u64) -> u32 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const u32).unwrap_or(0) }
}

/// The process id of a task.
#[inline(always)]
pub(crate) fn process_id(task: u64) -> u32 {
    kernel_half(task.wrapping_add(u64::from(TASK_TGID.load())))
}
