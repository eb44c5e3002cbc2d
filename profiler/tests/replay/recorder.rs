//! Makes the recordings: starts each Python of this machine under a known stack, walks its two
//! threads while they rest, and keeps every line of memory that was read. On request only.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use profiler_ebpf::python::{Memory, identity};
use profiler_ebpf::{Layout, Target};
use pyebpf::cpython::{Binaries, Build, Detection, Interpreter, detect};
use pyebpf::memory::ProcessMemory;
use serde::Deserialize;

use super::BUILDS;
use super::pages::{LINE, Pages};
use super::recording::{Called, Recording, Thread, empty_walk, is_made, outcome, walk_over};

/// Rests in two threads, each at the line at which it told its frames: one in a C call that has
/// released the GIL, the other in one that keeps it. `wide` has frames of 8 KiB where the version
/// can be talked into that, so that the stack lies in several pages and chunks.
const PROGRAM: &str = "
import ctypes, json, os, sys, time
from _thread import get_ident, start_new_thread

said = []
def say(frame, gil):
    frames = []
    while frame is not None:
        code = frame.f_code
        frames.append((id(code), frame.f_lineno, code.co_filename, code.co_name,
                       getattr(code, 'co_qualname', None)))
        frame = frame.f_back
    said.append((get_ident(), gil, frames))

def worker():
    waiting()

def waiting(): return [say(sys._getframe(), False), os.read(never[0], 1)]

class Étage:
    def __init__(self, depth):
        self.below = Étage(depth - 1) if depth else self.recurse(8)

    def recurse(self, depth):
        if depth:
            return self.recurse(depth - 1)
        return list(self.генератор())

    def генератор(self):
        yield (lambda:
               [2, 1].sort(key=関数))()

def 関数(value):
    return [wide(depth) for depth in (3,)]

def wide(depth):
    return wide(depth - 1) if depth else 𒀀()

if hasattr(wide.__code__, 'replace'):
    wide.__code__ = wide.__code__.replace(co_stacksize=1000)

def tell():
    told = {'version': '%d.%d.%d' % sys.version_info[:3], 'said': said[::-1]}
    sys.stdout.write(json.dumps(told) + '\\n')
    sys.stdout.flush()

def 𒀀(): return [say(sys._getframe(), True), tell(), keep_gil(never[0], buffer, 1)]

keep_gil = ctypes.PyDLL(None).read
buffer = ctypes.create_string_buffer(1)
never = os.pipe()
start_new_thread(worker, ())
while not said:
    time.sleep(0.001)
time.sleep(0.05)
Étage(20)
";

/// Where the program says that it is from.
const FILE: &str = "/srv/データ/naïve/stack.py";

/// Code address, line, file, name, qualified name.
type Told = (u64, u32, String, String, Option<String>);

#[derive(Deserialize)]
struct Said {
    version: String,
    /// Thread id, whether it holds the GIL, its frames; the main thread first.
    said: Vec<(u64, bool, Vec<Told>)>,
}

/// The memory of a process, and what was read of it.
struct Noted {
    memory: ProcessMemory,
    pages: RefCell<Pages>,
    /// Addresses of the bytes that were read themselves, not only beside others.
    read: RefCell<BTreeSet<u64>>,
}

impl Memory for Noted {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        if !self.memory.read(address, into) {
            return false;
        }
        let end = address + into.len() as u64;
        for line in (address & !(LINE - 1)..end).step_by(LINE as usize) {
            let mut bytes = [0; LINE as usize];
            assert!(self.memory.read(line, &mut bytes));
            self.pages.borrow_mut().write(line, &bytes);
        }
        self.read.borrow_mut().extend(address..end);
        true
    }
}

/// A command that runs the program on a Python of this build, if one is here: the source in ASCII,
/// as an old Python in the C locale takes no other.
fn command(build: Build) -> Option<Command> {
    let literal = |text: &str| -> String {
        let characters = text.chars().map(u32::from);
        characters
            .map(|character| format!("\\U{character:08x}"))
            .collect()
    };
    let source = if build.major == 2 {
        // Names in ASCII, and a file name of bytes.
        let names = [
            ("É", "E"),
            ("генератор", "gen"),
            ("関数", "function"),
            ("𒀀", "rest"),
            ("from _thread", "from thread"),
        ];
        let program = names
            .iter()
            .fold(PROGRAM.to_owned(), |program, (name, old)| {
                program.replace(name, old)
            });
        let file: String = FILE.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("exec(compile(u'{}', '{file}', 'exec'))", literal(&program))
    } else {
        let (program, file) = (literal(PROGRAM), literal(FILE));
        format!("exec(compile('{program}', '{file}', 'exec'))")
    };
    let home = PathBuf::from(std::env::var_os("HOME")?);
    let mut command = if build.free_threaded {
        let program = home.join(".cache/pyebpf/freethreaded-3.13/python");
        if build.minor != 13 || !program.exists() {
            return None;
        }
        Command::new(program)
    } else if build.minor <= 13 {
        let versions = std::fs::read_dir(home.join(".pyenv/versions"))
            .ok()?
            .flatten();
        let prefix = format!("{build}.");
        let mut folders = versions.filter(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with(&prefix)
        });
        Command::new(
            folders
                .next()?
                .path()
                .join(format!("bin/python{}", build.major)),
        )
    } else {
        let root = home.join(".cache/pyebpf/roots/sid");
        let program = format!("usr/bin/python{build}");
        if !root.join(&program).exists() {
            return None;
        }
        let mut command = Command::new("chroot");
        command.arg(root).arg(Path::new("/").join(program));
        command
    };
    command.args(["-S", "-E", "-B", "-c", &source]);
    Some(command)
}

fn record(child: &mut Child) -> Recording {
    let mut line = String::new();
    let output = child.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let said: Said = serde_json::from_str(&line).unwrap();
    rest(child.id());
    let interpreter = match detect(child.id(), &mut Binaries::new()).unwrap() {
        Detection::Python(interpreter) => interpreter,
        other => panic!("{other:?}"),
    };
    let Interpreter { layout, target, .. } = *interpreter;
    let mut recording = Recording {
        version: said.version,
        layout,
        target,
        threads: Vec::new(),
        memory: Pages::default(),
    };
    let noted = Noted {
        memory: ProcessMemory::new(child.id()),
        pages: RefCell::default(),
        read: RefCell::default(),
    };
    let list = Target {
        current: 0,
        tss_key: 0,
        tls_offset: 0,
        ..target
    };
    let direct = Target {
        current: 0,
        interpreters: 0,
        ..target
    };
    let mut walk = empty_walk();
    // A thread that is not there: all of the list is read.
    walk_over(&mut walk, &noted, &layout, &list, 8);
    for (control_block, holds_gil, frames) in said.said {
        for target in [&list, &direct, &target] {
            walk_over(&mut walk, &noted, &layout, target, control_block);
        }
        eprintln!("{}: {:?}", recording.version, outcome(&walk));
        for frame in &walk.frames[..walk.stack.frames as usize] {
            let kind = target.code_type;
            // Also what identifies code objects that have no version.
            let unversioned = Layout {
                code_version: 0,
                ..layout
            };
            identity(&noted, &unversioned, kind, frame.code).unwrap();
            pyebpf::cpython::code::read(&noted, &layout, kind, frame.code, 0).unwrap();
        }
        let called = |(code, line, file, name, qualname): Told| Called {
            code,
            line,
            file,
            name,
            qualname,
        };
        recording.threads.push(Thread {
            control_block,
            holds_gil,
            frames: frames.into_iter().map(called).collect(),
        });
    }
    recording.memory = noted.pages.into_inner();
    leave_out_text(&mut recording.memory, &noted.read.into_inner());
    recording
}

/// Blanks text that lies beside what was read: it says nothing of CPython, but may say something
/// of the machine. Words of binary numbers are kept.
fn leave_out_text(memory: &mut Pages, read: &BTreeSet<u64>) {
    for line in memory.lines() {
        for word in (line..line + LINE).step_by(8) {
            let bytes = (word..).zip(memory.word(word).to_le_bytes());
            let beside: Vec<(u64, u8)> = bytes.filter(|(at, _)| !read.contains(at)).collect();
            let text = |byte: u8| byte == 0 || byte == b' ' || byte.is_ascii_graphic();
            if beside.iter().all(|&(_, byte)| text(byte)) {
                for (at, _) in beside {
                    memory.write(at, &[0]);
                }
            }
        }
    }
}

/// Waits until no thread of the process runs: they have spoken and sleep for what never comes.
fn rest(pid: u32) {
    let sleeps = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat"));
        stat.is_ok_and(|stat| stat.contains(") S "))
    };
    for _ in 0..5000 {
        let mut tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .flatten();
        if tasks.all(sleeps) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("process {pid} does not come to rest");
}

#[test]
fn record_every_version_on_request() {
    if std::env::var_os("PYEBPF_RECORD").is_none() {
        return;
    }
    for build in BUILDS.into_iter().filter(|build| !is_made(*build)) {
        let Some(mut command) = command(build) else {
            eprintln!("kept as it is: there is no Python {build} here");
            continue;
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let recording = record(&mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        let row = pyebpf::cpython::layout(build).unwrap();
        assert_eq!(
            recording.layout, row,
            "{build}: replayed with the row's layout"
        );
        std::fs::write(Recording::path(build), recording.text()).unwrap();
    }
}
