//! This process's own stack, through the C library and a signal's frame, as `_Unwind_Backtrace` of the
//! compiler's runtime finds it.

use std::arch::asm;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::hint::black_box;

use profiler_ebpf::{NativeEnd, RBP, REGISTERS, RSP};
use pyebpf::memory::ProcessMemory;

use super::stop::Registers;
use super::tables::Tables;

unsafe extern "C" {
    // Of libgcc_s, which the standard library is linked with (unwind.h).
    fn _Unwind_Backtrace(
        each: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

extern "C" fn each(context: *mut c_void, into: *mut c_void) -> c_int {
    // SAFETY: `into` is what `both` has passed, and the context is the unwinder's own.
    unsafe { (*into.cast::<Vec<u64>>()).push(_Unwind_GetIP(context) as u64) };
    0
}

/// Our callers, how our walk ended, and the runtime's callers.
type Seen = (Vec<u64>, NativeEnd, Vec<u64>);

thread_local! {
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
}

/// Our walk and the runtime's, from here.
#[inline(never)]
fn both() {
    let pid = std::process::id();
    let mut tables = Tables::default();
    tables.look(pid);
    let (ip, sp, bp): (u64, u64, u64);
    // SAFETY: only reads registers.
    unsafe {
        asm!("lea {}, [rip]", "mov {}, rsp", "mov {}, rbp", out(reg) ip, out(reg) sp, out(reg) bp);
    }
    let mut registers = Registers {
        ip,
        others: [0; REGISTERS],
    };
    (
        registers.others[RSP as usize],
        registers.others[RBP as usize],
    ) = (sp, bp);
    let (ours, end) = tables.walk(&ProcessMemory::new(pid), &registers);
    let mut expected: Vec<u64> = Vec::new();
    // SAFETY: `each` takes what is passed here, which lives until the call returns.
    unsafe { _Unwind_Backtrace(each, (&raw mut expected).cast()) };
    SEEN.with_borrow_mut(|seen| *seen = Some((ours, end, expected)));
}

/// The same callers, and how many: the runtime may see the frame of `both` at another instruction.
fn same(least: usize) {
    let (ours, end, expected) = SEEN.take().unwrap();
    assert_eq!(end, NativeEnd::Complete, "{ours:x?}");
    let expected: Vec<u64> = expected.into_iter().filter(|&ip| ip != 0).collect();
    assert!(expected.len() >= least, "{expected:x?}");
    assert_eq!(ours[1..], expected[1..], "{ours:x?}\n{expected:x?}");
}

#[test]
fn our_callers_are_those_that_the_runtime_finds() {
    both();
    same(8);
}

extern "C" fn compare(_: *const c_void, _: *const c_void) -> c_int {
    if SEEN.with_borrow(Option::is_none) {
        both();
    }
    0
}

#[test]
fn callers_through_the_c_library_are() {
    let mut numbers = black_box([2_u32, 1, 3]);
    // SAFETY: three numbers of four bytes, and a function of qsort's kind.
    unsafe { libc::qsort(numbers.as_mut_ptr().cast(), 3, 4, Some(compare)) };
    same(10);
}

extern "C" fn handler(_: c_int) {
    both();
}

#[test]
fn callers_of_what_a_signal_has_interrupted_are() {
    let handler = handler as extern "C" fn(c_int);
    // SAFETY: the handler runs in this thread alone, which waits for it in `raise`, outside of any
    // lock.
    unsafe {
        libc::signal(libc::SIGUSR2, handler as libc::sighandler_t);
        libc::raise(libc::SIGUSR2);
    }
    same(10);
}
