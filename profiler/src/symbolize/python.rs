//! Keeps the stacks of one process and names their frames: (code object, identity, instruction) to
//! an interned frame.
//!
//! A code object is read at first sight, from the kernel's copy or else from the target, and its
//! name holds for the identity that it was read with and for no other. What can't be read is
//! `[unknown: reason]`, never a guess.

use std::path::{Path, PathBuf};

use profiler_ebpf::{Frame, Layout};
use rustc_hash::FxHashMap;

use crate::{
    cpython::{
        Interpreter, LineTable,
        code::{self, Code, Reason},
    },
    memory::ProcessMemory,
    profile::{FrameId, Function, FunctionId, Profile},
    sample::{Captured, Frames},
};

/// What an entry of each map takes, about, beside what it points to.
const STACK_BYTES: usize = 64;
const CODE_BYTES: usize = 96;
const FRAME_BYTES: usize = 48;
const FILE_BYTES: usize = 80;

/// What is known of the stacks and the code objects of one process.
pub(super) struct Process {
    memory: ProcessMemory,
    layout: Layout,
    code_type: u64,
    /// The process's root folder, seen from here.
    root: PathBuf,
    /// By hash.
    stacks: FxHashMap<u64, Frames>,
    codes: FxHashMap<(u64, u32), Named>,
    /// What the kernel copied of code objects that were not named yet.
    captured: FxHashMap<(u64, u32), Captured>,
    frames: FxHashMap<Frame, Shown>,
    short_files: FxHashMap<String, String>,
    /// What all this takes, about.
    bytes: usize,
}

/// How a frame appears in the profile.
#[derive(Clone, Copy)]
pub(super) enum Shown {
    As(FrameId),
    /// It is none of the program's own.
    Not,
    /// As a marker that says why it has no name.
    Unknown(FrameId, Reason),
}

enum Named {
    Function {
        function: FunctionId,
        lines: LineTable,
    },
    /// The shim around an inlined constructor: not shown.
    Phantom,
    Unknown(FrameId, Reason),
}

impl Process {
    /// The process `pid`, whose interpreter is this one.
    pub(super) fn new(pid: u32, interpreter: &Interpreter) -> Process {
        Process {
            memory: ProcessMemory::new(pid),
            layout: interpreter.layout,
            code_type: interpreter.target.code_type,
            root: PathBuf::from(format!("/proc/{pid}/root")),
            stacks: FxHashMap::default(),
            codes: FxHashMap::default(),
            captured: FxHashMap::default(),
            frames: FxHashMap::default(),
            short_files: FxHashMap::default(),
            bytes: 0,
        }
    }

    /// About how many bytes are kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many bytes of line tables are kept, counted anew.
    #[cfg(test)]
    pub(super) fn tables(&self) -> usize {
        let bytes = |named: &Named| match named {
            Named::Function { lines, .. } => lines.bytes(),
            Named::Phantom | Named::Unknown(..) => 0,
        };
        self.codes.values().map(bytes).sum()
    }

    /// Forgets what was read or copied of code objects, not what their frames are called.
    pub(super) fn forget_codes(&mut self) {
        for named in std::mem::take(&mut self.codes).into_values() {
            self.bytes -= CODE_BYTES;
            if let Named::Function { lines, .. } = named {
                self.bytes -= lines.bytes();
            }
        }
        for code in std::mem::take(&mut self.captured).into_values() {
            self.bytes -= code.bytes();
        }
    }

    /// What code objects are called in `old` they are called in `new` from now on.
    pub(super) fn renew(&mut self, old: &Profile, new: &mut Profile) {
        self.bytes -= FRAME_BYTES * self.frames.len();
        self.frames.clear();
        for named in self.codes.values_mut() {
            match named {
                Named::Function { function, .. } => *function = new.take_function(old, *function),
                Named::Phantom => {}
                Named::Unknown(marker, _) => {
                    let function = new.take_function(old, old.frame_of(*marker).function);
                    *marker = new.frame(function, None);
                }
            }
        }
    }

    /// Keeps the frames of a stack.
    pub(super) fn take_stack(&mut self, hash: u64, frames: Frames) {
        let bytes = |frames: &Frames| STACK_BYTES + frames.bytes();
        self.bytes += bytes(&frames);
        if let Some(replaced) = self.stacks.insert(hash, frames) {
            self.bytes -= bytes(&replaced);
        }
    }

    /// The frames of the stack with this hash.
    pub(super) fn stack(&self, hash: u64) -> Option<&Frames> {
        self.stacks.get(&hash)
    }

    /// Keeps what the kernel copied of a code object, if that is of use.
    pub(super) fn take_code(&mut self, code: Captured) {
        let key = (code.address, code.identity);
        match self.codes.get(&key) {
            Some(Named::Phantom) => return,
            Some(Named::Function { lines, .. }) if lines.is_known() => return,
            Some(_) => {
                self.bytes -= CODE_BYTES;
                self.codes.remove(&key);
                let frames = self.frames.len();
                let other = |frame: &Frame| (frame.code, frame.identity) != key;
                self.frames.retain(|frame, _| other(frame));
                self.bytes -= FRAME_BYTES * (frames - self.frames.len());
            }
            None => {}
        }
        self.bytes += code.bytes();
        if let Some(replaced) = self.captured.insert(key, code) {
            self.bytes -= replaced.bytes();
        }
    }

    /// The frame's name and line in `profile`. What was learnt of the code `before` is taken over.
    pub(super) fn frame(
        &mut self,
        profile: &mut Profile,
        frame: &Frame,
        before: Option<&mut Process>,
    ) -> Shown {
        if let Some(&known) = self.frames.get(frame) {
            return known;
        }
        if frame.identity == 0 {
            // Unproven: the next such frame may be of another code object.
            return show(&self.read(profile, frame), profile, frame);
        }
        let key = (frame.code, frame.identity);
        if !self.codes.contains_key(&key) {
            let known = match before {
                Some(before) => {
                    before.hand_over(self, key);
                    before.codes.remove(&key)
                }
                None => None,
            };
            let named = known.unwrap_or_else(|| self.read(profile, frame));
            self.bytes += CODE_BYTES;
            if let Named::Function { lines, .. } = &named {
                self.bytes += lines.bytes();
            }
            self.codes.insert(key, named);
        }
        let shown = show(&self.codes[&key], profile, frame);
        self.bytes += FRAME_BYTES;
        self.frames.insert(*frame, shown);
        shown
    }

    /// Gives what was copied of a code object to its successor, unless that has its own.
    fn hand_over(&mut self, to: &mut Process, key: (u64, u32)) {
        if !to.captured.contains_key(&key)
            && let Some(code) = self.captured.remove(&key)
        {
            self.bytes -= code.bytes();
            to.take_code(code);
        }
    }

    fn read(&mut self, profile: &mut Profile, frame: &Frame) -> Named {
        match self.read_code(frame) {
            Ok(code) if code.phantom() => Named::Phantom,
            Ok(code) => self.named(profile, code, frame.identity == 0),
            Err(reason) => Named::Unknown(profile.marker(&format!("[unknown: {reason}]")), reason),
        }
    }

    /// From what the kernel copied; else, or where that is not all, from the process; and if it is
    /// gone, from as much as was copied.
    fn read_code(&mut self, frame: &Frame) -> Result<Code, Reason> {
        let (layout, code_type) = (&self.layout, self.code_type);
        let (address, identity) = (frame.code, frame.identity);
        let captured = self.captured.remove(&(address, identity));
        if let Some(captured) = &captured {
            self.bytes -= captured.bytes();
            if let Ok(code) = code::read(captured, layout, code_type, address, identity) {
                return Ok(code);
            }
        }
        let read = code::read(&self.memory, layout, code_type, address, identity);
        match (read, captured) {
            (Err(reason), Some(captured)) => {
                code::read_names(&captured, layout, code_type, address, identity)
                    .map_err(|_| reason)
            }
            (read, _) => read,
        }
    }

    fn named(&mut self, profile: &mut Profile, code: Code, unproven: bool) -> Named {
        let mut name = code.qualname.unwrap_or(code.name);
        if unproven {
            name.push_str(" [unproven]");
        }
        let short_file = match self.short_files.get(&code.filename) {
            Some(short) => short.clone(),
            None => {
                let short = shorten(&self.root, &code.filename);
                self.bytes += FILE_BYTES + code.filename.len() + short.len();
                self.short_files
                    .insert(code.filename.clone(), short.clone());
                short
            }
        };
        let function = profile.function(Function {
            name,
            file: code.filename,
            short_file,
            first_line: code.first_line,
            module: None,
        });
        Named::Function {
            function,
            lines: code.lines,
        }
    }
}

fn show(named: &Named, profile: &mut Profile, frame: &Frame) -> Shown {
    match named {
        Named::Function { function, lines } => {
            Shown::As(profile.frame(*function, lines.line(frame.instruction)))
        }
        Named::Phantom => Shown::Not,
        Named::Unknown(marker, reason) => Shown::Unknown(*marker, *reason),
    }
}

/// The file's name from its outermost package on, as `import` would find it: folders with an
/// `__init__.py` are packages. Looked up below `root`, or below our own if the process is gone.
fn shorten(root: &Path, file: &str) -> String {
    let root = if root.exists() { root } else { Path::new("/") };
    let path = Path::new(file);
    if !path.is_absolute() {
        return file.to_owned();
    }
    let mut top = path;
    for folder in path.ancestors().skip(1) {
        let init = folder.join("__init__.py");
        top = folder;
        if !root.join(init.strip_prefix("/").unwrap_or(&init)).exists() {
            break;
        }
    }
    match path.strip_prefix(top) {
        Ok(short) if short != Path::new("") => short.display().to_string(),
        _ => file.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_from_their_package_on() {
        let root = tempfile::tempdir().unwrap();
        let package = root.path().join("lib/site/outer/inner");
        std::fs::create_dir_all(&package).unwrap();
        std::fs::write(package.join("__init__.py"), "").unwrap();
        std::fs::write(package.join("../__init__.py"), "").unwrap();
        let short = |file| shorten(root.path(), file);
        assert_eq!(short("/lib/site/outer/inner/mod.py"), "outer/inner/mod.py");
        assert_eq!(short("/lib/site/outer/mod.py"), "outer/mod.py");
        assert_eq!(short("/lib/site/mod.py"), "mod.py");
        assert_eq!(
            short("<frozen importlib._bootstrap>"),
            "<frozen importlib._bootstrap>"
        );
        assert_eq!(short("relative/mod.py"), "relative/mod.py");
        assert_eq!(short("/"), "/");
        // Of a process that is gone.
        let file = package.join("mod.py").display().to_string();
        let gone = shorten(Path::new("/proc/0/root"), &file);
        assert_eq!(gone, "outer/inner/mod.py");
    }
}
