//! What a profile is made of: the ids that it gives out, processes, threads, functions, frames and
//! counts, and what was recorded in which shape.

use std::time::{Duration, SystemTime};

/// Index of a process of one [`super::Profile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub(super) u32);

/// Index of a thread of one [`super::Profile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadId(pub(super) u32);

/// Index of a function of one [`super::Profile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionId(pub(super) u32);

/// Index of a module of one [`super::Profile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId(pub(super) u32);

impl ModuleId {
    /// The number itself, for formats that have ids of their own.
    pub fn index(self) -> u32 {
        self.0
    }
}

/// Index of a frame of one [`super::Profile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameId(pub(super) u32);

impl FrameId {
    /// The number itself, for formats that have ids of their own.
    pub fn index(self) -> u32 {
        self.0
    }
}

/// Index of a stack of one [`super::Profile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub(super) u32);

/// Which line a frame carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineShape {
    /// The line that was running.
    #[default]
    Current,
    /// The function's first line, which folds the lines of a function into one frame.
    First,
    /// None at all.
    None,
}

/// How much of what is known the outputs show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub line: LineShape,
    /// A frame with the thread's id and name below its stacks.
    pub threads: bool,
    /// Full file names in labels, not the short ones.
    pub full_filenames: bool,
    /// A frame with the process's id and command line, where more than one process has samples.
    pub processes: bool,
}

/// What the recording was.
#[derive(Clone, Debug)]
pub struct Meta {
    /// When sampling began.
    pub started: SystemTime,
    /// Samples a second that were asked for.
    pub rate: u32,
    /// The command line of pyebpf itself.
    pub command: String,
    /// For how long it sampled; see [`super::Profile::set_duration`].
    pub duration: Duration,
}

/// A process that was sampled.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// As seen from our own PID namespace.
    pub pid: u32,
    pub command_line: String,
    /// Path of its control group, as in `/proc/PID/cgroup`; empty when that is not known.
    pub cgroup: String,
    /// Id of its container, all of it; empty when it is in none.
    pub container: String,
}

/// A thread that was sampled.
#[derive(Clone, Debug)]
pub struct Thread {
    pub process: ProcessId,
    /// As seen from our own PID namespace.
    pub tid: u32,
    /// The kernel's name of it.
    pub comm: String,
    /// Python's name of it, empty when that is not known.
    pub name: String,
}

/// What native code is of: a library, a program, the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Module {
    /// The file, as its process sees it; `[jit]` for code that a process has made.
    pub path: String,
    /// What the linker made of its content (`NT_GNU_BUILD_ID`); none where that is not known.
    pub build_id: Vec<u8>,
    /// Whether it is the kernel, or a module of it.
    pub kernel: bool,
}

impl Module {
    /// The last part of the path.
    pub fn name(&self) -> &str {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(&self.path);
        path.rsplit_once('/').map_or(path, |(_, name)| name)
    }

    /// Bytes that it takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.path.len() + self.build_id.len() + 64
    }
}

/// A function, or a marker that stands where no function is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Function {
    /// The qualified name where the version has one.
    pub name: String,
    /// The source file: of Python as the code object has it, of native code where that is known.
    /// Markers have none.
    pub file: String,
    /// The part of the file name that is shown by default.
    pub short_file: String,
    /// The library or program that has native code; none for Python.
    pub module: Option<ModuleId>,
    /// Line of the definition; 0 when unknown.
    pub first_line: u32,
}

impl Function {
    /// Whether this is a bare label such as `[truncated: …]` instead of a function.
    pub fn is_marker(&self) -> bool {
        self.file.is_empty()
            && self.module.is_none()
            && self.name.starts_with('[')
            && self.name.ends_with(']')
    }

    /// Bytes that it takes, about.
    pub(super) fn bytes(&self) -> usize {
        let text = [&self.name, &self.file, &self.short_file];
        // An allowance for the entry itself, so that empty names are bounded too.
        text.map(String::len).iter().sum::<usize>() + 64
    }
}

/// A function and the line that is shown for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    pub function: FunctionId,
    /// `None` for markers, and where the shape or the data have no line.
    pub line: Option<u32>,
}

/// How often something was seen, and for how much time that stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub samples: u64,
    /// Nanoseconds.
    pub time: u64,
}

impl Count {
    pub(super) fn add(&mut self, other: Count) {
        self.samples = self.samples.saturating_add(other.samples);
        self.time = self.time.saturating_add(other.time);
    }
}

/// One sample of a thread, kept where the format needs them in the order of time.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    pub stack: StackId,
    /// Nanoseconds, at most `u32::MAX` (4.3 s, longer than any sampling period).
    pub weight: u32,
}
