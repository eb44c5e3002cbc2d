//! Names for what the kernel copied: the stacks of every profiled process and their frames, within
//! one budget of memory, and a count of those that could not be named.
//!
//! The kernel sends a stack once and its hash from then on, so a stack may be forgotten only
//! together with all others: when the budget is used up an *epoch* ends. The kernel is told to make
//! every hash anew, and what was known is kept until what is on its way has been read.

mod activations;
mod glue;
pub mod kernel;
pub mod native;
mod natives;
mod places;
mod python;
mod stitch;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use profiler_ebpf::{Frame, NativeEnd};
use rustc_hash::FxHashMap;

use crate::{
    cpython::{Interpreter, code::Reason},
    profile::{FrameId, Profile},
    sample::{Captured, Frames},
    unwind::Modules,
};

use kernel::Kernel;
use natives::Natives;
use places::Places;
use python::{Process, Shown};
use stitch::Place;
pub use stitch::why_missing;

/// How many bytes what is known of all processes may take in one epoch; the one before is kept for
/// a moment. A program that makes new code all the time, or huge line tables, costs time and not
/// memory.
const BYTES_MAX: usize = 16 << 20;

/// How long a sample may take from its hash to its place in the ring buffer: a hundred times what
/// the longest walk does, since a virtual CPU can be stopped meanwhile.
const IN_FLIGHT: Duration = Duration::from_millis(200);

/// What is known of the code of every profiled process.
pub struct Symbols {
    epoch: u64,
    /// Whether the kernel has to be told of it.
    begun: bool,
    known: Known,
    /// What was known when the last epoch ended, and when that was.
    before: Option<(Known, Instant)>,
    unknown: BTreeMap<Reason, u64>,
    places: Places,
    /// By incarnation.
    natives: FxHashMap<u32, Natives>,
    /// How the walks over native frames have ended of the samples that were named.
    native_ends: [u64; NativeEnd::ALL.len()],
    native_frames: u64,
    /// Whether the interpreter's own frames are shown wherever they are.
    unfolded: bool,
    /// How many of them do not say how native frames and Python's lie.
    unordered: u64,
    /// How many have native frames that were guessed.
    guessed: u64,
    /// Where the kernel's frames are shown.
    pub kernel: Option<Kernel>,
    /// Working memory: the stack that is being named.
    frames: Vec<Frame>,
    native: Vec<u64>,
}

/// Stands below native frames that are shown in one piece.
const UNORDERED: &str = "[unknown: native frames, their order with Python's]";

/// Stands between code that tells nothing of its frames and what may have called it.
const GUESSED: &str = "[unknown: native caller, guessed]";

/// What became of a stack that was to be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Its frames have names, or a reason why not.
    Named,
    /// Some have none: the kernel may have copied them at a later sample, which is read soon.
    Wait,
    /// The stack is not known.
    NoStack,
}

/// What was learnt in one epoch.
#[derive(Default)]
struct Known {
    /// By incarnation.
    processes: FxHashMap<u32, Process>,
    bytes: usize,
}

impl Default for Symbols {
    fn default() -> Symbols {
        Symbols {
            // No process can know it, so none can make a stack that has the hash of another's.
            epoch: RandomState::new().hash_one(0),
            begun: true,
            known: Known::default(),
            before: None,
            unknown: BTreeMap::new(),
            places: Places::default(),
            natives: FxHashMap::default(),
            native_ends: [0; NativeEnd::ALL.len()],
            native_frames: 0,
            unfolded: false,
            unordered: 0,
            guessed: 0,
            kernel: None,
            frames: Vec::new(),
            native: Vec::new(),
        }
    }
}

impl Symbols {
    /// From now on native frames are all shown: the interpreter's own, and what begins threads.
    pub fn unfold(&mut self) {
        self.unfolded = true;
    }

    /// The epoch, if it has changed since the last call: for the kernel, at once.
    pub fn new_epoch(&mut self) -> Option<u64> {
        std::mem::take(&mut self.begun).then_some(self.epoch)
    }

    /// Takes in a stack of incarnation `id`, the process `pid` with this interpreter.
    pub fn take_stack(&mut self, id: u32, process: (u32, &Interpreter), hash: u64, frames: Frames) {
        self.known
            .with(id, process, |process| process.take_stack(hash, frames));
        self.limit();
    }

    /// Takes in what an incarnation runs native code from.
    pub fn take_modules(&mut self, id: u32, modules: &Arc<Modules>) {
        self.natives.entry(id).or_default().set(modules);
    }

    /// Takes in what the kernel copied of a code object of a process.
    pub fn take_code(&mut self, process: (u32, &Interpreter), code: Captured) {
        self.known
            .with(code.target, process, |process| process.take_code(code));
        self.limit();
    }

    /// Names the frames of a stack of incarnation `id`, the process `pid` with this interpreter,
    /// appending to `named` those that are the program's own, newest first. With `wait` only if all
    /// of them have names.
    pub fn name(
        &mut self,
        id: u32,
        process: (u32, &Interpreter),
        profile: &mut Profile,
        hash: u64,
        wait: bool,
        named: &mut Vec<FrameId>,
    ) -> Naming {
        let before = self.before.as_ref().map(|(known, _)| known);
        let Some(frames) = [Some(&self.known), before]
            .into_iter()
            .flatten()
            .find_map(|known| known.processes.get(&id)?.stack(hash))
        else {
            return Naming::NoStack;
        };
        let mut nameless = Vec::new();
        let mut stack = std::mem::take(&mut self.frames);
        stack.clear();
        stack.extend_from_slice(&frames.python);
        let mut native = std::mem::take(&mut self.native);
        native.clear();
        native.extend_from_slice(&frames.native);
        let native_end = frames.native_end;
        let in_kernel = frames.kernel.clone();
        // What is not shown keeps its place until native frames have theirs.
        let mut python = Vec::with_capacity(stack.len());
        for frame in &stack {
            let before = match &mut self.before {
                Some((before, _)) => before.processes.get_mut(&id),
                None => None,
            };
            let shown = self
                .known
                .with(id, process, |process| process.frame(profile, frame, before));
            // After each frame: those of one deep stack alone could fill the memory.
            self.limit();
            match shown {
                Shown::As(id) => python.push(Some(id)),
                Shown::Not => python.push(None),
                Shown::Unknown(id, reason) => {
                    nameless.push(reason);
                    python.push(Some(id));
                }
            }
        }
        self.frames = stack;
        if wait && !nameless.is_empty() {
            self.native = native;
            return Naming::Wait;
        }
        let natives = self.natives.entry(id).or_default();
        let placed = natives.frames(profile, &mut self.places, id, process, &native);
        self.native = native;
        self.native_ends[native_end as usize] += 1;
        self.native_frames += placed.len() as u64;
        if let Some(kernel) = &mut self.kernel {
            kernel.name(profile, in_kernel.as_deref(), named);
        }
        let mut order: Vec<_> = placed.iter().map(|(_, native)| *native).collect();
        let told = activations::count(python.len(), &mut order, native_end);
        if self.unfolded && told {
            for frame in &mut order {
                (frame.interpreter, frame.starter) = (false, false);
            }
        }
        let ordered = stitch::stitch(
            python.len(),
            &order,
            native_end,
            told,
            |place| match place {
                Place::Python(index) => named.extend(python[index]),
                Place::Native(index) => named.push(placed[index].0),
                Place::Missing => {
                    let why = why_missing(native_end).unwrap_or_default();
                    named.push(profile.marker(&format!("[unknown: native frames, {why}]")));
                }
                Place::Guessed => named.push(profile.marker(GUESSED)),
                Place::Unordered => named.push(profile.marker(UNORDERED)),
            },
        );
        self.unordered += u64::from(!ordered);
        self.guessed += u64::from(order.iter().any(|frame| frame.guessed));
        for reason in nameless {
            *self.unknown.entry(reason).or_default() += 1;
        }
        Naming::Named
    }

    /// Whether half of the numbers of places in native code are given out.
    pub fn is_half_full(&self) -> bool {
        self.places.is_half_full()
    }

    /// What is known holds in `new` from now on, in which nothing is known yet, instead of in `old`.
    /// Places in native code are numbered anew.
    pub fn renew(&mut self, old: &Profile, new: &mut Profile) {
        let before = self.before.iter_mut().map(|(known, _)| known);
        for known in before.chain([&mut self.known]) {
            known.renew(old, new);
        }
        self.places = Places::default();
        self.natives.values_mut().for_each(Natives::forget_places);
        if let Some(kernel) = &mut self.kernel {
            kernel.forget_frames();
        }
    }

    /// Asks again, at the end, for names that may have come to be known only now.
    pub fn ask_again(&mut self) {
        self.places.ask_again();
    }

    /// Takes in the names of native code that were found by now; how many are still looked for.
    pub fn listen(&mut self) -> usize {
        self.places.listen()
    }

    /// Puts the names of native code into the profile, as far as they were found.
    pub fn put_names_in(&self, profile: &mut Profile) {
        profile.put_in(|profile, place| self.places.frames(profile, place, !self.unfolded));
    }

    /// The ring buffer has been read to its end, which began at `start`: forgets what only samples
    /// that were on their way could need.
    pub fn drained(&mut self, start: Instant) {
        let over = |ended: Instant| start.saturating_duration_since(ended) >= IN_FLIGHT;
        self.before.take_if(|(_, ended)| over(*ended));
    }

    /// Forgets the processes for which `keep` is false. No epoch ends: their ids do not come back.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.natives.retain(|&id, _| keep(id));
        self.known.retain(&keep);
        if let Some((before, _)) = &mut self.before {
            before.retain(&keep);
        }
    }

    /// How many frames had no name, and why.
    pub fn unknown(&self) -> &BTreeMap<Reason, u64> {
        &self.unknown
    }

    /// How many native frames the stacks had that were named, those included that are not shown.
    pub fn native_frames(&self) -> u64 {
        self.native_frames
    }

    /// How the walks over native frames have ended of the samples that were named, as far as any were
    /// asked for.
    pub fn native_ends(&self) -> impl Iterator<Item = (NativeEnd, u64)> {
        let asked = NativeEnd::ALL.into_iter().zip(self.native_ends);
        asked.filter(|&(end, _)| end != NativeEnd::NotAsked)
    }

    /// How many places in native code were seen.
    pub fn native_places(&self) -> u64 {
        self.places.seen()
    }

    /// How many of them have no name, and why.
    pub fn native_nameless(&self) -> BTreeMap<native::Kind, u64> {
        self.places.nameless()
    }

    /// How many stacks were named in which native frames and Python's have no order.
    pub fn unordered(&self) -> u64 {
        self.unordered
    }

    /// How many stacks were named with native frames that were guessed.
    pub fn guessed(&self) -> u64 {
        self.guessed
    }

    /// Ends the epoch when its memory is used up; not while samples on their way may need the
    /// stacks of the one before: then line tables are forgotten, which can be read again. Stacks
    /// alone, which can't, may take as much once more.
    fn limit(&mut self) {
        if self.known.bytes > BYTES_MAX && self.before.is_some() {
            self.known.forget_codes();
        }
        let most = match self.before {
            Some(_) => 2 * BYTES_MAX,
            None => BYTES_MAX,
        };
        if self.known.bytes > most {
            self.before = Some((std::mem::take(&mut self.known), Instant::now()));
            self.epoch = self.epoch.wrapping_add(1);
            self.begun = true;
        }
    }
}

impl Known {
    /// Does something to what is known of a process, and counts what that takes.
    fn with<T>(
        &mut self,
        id: u32,
        (pid, interpreter): (u32, &Interpreter),
        body: impl FnOnce(&mut Process) -> T,
    ) -> T {
        let process = self.processes.entry(id);
        let process = process.or_insert_with(|| Process::new(pid, interpreter));
        let before = process.bytes();
        let result = body(process);
        self.bytes = self.bytes - before + process.bytes();
        result
    }

    fn forget_codes(&mut self) {
        self.each(Process::forget_codes);
    }

    fn renew(&mut self, old: &Profile, new: &mut Profile) {
        self.each(|process| process.renew(old, new));
    }

    /// Does something to what is known of every process, and counts what that takes.
    fn each(&mut self, mut body: impl FnMut(&mut Process)) {
        for process in self.processes.values_mut() {
            let before = process.bytes();
            body(process);
            self.bytes = self.bytes - before + process.bytes();
        }
    }

    fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.processes.retain(|&id, process| {
            let keep = keep(id);
            if !keep {
                self.bytes -= process.bytes();
            }
            keep
        });
    }
}
