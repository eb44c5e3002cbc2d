//! Detection of live interpreters: each Python of this machine is started, and what is found in it
//! from outside is compared with what it says of itself, up to the frames of its main thread.
//! Needs no root: a process may read its own children.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod kinds;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytemuck::Zeroable;
use profiler_ebpf::python::Walk;
use profiler_ebpf::{Outcome, Target, layout_flags};
use pyebpf::cpython::code::read;
use pyebpf::cpython::{Binaries, Detection, Interpreter, detect, threads};
use pyebpf::memory::ProcessMemory;
use serde::Deserialize;

use common::{home, pyenv, skip};

/// Says what it is and what its frames are, then waits with the GIL released, at the same line.
const PROGRAM: &str = "
import json, os, sys, threading
from _thread import get_ident

def tid():
    try:
        return threading.get_native_id()
    except AttributeError:
        return int(os.path.basename(os.readlink('/proc/thread-self')))

names = {tid(): 'MainThread'}
class Worker(threading.Thread):
    def __init__(self, name):
        super().__init__(name=name, daemon=True)
        self.own, self.ready = 'attribute', threading.Event()
        self.start()
        self.ready.wait()
    def run(self):
        names[tid()] = self.name
        self.ready.set()
        threading.Event().wait()
for name in ['größe', '労働者', 'plain', 'x' * 256]:
    Worker(name)
told = threading.Event()
def late():
    names[tid()] = 'late'
    told.set()
    threading.Event().wait()
named = threading.Thread(target=late)
named.daemon = True
named.start()
told.wait()
vars(named)['_name'] = 'late'

def say(frame):
    frames = []
    while frame is not None:
        code = frame.f_code
        qualname = getattr(code, 'co_qualname', None)
        frames.append((id(code), code.co_name, qualname, code.co_filename, frame.f_lineno))
        frame = frame.f_back
    print(json.dumps({
        'version': '%d.%d.%d' % sys.version_info[:3],
        'code_type': id(type(say.__code__)),
        'thread': get_ident(),
        'frames': frames,
        'names': names,
    }), flush=True)

class Étage:
    def __init__(self, depth):
        self.depth = depth
        list(self.генератор())

    def генератор(self):
        yield (lambda:
               self.関数())()

    def 関数(self):
        if self.depth:
            return self.recurse()
        𒀀()

    def recurse(self):
        return [
            Étage(
                self.depth - 1)
            for _ in '1'
        ]

def 𒀀(): return [say(sys._getframe()), sys.stdin.readline()]

Étage(20)
";

/// Where the program says that it is from.
const FILE: &str = "/srv/データ/naïve/𒀀.py";

/// The same for Python 2. A name that is no `str` of bytes is not read.
const OLD_PROGRAM: &str = r"
import ctypes, json, os, sys, threading
from thread import get_ident

gettid = 186
def tid():
    return ctypes.CDLL(None).syscall(gettid)

names = {tid(): 'MainThread'}
def worker(name, ready):
    if isinstance(name, str):
        names[tid()] = name
    ready.set()
    threading.Event().wait()
for name in ['gr\xc3\xb6\xc3\x9fe', 'plain', 'x' * 256, u'unicode']:
    ready = threading.Event()
    thread = threading.Thread(target=worker, name='', args=(name, ready))
    thread.name = name
    vars(thread)['_Thread__name'] = name
    thread.daemon = True
    thread.start()
    ready.wait()

def say(frame):
    frames = []
    while frame is not None:
        code = frame.f_code
        frames.append((id(code), code.co_name, None, code.co_filename, frame.f_lineno))
        frame = frame.f_back
    sys.stdout.write(json.dumps({
        'version': '%d.%d.%d' % sys.version_info[:3],
        'code_type': id(type(say.__code__)),
        'thread': get_ident(),
        'frames': frames,
        'names': names,
    }) + '\n')
    sys.stdout.flush()

class Old:
    def __init__(self, depth):
        self.depth = depth
        list(self.generate())

    def generate(self):
        yield (lambda:
               self.go())()

    def go(self):
        if self.depth:
            return self.recurse()
        rest()

    def recurse(self):
        return [
            Old(
                self.depth - 1)
            for _ in '1'
        ]

def rest(): return [say(sys._getframe()), os.read(0, 1)]

Old(24)
";

/// What any Python can say of itself before it waits.
const BRIEF_PROGRAM: &str = "
import json, sys
print(json.dumps({'version': '%d.%d.%d' % sys.version_info[:3], 'code_type': 0, 'thread': 0,
                  'frames': [], 'names': {}}))
sys.stdout.flush()
sys.stdin.readline()
";

/// What the program says. A frame: address, name, qualified name, file, line of its code.
#[derive(Deserialize)]
struct Said {
    version: String,
    code_type: u64,
    thread: u64,
    frames: Vec<(u64, String, Option<String>, String, u32)>,
    /// Thread id to name.
    names: HashMap<u32, String>,
}

struct Running {
    child: Child,
    said: Said,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let said = serde_json::from_str(&line).expect("the child speaks");
        let running = Running { child, said };
        // Once it has spoken, all that it sleeps for is a line that never comes.
        let stat = format!("/proc/{}/stat", running.pid());
        for _ in 0..5000 {
            if std::fs::read_to_string(&stat).unwrap().contains(") S ") {
                return running;
            }
            sleep(Duration::from_millis(1));
        }
        panic!("the child does not come to rest")
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Checks what is found in the process against what it said.
    fn check(&self, binaries: &mut Binaries) -> Box<Interpreter> {
        let interpreter = self.find(binaries);
        // Once without the list of threads, which finds a thread that the direct routes miss.
        let mut direct = interpreter.target;
        direct.interpreters = 0;
        self.check_frames(&interpreter, &interpreter.target);
        self.check_frames(&interpreter, &direct);
        interpreter
    }

    /// What is found in the process, checked up to the names of its threads.
    fn find(&self, binaries: &mut Binaries) -> Box<Interpreter> {
        let interpreter = match detect(self.pid(), binaries).unwrap() {
            Detection::Python(interpreter) => interpreter,
            other => panic!("{}: {other:?}", self.said.version),
        };
        assert_eq!(interpreter.version.to_string(), self.said.version);
        assert_eq!(interpreter.target.code_type, self.said.code_type);
        let names = threads::names(self.pid(), &interpreter);
        assert_eq!(names, self.said.names, "{}", self.said.version);
        interpreter
    }

    fn check_frames(&self, interpreter: &Interpreter, target: &Target) {
        let memory = ProcessMemory::new(self.pid());
        let layout = &interpreter.layout;
        let mut walk: Box<Walk> = Box::new(Walk::zeroed());
        if walk.begin(&memory, layout, target, self.said.thread) {
            while walk.step(&memory, layout, target) {}
        }
        let version = &self.said.version;
        assert_eq!(walk.sample.outcome, Outcome::Complete as u8, "{version}");
        assert_eq!(walk.sample.gil, 0, "{version}");
        let mut phantoms = 0;
        let mut seen = Vec::new();
        for frame in &walk.frames[..walk.stack.frames as usize] {
            let (address, identity) = (frame.code, frame.identity);
            let code = read(&memory, layout, target.code_type, address, identity).unwrap();
            if code.phantom() {
                phantoms += 1;
                continue;
            }
            let line = code.lines.line(frame.instruction).unwrap();
            seen.push((address, code.name, code.qualname, code.filename, line));
        }
        assert_eq!(seen, self.said.frames, "{version}");
        assert!(seen.len() > 100, "{version}: {} frames", seen.len());
        // 3.13 inlines no constructor without its GIL.
        let inlines = match interpreter.version.minor {
            13 => layout.flags & layout_flags::FREE_THREADED == 0,
            minor => minor > 13,
        };
        assert_eq!(phantoms > 0, inlines, "{version}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Python code that runs the program, in ASCII: an old Python in the C locale takes no other.
fn source() -> String {
    let literal = |text: &str| {
        let escaped: String = text
            .chars()
            .map(|character| format!("\\U{:08x}", u32::from(character)))
            .collect();
        format!("'{escaped}'")
    };
    let (program, file) = (literal(PROGRAM), literal(FILE));
    format!("exec(compile({program}, {file}, 'exec'))")
}

fn program(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg("-S").arg("-c").arg(source());
    command
}

#[test]
fn every_pyenv_version_is_found_and_walked() {
    let mut binaries = Binaries::new();
    for minor in 6..=13 {
        let version = format!("3.{minor}.");
        let Some(root) = pyenv(&version) else {
            skip(&format!("no Python {version}x under ~/.pyenv/versions"));
            continue;
        };
        let running = Running::start(&mut program(&root.join("bin/python3")));
        running.check(&mut binaries);
    }
}

#[test]
fn the_systems_own_python_is_found_and_walked() {
    let python = Path::new("/usr/bin/python3");
    if !python.exists() {
        return skip("no /usr/bin/python3");
    }
    let running = Running::start(&mut program(python));
    running.check(&mut Binaries::new());
}

#[test]
fn pythons_of_another_root_folder_are_found_and_walked() {
    let root = home().join(".cache/pyebpf/roots/sid");
    for minor in [13, 14, 15] {
        let name = format!("usr/bin/python3.{minor}");
        if !root.join(&name).exists() {
            skip(&format!("no {name} in {}", root.display()));
            continue;
        }
        // SAFETY: geteuid reads nothing of ours and can't fail.
        if unsafe { libc::geteuid() } != 0 {
            skip(&format!("{name} in {}: chroot needs root", root.display()));
            continue;
        }
        let mut command = Command::new("chroot");
        command.arg(&root).arg(format!("/{name}"));
        command.arg("-S").arg("-c").arg(source());
        let running = Running::start(&mut command);
        let interpreter = running.check(&mut Binaries::new());
        assert_eq!(interpreter.target.tls_offset != 0, minor == 15);
    }
}

#[test]
fn stripped_libraries_are_found_and_walked() {
    for version in ["3.6.", "3.7.", "3.9.", "3.11.", "3.12."] {
        let Some(root) = pyenv(version) else {
            skip(&format!(
                "stripped: no Python {version}x under ~/.pyenv/versions"
            ));
            continue;
        };
        let Some((folder, library)) = stripped(&root) else {
            return skip("stripped libpython: no strip");
        };
        let mut command = program(&root.join("bin/python3"));
        command.env("LD_PRELOAD", library);
        let running = Running::start(&mut command);
        let interpreter = running.check(&mut Binaries::new());
        let of = mapped_file(running.pid(), interpreter.target.code_type);
        assert!(Path::new(&of).starts_with(folder.path()), "{of}");
    }
}

/// A copy of this Python's library without its local symbols, in a folder of its own.
fn stripped(root: &Path) -> Option<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir().unwrap();
    let entries = std::fs::read_dir(root.join("lib")).unwrap().flatten();
    let library = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with("libpython") && name.ends_with(".so.1.0"))
        .unwrap();
    let copy = folder.path().join(&library);
    let strip = Command::new("strip")
        .arg("--strip-all")
        .arg("-o")
        .arg(&copy)
        .arg(root.join("lib").join(&library))
        .status();
    strip
        .is_ok_and(|status| status.success())
        .then_some((folder, copy))
}

/// The file of the mapping that `address` lies in.
fn mapped_file(pid: u32, address: u64) -> String {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let mapping = maps.lines().find(|line| {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        (number(start)..number(end)).contains(&address)
    });
    let file = mapping.and_then(|line| line.find('/').map(|at| &line[at..]));
    file.unwrap_or_default().to_owned()
}

#[test]
fn python_2_is_found_and_walked() {
    let Some(root) = pyenv("2.7.") else {
        return skip("no Python 2.7.x under ~/.pyenv/versions");
    };
    let stripped = stripped(&root);
    let mut preloads = vec![PathBuf::new()];
    match &stripped {
        Some((_, library)) => preloads.push(library.clone()),
        None => skip("stripped libpython 2.7: no strip"),
    }
    for preload in preloads {
        let mut command = Command::new(root.join("bin/python2.7"));
        command.args(["-S", "-c", OLD_PROGRAM]);
        let running = Running::start(command.env("LD_PRELOAD", preload));
        let interpreter = running.find(&mut Binaries::new());
        // It has no pthread key: a thread that has released the GIL is found by the list alone.
        assert_eq!(interpreter.target.tss_key, 0);
        running.check_frames(&interpreter, &interpreter.target);
        let mut list = interpreter.target;
        list.current = 0;
        running.check_frames(&interpreter, &list);
    }
}

#[test]
fn a_free_threaded_build_is_found_and_walked() {
    let python = home().join(".cache/pyebpf/freethreaded-3.13/python");
    if !python.exists() {
        return skip("no CPython without a GIL in ~/.cache/pyebpf");
    }
    let running = Running::start(&mut program(&python));
    let interpreter = running.check(&mut Binaries::new());
    assert_eq!(interpreter.layout.object_type, 24);
}

#[test]
fn what_is_no_python_is_told_from_what_is_gone() {
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    // Until it has replaced itself, the child is a copy of this test.
    let mut binaries = Binaries::new();
    let found = detect(child.id(), &mut binaries).unwrap();
    assert!(matches!(found, Detection::NotPython), "{found:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    let error = detect(child.id(), &mut binaries).unwrap_err();
    let maps = format!("cannot read /proc/{}/maps", child.id());
    assert!(format!("{error:#}").starts_with(&maps), "{error:#}");
}

#[test]
fn a_known_binary_is_not_read_again() {
    let Some(python) = pyenv("3.9.").map(|root| root.join("bin/python3")) else {
        return skip("cache: no Python 3.9.x under ~/.pyenv/versions");
    };
    let running = Running::start(&mut program(&python));
    let mut binaries = Binaries::new();
    let first = Instant::now();
    running.check(&mut binaries);
    let first = first.elapsed();
    // The quickest: other processes take their turns.
    let again = (0..20).map(|_| {
        let again = Instant::now();
        detect(running.pid(), &mut binaries).unwrap();
        again.elapsed()
    });
    let again = again.min().unwrap();
    eprintln!("first look {first:?}, then {again:?}");
    assert!(again.as_micros() < 2000, "{again:?} for a known binary");
}
