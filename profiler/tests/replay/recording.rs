//! A recording: a text file of what is known of a process, the stacks of its threads as the
//! interpreter told them, and the parts of its memory that were read. Read and written here.
//!
//! Lines are `KEY VALUE`; a `thread` is followed by its `frame`s, newest first. Memory is in lines
//! of 64 bytes, each an address and eight words; all numbers but those of source lines are
//! hexadecimal. What is not in the file can't be read.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bytemuck::Zeroable;
use profiler_ebpf::python::{Memory, Walk};
use profiler_ebpf::{Chain, Layout, MAX_STEPS, Outcome, Target};
use pyebpf::cpython::{Build, code, layout};

use super::made::made;
use super::pages::{LINE, Pages};

/// A process, as far as it was read.
#[derive(Clone)]
pub(crate) struct Recording {
    /// The interpreter's full version.
    pub(crate) version: String,
    pub(crate) layout: Layout,
    pub(crate) target: Target,
    pub(crate) threads: Vec<Thread>,
    pub(crate) memory: Pages,
}

/// Whether no interpreter of this build was there to be recorded.
pub(crate) fn is_made(build: Build) -> bool {
    build.free_threaded && build.minor >= 14
}

/// A thread as the interpreter saw it.
#[derive(Clone)]
pub(crate) struct Thread {
    pub(crate) control_block: u64,
    pub(crate) holds_gil: bool,
    /// Newest first.
    pub(crate) frames: Vec<Called>,
}

/// One frame as the interpreter, or our own reading, names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) code: u64,
    pub(crate) line: u32,
    pub(crate) file: String,
    pub(crate) name: String,
    /// From 3.11 on.
    pub(crate) qualname: Option<String>,
}

/// A frame in memory: one link of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) address: u64,
    pub(crate) code: u64,
    /// Whether it is one that enters the interpreter and is not shown.
    pub(crate) entry: bool,
}

impl Recording {
    pub(crate) fn path(build: Build) -> PathBuf {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/memory");
        Path::new(folder).join(format!("{build}.txt"))
    }

    /// The recording of this build.
    pub(crate) fn load(build: Build) -> Recording {
        if is_made(build) {
            return made(build);
        }
        let path = Recording::path(build);
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut recording = Recording {
            version: String::new(),
            layout: layout(build).unwrap(),
            target: Target::default(),
            threads: Vec::new(),
            memory: Pages::default(),
        };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            recording.take(line);
        }
        recording
    }

    fn take(&mut self, line: &str) {
        let hex = |text: &str| u64::from_str_radix(text, 16).expect(text);
        let (key, rest) = line.split_once(' ').expect(line);
        match key {
            "version" => self.version = rest.to_owned(),
            "interpreters" => self.target.interpreters = hex(rest),
            "current" => self.target.current = hex(rest),
            "tss_key" => self.target.tss_key = hex(rest),
            "tls_offset" => self.target.tls_offset = hex(rest) as i64,
            "tls_module" => self.target.tls_module = hex(rest),
            "code_type" => self.target.code_type = hex(rest),
            "thread" => {
                let (control_block, gil) = rest.split_once(' ').expect(line);
                self.threads.push(Thread {
                    control_block: hex(control_block),
                    holds_gil: gil == "gil",
                    frames: Vec::new(),
                });
            }
            "frame" => {
                let mut parts = rest.split('\t');
                let mut next = || parts.next().expect(line);
                let called = Called {
                    code: hex(next()),
                    line: next().parse().unwrap(),
                    file: next().to_owned(),
                    name: next().to_owned(),
                    qualname: Some(next().to_owned()).filter(|name| !name.is_empty()),
                };
                self.threads.last_mut().unwrap().frames.push(called);
            }
            address => {
                for (word, at) in rest.split(' ').zip((hex(address)..).step_by(8)) {
                    self.memory.write_word(at, hex(word));
                }
            }
        }
    }

    /// The text of its file.
    pub(crate) fn text(&self) -> String {
        let target = &self.target;
        let mut text = "# Read and written by profiler/tests/replay/recording.rs.\n".to_owned();
        writeln!(text, "version {}", self.version).unwrap();
        for (key, value) in [
            ("interpreters", target.interpreters),
            ("current", target.current),
            ("tss_key", target.tss_key),
            ("tls_offset", target.tls_offset as u64),
            ("tls_module", target.tls_module),
            ("code_type", target.code_type),
        ] {
            writeln!(text, "{key} {value:x}").unwrap();
        }
        for thread in &self.threads {
            let gil = if thread.holds_gil { "gil" } else { "no-gil" };
            writeln!(text, "thread {:x} {gil}", thread.control_block).unwrap();
            for frame in &thread.frames {
                let qualname = frame.qualname.as_deref().unwrap_or_default();
                let Called {
                    code,
                    line,
                    file,
                    name,
                    ..
                } = frame;
                writeln!(text, "frame {code:x}\t{line}\t{file}\t{name}\t{qualname}").unwrap();
            }
        }
        for line in self.memory.lines() {
            write!(text, "{line:x}").unwrap();
            for at in (line..line + LINE).step_by(8) {
                write!(text, " {:x}", self.memory.word(at)).unwrap();
            }
            text.push('\n');
        }
        text
    }

    /// The frames of a walk over this memory, named; those that are not shown left out.
    pub(crate) fn named(&self, walk: &Walk) -> Vec<Called> {
        let frames = &walk.frames[..walk.stack.frames as usize];
        let named = frames.iter().filter_map(|frame| {
            let code = code::read(
                &self.memory,
                &self.layout,
                self.target.code_type,
                frame.code,
                frame.identity,
            );
            let code = code.expect(&self.version);
            (!code.phantom()).then(|| Called {
                code: frame.code,
                line: code.lines.line(frame.instruction).unwrap(),
                file: code.filename,
                name: code.name,
                qualname: code.qualname,
            })
        });
        named.collect()
    }

    /// Address of the thread state with this control block, by the interpreter's list.
    pub(crate) fn thread_state(&self, control_block: u64) -> u64 {
        let (memory, layout) = (&self.memory, &self.layout);
        let interpreter = memory.word(self.target.interpreters);
        let mut state = memory.word(interpreter + u64::from(layout.interpreter_threads));
        while memory.word(state + u64::from(layout.thread_id)) != control_block {
            state = memory.word(state + u64::from(layout.thread_next));
        }
        state
    }

    /// Address of the pointer to the newest frame.
    pub(crate) fn newest(&self, control_block: u64) -> u64 {
        let link = self.thread_state(control_block) + u64::from(self.layout.thread_frame);
        match self.layout.chain == Chain::CFrame as u32 {
            true => self.memory.word(link) + u64::from(self.layout.cframe_frame),
            false => link,
        }
    }

    /// The frames of a thread, newest first, entry frames included.
    pub(crate) fn chain(&self, control_block: u64) -> Vec<Link> {
        let (memory, layout) = (&self.memory, &self.layout);
        let mut chain = Vec::new();
        let mut address = memory.word(self.newest(control_block));
        while address != 0 {
            let owner = address + u64::from(layout.frame_owner);
            chain.push(Link {
                address,
                code: memory.word(address + u64::from(layout.frame_code)) & !7,
                entry: layout.frame_owner != 0 && memory.known(owner).unwrap() > 2,
            });
            address = memory.word(address + u64::from(layout.frame_previous));
        }
        chain
    }

    /// Makes the frame at `frame` say that `caller` called it.
    pub(crate) fn set_caller(&mut self, frame: Link, caller: u64) {
        let link = frame.address + u64::from(self.layout.frame_previous);
        self.memory.write_word(link, caller);
    }

    /// Makes the frame at `frame` one of the code object at `code`.
    pub(crate) fn set_code(&mut self, frame: Link, code: u64) {
        let field = frame.address + u64::from(self.layout.frame_code);
        self.memory.write_word(field, code);
    }

    /// Walks the thread that holds the GIL.
    pub(crate) fn walk_main(&self) -> Box<Walk> {
        walk(self, &self.target, self.main().control_block)
    }

    /// The thread that holds the GIL: the one with the longer stack.
    pub(crate) fn main(&self) -> &Thread {
        &self.threads[0]
    }
}

pub(crate) fn empty_walk() -> Box<Walk> {
    Box::new(Walk::zeroed())
}

/// Walks as the kernel does: at most [`MAX_STEPS`] steps.
pub(crate) fn walk_over(
    walk: &mut Walk,
    memory: &impl Memory,
    layout: &Layout,
    target: &Target,
    control_block: u64,
) {
    if walk.begin(memory, layout, target, control_block) {
        let _ended = (0..MAX_STEPS).any(|_| !walk.step(memory, layout, target));
    }
}

pub(crate) fn walk_again(
    walk: &mut Walk,
    recording: &Recording,
    target: &Target,
    control_block: u64,
) {
    walk_over(
        walk,
        &recording.memory,
        &recording.layout,
        target,
        control_block,
    );
}

pub(crate) fn walk(recording: &Recording, target: &Target, control_block: u64) -> Box<Walk> {
    let mut walk = empty_walk();
    // So that an outcome that is not set shows.
    walk.sample.outcome = u8::MAX;
    walk_again(&mut walk, recording, target, control_block);
    walk
}

pub(crate) fn outcome(walk: &Walk) -> Outcome {
    Outcome::from_number(walk.sample.outcome).expect("the walk set an outcome")
}
