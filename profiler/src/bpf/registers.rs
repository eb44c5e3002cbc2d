//! Where the kernel program finds the registers with which a thread left user space: which way this
//! kernel has, and the numbers that it takes.

use anyhow::Result;
use aya::sys::BpfHelper;

use super::{btf::Btf, programs::has_helper};

/// The kernel program's numbers by their names: none where the kernel tells the place itself, by
/// `bpf_task_pt_regs`, which came with 5.15.
///
/// Before that they end where the task's kernel stack does: `task_pt_regs` of
/// arch/x86/include/asm/processor.h, where `TOP_OF_KERNEL_STACK_PADDING` is 0 on x86-64 up to 6.8. No
/// type tells how large that stack is, but one tells it of that for interrupts, which has the same size:
/// `THREAD_SIZE` and `IRQ_STACK_SIZE` of arch/x86/include/asm/page_64_types.h, 16 KiB, twice that with
/// KASAN.
///
/// # Errors
/// When the kernel does not tell what helpers it has, or not those types.
pub(super) fn globals(btf: &Btf) -> Result<Vec<(&'static str, u32)>> {
    if has_helper(BpfHelper::BPF_FUNC_task_pt_regs)? {
        return Ok(Vec::new());
    }
    let registers = btf.size("irq_stack")?.saturating_sub(btf.size("pt_regs")?);
    Ok(vec![
        ("TASK_STACK", btf.offset("task_struct", "stack")?),
        ("STACK_REGISTERS", registers),
    ])
}
