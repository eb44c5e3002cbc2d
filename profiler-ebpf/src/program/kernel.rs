//! The kernel's frames of a sample: what its own stack walker finds where the clock has caught the
//! thread in the kernel, behind the frames that are in the record already.

use core::ptr;

use aya_ebpf::{EbpfContext as _, helpers::bpf_get_stack, programs::PerfEventContext};
use profiler_ebpf::{MAX_KERNEL, python::Walk};

use super::maps::*;

/// Takes the kernel's frames of the current thread, unless it was caught in user space.
#[inline(always)]
pub(crate) fn walk_kernel(ctx: &PerfEventContext, walk: &mut Walk) {
    // A stack without Python frames is not shown.
    if walk.stack.frames == 0 || was_in_user_space(ctx) {
        return;
    }
    let Some(room) = walk.room_for_kernel() else {
        return;
    };
    // SAFETY: the room is writable for its length; without flags it is the kernel's stack that the
    // helper takes, from the registers with which the clock's interrupt found it.
    let bytes = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            ptr::from_mut(room).cast(),
            size_of::<[u64; MAX_KERNEL]>() as u32,
            0,
        )
    };
    walk.take_kernel(bytes);
    mix_kernel();
}

/// As the kernel's `user_mode` (arch/x86/include/asm/ptrace.h): the two low bits tell the ring.
#[inline(always)]
fn was_in_user_space(ctx: &PerfEventContext) -> bool {
    // SAFETY: the context that the program is called with has the registers.
    let segment = unsafe { ptr::read_volatile(&raw const (*ctx.ctx).regs.cs) };
    segment & 3 != 0
}

/// Makes the frames a part of the stack's name. A global function, which the verifier looks at once
/// and not at each place where the loop may end; see `walk_step`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mix_kernel() -> u32 {
    if let Some(walk) = WALKS.get_ptr_mut(0) {
        // SAFETY: this CPU's own value, which the caller does not use meanwhile.
        unsafe { (*walk).mix_kernel() };
    }
    0
}
