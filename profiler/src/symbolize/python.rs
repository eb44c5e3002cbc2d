//! Names Python frames of one process: (code object, identity, instruction) to an interned frame.
//!
//! A code object is read from the target at first sight, and its name holds for the identity that
//! it was read with and for no other. What can't be read is `[unknown: reason]`, never a guess.

use std::path::{Path, PathBuf};

use profiler_ebpf::{Frame, Layout};
use rustc_hash::FxHashMap;

use crate::{
    cpython::{
        Interpreter, LineTable,
        code::{self, Reason},
    },
    memory::ProcessMemory,
    profile::{FrameId, Function, FunctionId, Profile},
};

/// What an entry of each map takes, about, beside what it points to.
const CODE_BYTES: usize = 96;
const FRAME_BYTES: usize = 48;
const FILE_BYTES: usize = 80;

/// What is known of the code objects of one process.
pub(super) struct Process {
    memory: ProcessMemory,
    layout: Layout,
    code_type: u64,
    /// The process's root folder, seen from here.
    root: PathBuf,
    codes: FxHashMap<(u64, u32), Named>,
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
            codes: FxHashMap::default(),
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

    /// The frame's name and line in `profile`; adds to `bytes` what is kept of it.
    pub(super) fn frame(
        &mut self,
        profile: &mut Profile,
        frame: &Frame,
        bytes: &mut usize,
    ) -> Shown {
        if let Some(&known) = self.frames.get(frame) {
            return known;
        }
        let before = self.bytes;
        let shown = self.new_frame(profile, frame);
        *bytes += self.bytes - before;
        shown
    }

    fn new_frame(&mut self, profile: &mut Profile, frame: &Frame) -> Shown {
        if frame.identity == 0 {
            // Unproven: the next such frame may be of another code object.
            return show(&self.read(profile, frame), profile, frame);
        }
        let key = (frame.code, frame.identity);
        if !self.codes.contains_key(&key) {
            let named = self.read(profile, frame);
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

    fn read(&mut self, profile: &mut Profile, frame: &Frame) -> Named {
        let code = code::read(
            &self.memory,
            &self.layout,
            self.code_type,
            frame.code,
            frame.identity,
        );
        match code {
            Ok(code) if code.phantom() => Named::Phantom,
            Ok(code) => self.named(profile, code, frame.identity == 0),
            Err(reason) => Named::Unknown(profile.marker(&format!("[unknown: {reason}]")), reason),
        }
    }

    fn named(&mut self, profile: &mut Profile, code: code::Code, unproven: bool) -> Named {
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
/// `__init__.py` are packages. Looked up below `root`.
fn shorten(root: &Path, file: &str) -> String {
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
    }
}
