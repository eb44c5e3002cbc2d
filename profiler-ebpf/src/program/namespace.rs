//! Ids of tasks as the daemon's PID namespace has them, where that is not the kernel's initial one. A
//! task that lies outside of it has none. Where the fields lie comes from the running kernel's BTF.

use core::hint::black_box;

use aya_ebpf::Global;

use super::{maps::TASK_SIGNAL, task::*};

/// How many ids a task may have at most: one in each namespace from the initial one, level 0, to its
/// own. `MAX_PID_NS_LEVEL`, include/linux/pid_namespace.h (5.10 to 6.18); a bound of the loop for the
/// verifier.
const LEVELS_MAX: u32 = 32;

/// The daemon's namespace by its inode; 0: the initial one, whose ids the kernel gives by itself.
#[unsafe(no_mangle)]
static PID_NAMESPACE: Global<u32> = Global::new(0);
/// `offsetof(struct task_struct, thread_pid)`: the task's own `struct pid`.
#[unsafe(no_mangle)]
static TASK_PID: Global<u32> = Global::new(0);
/// `offsetof(struct signal_struct, pids[PIDTYPE_TGID])`: its process's.
#[unsafe(no_mangle)]
static SIGNAL_PID: Global<u32> = Global::new(0);
/// `offsetof(struct pid, level)` and `numbers`, one `struct upid` for each level from 0 to it.
#[unsafe(no_mangle)]
static PID_LEVEL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static PID_NUMBERS: Global<u32> = Global::new(0);
/// `sizeof(struct upid)`, and where in it `nr` and `ns` lie: an id, and the namespace of that.
#[unsafe(no_mangle)]
static UPID_SIZE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static UPID_NR: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static UPID_NS: Global<u32> = Global::new(0);
/// `offsetof(struct pid_namespace, ns.inum)`.
#[unsafe(no_mangle)]
static NAMESPACE_INUM: Global<u32> = Global::new(0);

/// Whether the daemon runs in a namespace of its own.
#[inline(always)]
pub(crate) fn is_nested() -> bool {
    PID_NAMESPACE.load() != 0
}

/// The id of a task's process; 0 where it has none in the daemon's namespace.
#[inline(always)]
pub(crate) fn process_id_within(task: u64) -> u32 {
    let signal = kernel_word(task.wrapping_add(u64::from(TASK_SIGNAL.load())));
    id_within(kernel_word(
        signal.wrapping_add(u64::from(SIGNAL_PID.load())),
    ))
}

/// The id of a task itself, likewise.
#[inline(always)]
pub(crate) fn thread_id_within(task: u64) -> u32 {
    id_within(kernel_word(task.wrapping_add(u64::from(TASK_PID.load()))))
}

/// The id that the `struct pid` at this address has in the daemon's namespace, or 0. Innermost first:
/// most tasks lie there. Not inlined, so that the verifier looks at the loop once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn id_within(pid: u64) -> u32 {
    let level = kernel_half(pid.wrapping_add(u64::from(PID_LEVEL.load())));
    let numbers = pid.wrapping_add(u64::from(PID_NUMBERS.load()));
    let size = u64::from(UPID_SIZE.load());
    let mut above = 0;
    // Known to the compiler, the level would become the loop's only bound, which the verifier of 5.10
    // does not know.
    while above <= LEVELS_MAX && above <= black_box(level) {
        let upid = numbers.wrapping_add(u64::from(level - above).wrapping_mul(size));
        let namespace = kernel_word(upid.wrapping_add(u64::from(UPID_NS.load())));
        let inum = kernel_half(namespace.wrapping_add(u64::from(NAMESPACE_INUM.load())));
        if inum == PID_NAMESPACE.load() {
            return kernel_half(upid.wrapping_add(u64::from(UPID_NR.load())));
        }
        above += 1;
    }
    0
}
