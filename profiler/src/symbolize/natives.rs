//! Native frames of one process: the module that an address lies in, and the names that `native`
//! finds there. An address without a name shows its module and its place in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use profiler_ebpf::native::{address, newer};
use rustc_hash::FxHashMap;

use crate::{
    cpython::{Mapping, VDSO},
    profile::{FrameId, Function, Profile},
    unwind::{Module, Modules},
};

use super::{
    native::{
        Name,
        background::{At, Background},
        perf_map::PerfMap,
    },
    stitch::Native,
};

/// Most addresses of a process whose frames are remembered; then all are forgotten.
const FRAMES_MAX: usize = 1 << 14;
/// How long the daemon waits for the names of one stack. The largest file known takes a fifth of that
/// to read, once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who is asked for names, on a thread of its own, and what it has answered.
#[derive(Default)]
pub(super) struct Names {
    /// Runs from the first question on.
    background: Option<Background>,
    answers: FxHashMap<u64, Option<Name>>,
    last_ticket: u64,
}

impl Names {
    /// Asks for the function at an address of a module. None when nobody can be asked.
    fn ask(&mut self, module: &Module, inside: u64) -> Option<u64> {
        if self.background.is_none() {
            self.background = Background::start().ok();
        }
        let at = match &*module.path {
            VDSO => At::Vdso {
                offset: inside - module.start,
            },
            _ => At::File {
                pid: module.pid,
                mapping: Arc::new(Mapping {
                    start: module.start,
                    end: module.end,
                    offset: module.offset,
                    inode: module.inode,
                    path: module.path.clone(),
                }),
                offset: inside - module.start + module.offset,
            },
        };
        self.last_ticket += 1;
        let asked = self.background.as_mut()?.ask(self.last_ticket, at);
        asked.then_some(self.last_ticket)
    }

    /// Takes in the answers that there are by now.
    fn listen(&mut self) {
        while let Some(answer) = self.background.as_mut().and_then(Background::answer) {
            self.answers.insert(answer.ticket, answer.name.ok());
        }
    }

    /// Waits until a question is answered, or `deadline`.
    fn wait_for(&mut self, ticket: u64, deadline: Instant) {
        let Some(background) = &mut self.background else {
            return;
        };
        while !self.answers.contains_key(&ticket) {
            let Some(answer) = background.wait(deadline) else {
                return;
            };
            self.answers.insert(answer.ticket, answer.name.ok());
        }
    }
}

/// What is known of an address.
enum Known {
    /// The question for its name.
    Asked(u64),
    /// The frame, after what is inlined into it, innermost first.
    Named(Box<[FrameId]>),
}

/// What is known of the native code of one process.
#[derive(Default)]
pub(super) struct Natives {
    modules: Arc<Modules>,
    /// What the process tells of code that it made.
    made: PerfMap,
    /// By the address of an instruction.
    known: FxHashMap<u64, Known>,
}

impl Natives {
    /// The process runs code from these now.
    pub(super) fn set(&mut self, modules: &Arc<Modules>) {
        if !Arc::ptr_eq(&self.modules, modules) {
            self.modules = modules.clone();
            self.known.clear();
        }
    }

    /// The frames of a stack of process `pid`, as they are shown, and for their places. None while
    /// names are still looked for and `wait` is set; without it they get some time, and those that
    /// are not found by then are not shown.
    pub(super) fn name(
        &mut self,
        profile: &mut Profile,
        names: &mut Names,
        pid: u32,
        stack: &[u64],
        wait: bool,
    ) -> Option<Vec<(Box<[FrameId]>, Native)>> {
        // A caller's address is the one behind its call.
        let inside =
            |(index, &frame): (usize, &u64)| address(frame).wrapping_sub((index > 0).into());
        names.listen();
        let mut all = true;
        for inside in stack.iter().enumerate().map(inside) {
            all &= self.look(profile, names, pid, inside);
        }
        if !all && wait {
            return None;
        }
        let deadline = Instant::now() + PATIENCE;
        let named = stack.iter().enumerate().map(|(index, &frame)| {
            let inside = inside((index, &frame));
            if let Some(&Known::Asked(ticket)) = self.known.get(&inside) {
                names.wait_for(ticket, deadline);
                self.look(profile, names, pid, inside);
            }
            let frames = match self.known.get(&inside) {
                Some(Known::Named(frames)) => frames.clone(),
                _ => unknown(profile, &self.modules, inside),
            };
            let module = self.modules.find(inside);
            let native = Native {
                newer: newer(frame),
                interpreter: module.is_some_and(|module| module.interpreter),
                starter: module.is_some_and(begins_threads),
            };
            (frames, native)
        });
        Some(named.collect())
    }

    /// Finds out what is at an address. False when that is not known yet.
    fn look(&mut self, profile: &mut Profile, names: &mut Names, pid: u32, inside: u64) -> bool {
        let name = match self.known.get(&inside) {
            Some(Known::Named(..)) => return true,
            Some(Known::Asked(ticket)) => match names.answers.remove(ticket) {
                Some(name) => name,
                None => return false,
            },
            None => {
                let module = self.modules.find(inside);
                let asked = module
                    .filter(|module| !module.path.is_empty())
                    .and_then(|module| names.ask(module, inside));
                if let Some(ticket) = asked {
                    self.remember(inside, Known::Asked(ticket));
                    return false;
                }
                None
            }
        };
        let module = self.modules.find(inside);
        let frames = match (name, module) {
            (Some(name), Some(module)) => frames(profile, module, name),
            _ => match self.made_at(pid, inside) {
                Some(name) => [native_frame(profile, name, "", "[jit]", None)].into(),
                None => unknown(profile, &self.modules, inside),
            },
        };
        self.remember(inside, Known::Named(frames));
        true
    }

    fn remember(&mut self, inside: u64, known: Known) {
        if self.known.len() >= FRAMES_MAX {
            self.known.clear();
        }
        self.known.insert(inside, known);
    }

    /// The name of code that the process has made, if it told.
    fn made_at(&mut self, pid: u32, inside: u64) -> Option<String> {
        let of_a_file = self
            .modules
            .find(inside)
            .is_some_and(|module| !module.path.is_empty());
        if of_a_file {
            return None;
        }
        if self.made.find(inside).is_none() {
            // Most programs make none.
            self.made.update(pid).ok()?;
        }
        Some(self.made.find(inside)?.0.to_owned())
    }
}

/// Whether a module is what programs and threads begin in: the C library, and a `python` that has the
/// interpreter in a library.
fn begins_threads(module: &Module) -> bool {
    let name = module.name();
    ["libc.", "libc-", "libpthread", "ld-", "python"]
        .iter()
        .any(|start| name.starts_with(start))
}

fn frames(profile: &mut Profile, module: &Module, name: Name) -> Box<[FrameId]> {
    let mut frame = |function, file: Option<String>, line| match file {
        Some(file) => {
            let short = file.rsplit('/').next().unwrap_or(&file).to_owned();
            native_frame(profile, function, &file, &short, line)
        }
        None => native_frame(profile, function, &module.path, module.name(), None),
    };
    let mut frames = Vec::with_capacity(name.inlined.len() + 1);
    for inlined in name.inlined {
        frames.push(frame(inlined.function, inlined.file, inlined.line));
    }
    frames.push(frame(name.function, name.file, name.line));
    frames.into()
}

fn unknown(profile: &mut Profile, modules: &Modules, inside: u64) -> Box<[FrameId]> {
    let name = match modules.find(inside) {
        Some(module) => {
            let offset = inside - module.start + module.offset;
            format!("[unknown in {}+{offset:#x}]", module.name())
        }
        None => format!("[unknown in [anon]+{inside:#x}]"),
    };
    [native_frame(profile, name, "", "", None)].into()
}

fn native_frame(
    profile: &mut Profile,
    name: String,
    file: &str,
    short_file: &str,
    line: Option<u32>,
) -> FrameId {
    let function = profile.function(Function {
        name,
        file: file.to_owned(),
        short_file: short_file.to_owned(),
        first_line: 0,
    });
    profile.frame(function, line)
}
