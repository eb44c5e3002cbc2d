//! What gdb finds: it stops the process and walks each of its threads, and while it holds them still
//! their registers and stacks are read from outside.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use profiler_ebpf::REGISTERS;

use super::stop::Registers;

/// A line for each thread at each stop: its id, its registers, the addresses of its frames; then `.`.
/// The first `.` comes when all is ready, each further stop when a line has come. What it calls inlined or left by a jump is no frame of the stack.
const SCRIPT: &str = r#"
import os, sys
NAMES = "rip rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15".split()
def frames():
    frame = gdb.newest_frame()
    found = []
    while frame is not None and len(found) < 128:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            found.append(frame.pc())
        try:
            frame = frame.older()
        except gdb.error:
            break
    return found
def tell(words):
    os.write(1, ("@ " + " ".join(words) + "\n").encode())
tell(["."])
while sys.stdin.readline():
    gdb.execute("continue", to_string=True)
    if not gdb.selected_inferior().threads():
        break
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        newest = gdb.newest_frame()
        mask = (1 << 64) - 1
        registers = [int(newest.read_register(name)) & mask for name in NAMES]
        tell([str(thread.ptid[1])] + ["%x" % word for word in registers + frames()])
    tell(["."])
"#;

/// A gdb that is attached to a process.
pub(crate) struct Gdb {
    gdb: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pid: u32,
}

/// A thread at a stop: its registers, and the addresses that gdb has found.
pub(crate) type Thread = (Registers, Vec<u64>);

impl Gdb {
    /// Attaches to a process, which goes on.
    ///
    /// # Errors
    /// When there is no gdb, or it may not.
    pub(crate) fn attach(pid: u32) -> io::Result<Gdb> {
        let mut command = Command::new("gdb");
        command.args(["-nx", "-batch"]);
        for setting in [
            "pagination off",
            "confirm off",
            "auto-load off",
            "debuginfod enabled off",
            "backtrace past-main on",
            "backtrace past-entry on",
            "backtrace limit unlimited",
        ] {
            command.args(["-ex", &format!("set {setting}")]);
        }
        command.args(["-ex", &format!("attach {pid}")]);
        command.args(["-ex", "handle SIGSTOP stop nopass"]);
        command.args(["-ex", "handle SIGPIPE SIGCHLD SIGALRM nostop pass"]);
        command.args(["-ex", &format!("python exec({SCRIPT:?})")]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::null());
        let mut gdb = command.spawn()?;
        let (input, output) = (gdb.stdin.take(), gdb.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err(io::Error::other("gdb has no pipes"));
        };
        let output = BufReader::new(output);
        let mut gdb = Gdb {
            gdb,
            input,
            output,
            pid,
        };
        match gdb.told() {
            Some(_) => Ok(gdb),
            None => Err(io::Error::other("gdb can't attach")),
        }
    }

    /// Lets the process go on for as long as `wait` takes, and stops it.
    pub(crate) fn stop(&mut self, wait: impl FnOnce()) -> Option<Vec<Thread>> {
        writeln!(self.input).ok()?;
        wait();
        // SAFETY: a signal to a child of ours that has not been waited for.
        unsafe { libc::kill(self.pid as i32, libc::SIGSTOP) };
        self.told()
    }

    /// The threads that it tells of, up to the end of them.
    fn told(&mut self) -> Option<Vec<Thread>> {
        let mut threads = Vec::new();
        let mut line = String::new();
        loop {
            line.clear();
            if self.output.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let Some(words) = line.strip_prefix("@ ") else {
                continue;
            };
            if words.trim_end() == "." {
                return Some(threads);
            }
            threads.extend(thread(words));
        }
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        let _gone = self.gdb.kill();
        let _gone = self.gdb.wait();
    }
}

fn thread(words: &str) -> Option<Thread> {
    let numbers: Option<Vec<u64>> = words
        .split_whitespace()
        .skip(1)
        .map(|word| u64::from_str_radix(word, 16).ok())
        .collect();
    let numbers = numbers?;
    let (registers, frames) = numbers.split_at_checked(REGISTERS + 1)?;
    let registers = Registers {
        ip: registers[0],
        others: registers[1..].try_into().ok()?,
    };
    Some((registers, frames.to_vec()))
}
