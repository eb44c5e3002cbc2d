//! A thread of another process, stopped: its registers and its stack, and what its process runs code
//! from. Stopped by ptrace here, or by someone else, such as gdb.

use std::ffi::c_uint;
use std::fs;
use std::io;
use std::ops::Range;
use std::ptr::null_mut;

use profiler_ebpf::python::Memory;
use profiler_ebpf::{REGISTERS, RSP};
use pyebpf::memory::ProcessMemory;

/// Bytes below the stack pointer that a function may use without moving it (System V ABI, AMD64
/// supplement, 3.2.2).
const RED_ZONE: u64 = 128;
/// Most bytes of a stack that are copied.
const STACK_MAX: u64 = 16 << 20;

/// The registers of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) ip: u64,
    /// By DWARF's numbers.
    pub(crate) others: [u64; REGISTERS],
}

/// A copy of a thread's stack.
pub(crate) struct Stop {
    stack: Vec<u8>,
    /// Where the stack's copy begins in the process.
    start: u64,
}

impl Stop {
    /// Copies the stack that the stack pointer of a stopped thread of process `pid` is in, as far as it
    /// is in use; `None` when it is in none.
    pub(crate) fn of(pid: u32, registers: &Registers) -> Option<Stop> {
        let sp = registers.others[RSP as usize];
        let mapped = mapped_around(pid, sp)?;
        let start = mapped.start.max(sp.saturating_sub(RED_ZONE) & !4095);
        let length = (mapped.end - start).min(STACK_MAX);
        let mut stack = vec![0; usize::try_from(length).ok()?];
        let read = ProcessMemory::new(pid).read(start, &mut stack);
        read.then_some(Stop { stack, start })
    }
}

impl Memory for Stop {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let part = address
            .checked_sub(self.start)
            .and_then(|from| usize::try_from(from).ok())
            .and_then(|from| self.stack.get(from..)?.get(..into.len()));
        part.is_some_and(|part| {
            into.copy_from_slice(part);
            true
        })
    }
}

/// The mapping of a process that this address lies in.
fn mapped_around(pid: u32, address: u64) -> Option<Range<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    maps.lines().find_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let range = number(start)?..number(end)?;
        range.contains(&address).then_some(range)
    })
}

/// The threads of a process.
pub(crate) fn threads(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let names = tasks.flatten().map(|task| task.file_name());
    names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect()
}

/// A thread that ptrace has stopped; it goes on when this is dropped.
pub(crate) struct Held(u32);

impl Held {
    /// Stops a thread of a child of ours, wherever it is.
    ///
    /// # Errors
    /// When it is gone, or not ours to stop.
    pub(crate) fn stop(thread: u32) -> io::Result<Held> {
        ptrace(libc::PTRACE_SEIZE, thread, null_mut())?;
        let held = Held(thread);
        ptrace(libc::PTRACE_INTERRUPT, thread, null_mut())?;
        let mut status = 0;
        // SAFETY: `status` is ours.
        let waited = unsafe { libc::waitpid(thread as i32, &mut status, libc::__WALL) };
        match waited == thread as i32 && libc::WIFSTOPPED(status) {
            true => Ok(held),
            false => Err(io::Error::other(format!("it did not stop: {status:#x}"))),
        }
    }

    pub(crate) fn registers(&self) -> io::Result<Registers> {
        // SAFETY: plain numbers.
        let mut user: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        ptrace(libc::PTRACE_GETREGS, self.0, (&raw mut user).cast())?;
        Ok(Registers {
            ip: user.rip,
            others: [
                user.rax, user.rdx, user.rcx, user.rbx, user.rsi, user.rdi, user.rbp, user.rsp,
                user.r8, user.r9, user.r10, user.r11, user.r12, user.r13, user.r14, user.r15,
            ],
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _gone = ptrace(libc::PTRACE_DETACH, self.0, null_mut());
    }
}

fn ptrace(request: c_uint, thread: u32, data: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: of a thread of our own child; `data` is null or has room for what the request gives.
    let done = unsafe { libc::ptrace(request, thread as i32, null_mut::<u8>(), data) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
