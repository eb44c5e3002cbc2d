//! Every instant of a program: a Python is stepped one instruction at a time through calls,
//! generators, coroutines and callbacks from C, and walked at each. Each of its functions is called
//! from one place only, so every stack can be told to be possible or not: one that is called
//! complete must be. Needs no root: a process may trace its own children. (pyebpf itself traces
//! nothing; a sample falls where it falls.)

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytemuck::Zeroable;
use profiler_ebpf::Outcome;
use profiler_ebpf::python::Walk;
use pyebpf::cpython::{Binaries, Detection, Interpreter, code, detect};
use pyebpf::memory::ProcessMemory;

use common::{home, pyenv, skip};

/// How many instructions are looked at: the program's loop some times over.
const STEPS: u32 = 40_000;

const PROGRAM: &str = "
import sys

def plain_leaf(value): return value
def plain(): return plain_leaf(1)

def inner_leaf(): return 1
def inner():
    yield inner_leaf()
    yield 2
def outer():
    yield from inner()

def nested_leaf(): return 1
def nested():
    yield nested_leaf()
    yield 2
def loop():
    for value in nested():
        yield value

def key_leaf(value): return value
def key(value): return key_leaf(value)

async def second():
    return 1
async def first():
    return await second()

def by_next_leaf(): return 1
def by_next():
    yield by_next_leaf()
    yield 2
def next_in_generator():
    yield 1
    generator = by_next()
    next(generator)
    yield next(generator)
    next(generator, None)

def in_list():
    yield 1
    yield 2

def expression_leaf(value): return value

class Kind:
    def __init__(self):
        self.value = self.method()
    def method(self):
        return 1

def main():
    plain()
    for _ in outer(): pass
    for _ in loop(): pass
    sorted([2, 1], key=key)
    try:
        first().send(None)
    except StopIteration:
        pass
    list(next_in_generator())
    list(in_list())
    sum(expression_leaf(value) for value in (1, 2))
    Kind()

for _ in range(300):
    main()
sys.stdout.write('ready\\n')
sys.stdout.flush()
while True:
    main()
";

/// Who calls whom.
const CALLERS: [(&str, &str); 21] = [
    ("main", "<module>"),
    ("plain", "main"),
    ("plain_leaf", "plain"),
    ("outer", "main"),
    ("inner", "outer"),
    ("inner_leaf", "inner"),
    ("loop", "main"),
    ("nested", "loop"),
    ("nested_leaf", "nested"),
    ("key", "main"),
    ("key_leaf", "key"),
    ("first", "main"),
    ("second", "first"),
    ("next_in_generator", "main"),
    ("by_next", "next_in_generator"),
    ("by_next_leaf", "by_next"),
    ("in_list", "main"),
    ("<genexpr>", "main"),
    ("expression_leaf", "<genexpr>"),
    ("__init__", "main"),
    ("method", "__init__"),
];

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the walks of one program gave.
#[derive(Debug, Default)]
struct Seen {
    complete: u32,
    marked: BTreeMap<Outcome, u32>,
    /// Called complete, but no stack of the program.
    impossible: BTreeMap<String, u32>,
}

fn ptrace(request: libc::c_uint, pid: u32, data: *mut libc::c_void) {
    // SAFETY: of our own stopped child; `data` is null or fits the request.
    let done = unsafe { libc::ptrace(request, pid as i32, std::ptr::null_mut::<u8>(), data) };
    assert_eq!(
        done,
        0,
        "ptrace {request}: {}",
        std::io::Error::last_os_error()
    );
}

fn wait(pid: u32) {
    let mut status = 0;
    // SAFETY: `status` is ours.
    let waited = unsafe { libc::waitpid(pid as i32, &mut status, 0) };
    assert!(
        waited == pid as i32 && libc::WIFSTOPPED(status),
        "{status:#x}"
    );
}

/// Steps through the program; gives the minor version, too.
fn step_through(python: &Path) -> (u8, Seen) {
    let mut child = Command::new(python)
        .args(["-S", "-E", "-c", PROGRAM])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = child.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let running = Running(child);
    let pid = running.0.id();
    assert_eq!(line, "ready\n", "{}", python.display());
    let interpreter = match detect(pid, &mut Binaries::new()).unwrap() {
        Detection::Python(interpreter) => interpreter,
        other => panic!("{other:?}"),
    };
    ptrace(libc::PTRACE_ATTACH, pid, std::ptr::null_mut());
    wait(pid);
    // SAFETY: plain numbers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, pid, (&raw mut registers).cast());
    let mut seen = Seen::default();
    let mut names = HashMap::new();
    let mut walk: Box<Walk> = Box::new(Walk::zeroed());
    for _ in 0..STEPS {
        ptrace(libc::PTRACE_SINGLESTEP, pid, std::ptr::null_mut());
        wait(pid);
        look(
            pid,
            &interpreter,
            registers.fs_base,
            &mut walk,
            &mut names,
            &mut seen,
        );
    }
    (interpreter.version.minor, seen)
}

/// Walks the stopped process once.
fn look(
    pid: u32,
    interpreter: &Interpreter,
    control_block: u64,
    walk: &mut Walk,
    names: &mut HashMap<(u64, u32), String>,
    seen: &mut Seen,
) {
    let memory = ProcessMemory::new(pid);
    let Interpreter { layout, target, .. } = interpreter;
    if walk.begin(&memory, layout, target, control_block) {
        while walk.step(&memory, layout, target) {}
    }
    let outcome = Outcome::from_number(walk.sample.outcome).unwrap();
    if outcome != Outcome::Complete {
        *seen.marked.entry(outcome).or_default() += 1;
        return;
    }
    let mut stack = Vec::new();
    for frame in &walk.frames[..walk.stack.frames as usize] {
        let name = names
            .entry((frame.code, frame.identity))
            .or_insert_with(|| {
                let read = code::read(
                    &memory,
                    layout,
                    target.code_type,
                    frame.code,
                    frame.identity,
                );
                match read {
                    Ok(code) if code.phantom() => String::new(),
                    Ok(code) => code.name,
                    Err(reason) => format!("[{reason}]"),
                }
            });
        stack.push(name.clone());
    }
    stack.retain(|name| !name.is_empty());
    let caller = |name: &str| CALLERS.iter().find(|(callee, _)| *callee == name);
    let linked = stack
        .windows(2)
        .all(|pair| caller(&pair[0]).is_some_and(|(_, caller)| *caller == pair[1]));
    if linked && stack.last().is_some_and(|name| name == "<module>") {
        seen.complete += 1;
    } else {
        *seen.impossible.entry(stack.join(" < ")).or_default() += 1;
    }
}

/// The Pythons of this machine that can be stepped: pyenv's, the system's, and the free-threaded one.
fn pythons() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for minor in 6..=13 {
        match pyenv(&format!("3.{minor}.")) {
            Some(root) => found.push(root.join("bin/python3")),
            None => skip(&format!(
                "stepping 3.{minor}: it is not under ~/.pyenv/versions"
            )),
        }
    }
    for other in [
        PathBuf::from("/usr/bin/python3"),
        home().join(".cache/pyebpf/freethreaded-3.13/python"),
    ] {
        match other.exists() {
            true => found.push(other),
            false => skip(&format!("stepping {}: it is not here", other.display())),
        }
    }
    found
}

#[test]
fn at_every_instruction_a_stack_is_possible_or_marked() {
    let mut failures = Vec::new();
    for python in pythons() {
        let (minor, seen) = step_through(&python);
        let marked: u32 = seen.marked.values().sum();
        let name = python.display();
        println!(
            "{name}: {} complete, marked {:?}",
            seen.complete, seen.marked
        );
        // 3.11 and 3.12 have instants at which nothing can be told; others have none.
        let torn = matches!(minor, 11 | 12);
        let least = if torn { STEPS / 1000 * 995 } else { STEPS };
        if !seen.impossible.is_empty() {
            failures.push(format!("{name}: {:#?}", seen.impossible));
        }
        if seen.complete < least {
            failures.push(format!(
                "{name}: {marked} of {STEPS} are marked: {:?}",
                seen.marked
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
