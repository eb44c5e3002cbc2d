//! Detection of live interpreters: each Python of this machine is started, and what is found in it
//! from outside is compared with what it says of itself, up to the frames of its main thread.
//! Needs no root: a process may read its own children.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bytemuck::Zeroable;
use profiler_ebpf::Outcome;
use profiler_ebpf::python::Walk;
use pyebpf::cpython::{Binaries, Detection, Interpreter, detect};
use pyebpf::memory::ProcessMemory;

/// Says what it is, then waits within three frames, the GIL released.
const PROGRAM: &str = "
import sys
try:
    from _thread import get_ident
except ImportError:
    from thread import get_ident
def outer(): return inner()
def inner():
    frame, codes = sys._getframe(), []
    while frame is not None:
        codes.append(str(id(frame.f_code)))
        frame = frame.f_back
    said = ['%d.%d.%d' % sys.version_info[:3], str(id(type(inner.__code__))), str(get_ident())]
    sys.stdout.write(' '.join(said + codes) + chr(10))
    sys.stdout.flush()
    return sys.stdin.readline()
outer()
";

struct Running {
    child: Child,
    version: String,
    code_type: u64,
    thread: u64,
    codes: Vec<u64>,
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
        let mut words = line.split_whitespace();
        let version = words.next().expect("the child speaks").to_owned();
        let mut numbers = words.map(|word| word.parse().unwrap());
        Running {
            child,
            version,
            code_type: numbers.next().unwrap(),
            thread: numbers.next().unwrap(),
            codes: numbers.collect(),
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Checks what is found in the process against what it said.
    fn check(&self, binaries: &mut Binaries) -> Box<Interpreter> {
        let interpreter = match detect(self.pid(), binaries).unwrap() {
            Detection::Python(interpreter) => interpreter,
            other => panic!("{}: {other:?}", self.version),
        };
        assert_eq!(interpreter.version.to_string(), self.version);
        assert_eq!(interpreter.target.code_type, self.code_type);
        self.walk(&interpreter);
        interpreter
    }

    fn walk(&self, interpreter: &Interpreter) {
        let memory = ProcessMemory::new(self.pid());
        let Interpreter { layout, target, .. } = interpreter;
        // Without the list of threads, which finds every thread that a direct route misses.
        let mut direct = *target;
        direct.interpreters = 0;
        for target in [*target, direct] {
            let mut walk: Box<Walk> = Box::new(Walk::zeroed());
            if walk.begin(&memory, layout, &target, self.thread) {
                while walk.step(&memory, layout, &target) {}
            }
            assert_eq!(walk.sample.outcome, Outcome::Complete as u8);
            let frames = &walk.frames[..walk.sample.frames as usize];
            let codes: Vec<u64> = frames.iter().map(|frame| frame.code).collect();
            assert_eq!(codes, self.codes, "{}", self.version);
            assert_eq!(walk.sample.gil, 0, "{}", self.version);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a test that can't run visible: on stderr, and in the file that CI collects skips in.
fn skip(what: &str) {
    eprintln!("skipped: {what}");
    if let Some(path) = std::env::var_os("PYEBPF_SKIPPED") {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path);
        file.and_then(|mut file| writeln!(file, "{what}")).unwrap();
    }
}

fn home() -> PathBuf {
    PathBuf::from(std::env::var_os("HOME").unwrap_or_default())
}

/// The Pythons under `~/.pyenv/versions`.
fn pyenv(version: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir(home().join(".pyenv/versions")).ok()?;
    let found = versions
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(version))?;
    Some(found.path())
}

fn program(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.args(["-S", "-c", PROGRAM]);
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
        command.args(["-S", "-c", PROGRAM]);
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
        let folder = tempfile::tempdir().unwrap();
        let entries = std::fs::read_dir(root.join("lib")).unwrap().flatten();
        let library = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .find(|name| name.starts_with("libpython3.") && name.ends_with(".so.1.0"))
            .unwrap();
        let strip = Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(folder.path().join(&library))
            .arg(root.join("lib").join(&library))
            .status();
        if !strip.is_ok_and(|status| status.success()) {
            return skip("stripped libpython: no strip");
        }
        let mut command = program(&root.join("bin/python3"));
        command.env("LD_PRELOAD", folder.path().join(&library));
        let running = Running::start(&mut command);
        let interpreter = running.check(&mut Binaries::new());
        assert!(interpreter.binary.starts_with(folder.path()));
    }
}

#[test]
fn python_2_is_refused_by_its_version() {
    let Some(root) = pyenv("2.7.") else {
        return skip("no Python 2.7.x under ~/.pyenv/versions");
    };
    let running = Running::start(&mut program(&root.join("bin/python2.7")));
    match detect(running.pid(), &mut Binaries::new()).unwrap() {
        Detection::Unsupported { version, why } => {
            assert_eq!(version, running.version);
            assert_eq!(why, "only CPython 3.6 to 3.15 are supported");
        }
        other => panic!("{other:?}"),
    }
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
    let rounds = 20;
    let again = Instant::now();
    for _ in 0..rounds {
        detect(running.pid(), &mut binaries).unwrap();
    }
    let again = again.elapsed() / rounds;
    eprintln!("first look {first:?}, then {again:?}");
    assert!(again.as_micros() < 2000, "{again:?} for a known binary");
}
