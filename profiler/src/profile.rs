//! The folded result of a recording: interned functions, frames and stacks, how often each thread
//! was seen in each stack, and what the recording was. Takes symbolized stacks, gives them to
//! `output`, the live view and `export`. It reads nothing from a process and writes no format.

use std::collections::HashMap;
use std::time::Duration;

use indexmap::IndexSet;
use rustc_hash::{FxBuildHasher, FxHashMap};

pub use self::label::{escape, plural};
pub use self::part::Part;
pub use self::parts::{
    Count, Frame, FrameId, Function, FunctionId, LineShape, Meta, Module, ModuleId, Moment,
    Process, ProcessId, Shape, StackId, Thread, ThreadId,
};
use self::stack_table::StackTable;

mod label;
mod part;
mod parts;
mod places;
pub(crate) mod stack_table;

/// Most nodes of the stack tree: 16 bytes each, so about 12 MiB when full.
const MAX_NODES: usize = 3 << 18;

/// Most distinct frames; further ones lose their line.
const MAX_FRAMES: usize = 1 << 18;

/// Most bytes of names and file names together; further functions lose their name.
const MAX_TEXT: usize = 16 << 20;

/// Most samples that are kept one by one: 64 MiB, which is three hours of four busy processors at
/// 99 Hz. Further ones are only counted.
const MAX_MOMENTS: usize = 1 << 22;

const FULL_FUNCTIONS: &str = "[unknown: too many different functions]";
const FULL_MODULES: &str = "[unknown: too many different modules]";
pub(crate) const FULL_PLACES: &str = "[unknown: too many different native frames]";
const FULL_STACKS: &str = "[unknown: too many different stacks]";
/// Shown for a stack without any frame, so that no output has to name nothing.
const EMPTY_STACK: &str = "[unknown: empty stack]";

/// The folded result. Ids belong to the profile that gave them out.
#[derive(Debug)]
pub struct Profile {
    meta: Meta,
    shape: Shape,
    processes: Vec<Process>,
    threads: Vec<Thread>,
    // Names come from the targets: the standard hasher, whose collisions they can't choose.
    functions: IndexSet<Function>,
    modules: IndexSet<Module>,
    text: usize,
    frames: IndexSet<Frame, FxBuildHasher>,
    stacks: StackTable,
    counts: FxHashMap<(ThreadId, StackId), Count>,
    total: Count,
    /// By thread; `None` when no output needs the order of time. 16 bytes a sample.
    timeline: Option<Vec<Vec<Moment>>>,
    /// For how many samples the timeline has room.
    moments_left: usize,
    untimed: u64,
    /// See [`Profile::set_counters`].
    counters: Vec<(String, u64)>,
}

impl Profile {
    /// An empty profile. With `timeline` samples are kept one by one, not only their counts, until
    /// that memory is full.
    pub fn new(meta: Meta, shape: Shape, timeline: bool) -> Self {
        let mut profile = Self {
            meta,
            shape,
            processes: Vec::new(),
            threads: Vec::new(),
            functions: IndexSet::new(),
            modules: IndexSet::new(),
            text: 0,
            frames: IndexSet::default(),
            stacks: StackTable::new(MAX_NODES),
            counts: FxHashMap::default(),
            total: Count::default(),
            timeline: timeline.then(Vec::new),
            moments_left: MAX_MOMENTS,
            untimed: 0,
            counters: Vec::new(),
        };
        let empty = profile.marker(EMPTY_STACK);
        profile.stack([empty]);
        let full = profile.marker(FULL_STACKS);
        profile.stack([full]);
        profile.marker(FULL_FUNCTIONS);
        profile.marker(FULL_PLACES);
        profile.modules.insert(Module {
            path: FULL_MODULES.to_owned(),
            ..Module::default()
        });
        profile
    }

    /// An empty one of the same recording.
    pub fn renewed(&self) -> Profile {
        Profile::new(self.meta.clone(), self.shape, self.timeline.is_some())
    }

    /// Whether half of the memory is used that names, frames or stacks may take.
    pub fn is_half_full(&self) -> bool {
        self.stacks.len() > MAX_NODES / 2
            || self.frames.len() > MAX_FRAMES / 2
            || self.text > MAX_TEXT / 2
    }

    /// A process whose threads will be sampled. Each call makes a new one: a pid that is used
    /// again, or has replaced its program, is another process.
    pub fn add_process(&mut self, process: Process) -> ProcessId {
        self.processes.push(process);
        ProcessId(last_index(self.processes.len()))
    }

    /// A thread of a process; `comm` is the kernel's name of it.
    pub fn add_thread(&mut self, process: ProcessId, tid: u32, comm: String) -> ThreadId {
        let name = String::new();
        self.threads.push(Thread {
            process,
            tid,
            comm,
            name,
        });
        if let Some(timeline) = &mut self.timeline {
            timeline.push(Vec::new());
        }
        ThreadId(last_index(self.threads.len()))
    }

    /// Python's name of a thread, once it is known or when it changes.
    pub fn set_thread_name(&mut self, thread: ThreadId, name: String) {
        self.threads[thread.0 as usize].name = name;
    }

    /// For how long was sampled.
    pub fn set_duration(&mut self, duration: Duration) {
        self.meta.duration = duration;
    }

    /// Interns a function. When the names fill their memory, it becomes a marker that says so.
    pub fn function(&mut self, function: Function) -> FunctionId {
        if let Some(index) = self.functions.get_index_of(&function) {
            return FunctionId(index as u32);
        }
        let text = self.text.saturating_add(function.bytes());
        if text > MAX_TEXT {
            return FunctionId(FULL_FUNCTION);
        }
        self.text = text;
        FunctionId(self.functions.insert_full(function).0 as u32)
    }

    /// Interns a function of another profile.
    pub fn take_function(&mut self, other: &Profile, id: FunctionId) -> FunctionId {
        let mut function = other.function_of(id).clone();
        if function.is_marker() {
            // Our own words, which are kept whatever targets have used up.
            return FunctionId(self.functions.insert_full(function).0 as u32);
        }
        function.module = function
            .module
            .map(|module| self.module(other.module_of(module).clone()));
        self.function(function)
    }

    /// Interns a module. When the names fill their memory, it becomes one that says so.
    pub fn module(&mut self, module: Module) -> ModuleId {
        if let Some(index) = self.modules.get_index_of(&module) {
            return ModuleId(index as u32);
        }
        let text = self.text.saturating_add(module.bytes());
        if text > MAX_TEXT {
            return ModuleId(FULL_MODULE);
        }
        self.text = text;
        ModuleId(self.modules.insert_full(module).0 as u32)
    }

    /// Interns a frame of `function` at `line`, as far as the shape shows lines.
    pub fn frame(&mut self, function: FunctionId, line: Option<u32>) -> FrameId {
        let known = &self.functions[function.0 as usize];
        let line = match self.shape.line {
            _ if known.is_marker() => None,
            LineShape::Current => line,
            LineShape::First => (known.first_line > 0).then_some(known.first_line),
            LineShape::None => None,
        };
        let frame = Frame { function, line };
        if let Some(index) = self.frames.get_index_of(&frame) {
            return FrameId(index as u32);
        }
        // Frames without a line are bounded by the functions.
        let frame = if self.frames.len() >= MAX_FRAMES {
            Frame {
                function,
                line: None,
            }
        } else {
            frame
        };
        FrameId(self.frames.insert_full(frame).0 as u32)
    }

    /// Interns a bare label that stands where frames are missing: `[truncated: …]`,
    /// `[unreadable: …]`, `[unknown: …]`, with its brackets. Labels are our own words, so there
    /// are few, and they are kept even where the names of targets find no room.
    pub fn marker(&mut self, label: &str) -> FrameId {
        let (index, _) = self.functions.insert_full(Function {
            name: label.to_owned(),
            ..Function::default()
        });
        self.frame(FunctionId(index as u32), None)
    }

    /// Interns a stack. When the tree of stacks is full, a new stack becomes a marker that says so.
    pub fn stack(&mut self, root_to_leaf: impl IntoIterator<Item = FrameId>) -> StackId {
        match self
            .stacks
            .insert(root_to_leaf.into_iter().map(|frame| frame.0))
        {
            Some(StackTable::EMPTY) => StackId(EMPTY_STACK_NODE),
            Some(node) => StackId(node),
            None => StackId(FULL_STACK_NODE),
        }
    }

    /// Counts one sample: `time` is nanoseconds of `CLOCK_MONOTONIC`, `weight` the nanoseconds
    /// that it stands for.
    pub fn record(&mut self, time: u64, thread: ThreadId, stack: StackId, weight: u64) {
        let one = Count {
            samples: 1,
            time: weight,
        };
        self.counts.entry((thread, stack)).or_default().add(one);
        self.total.add(one);
        if let Some(timeline) = &mut self.timeline {
            if self.moments_left == 0 {
                self.untimed += 1;
                return;
            }
            self.moments_left -= 1;
            let weight = u32::try_from(weight).unwrap_or(u32::MAX);
            timeline[thread.0 as usize].push(Moment {
                time,
                stack,
                weight,
            });
        }
    }

    /// How the samples of this recording ended and what became of those that it lacks, by names that
    /// programs know. For outputs that have room for such a thing.
    pub fn set_counters(&mut self, counters: Vec<(String, u64)>) {
        self.counters = counters;
    }

    /// What [`set_counters`](Self::set_counters) was given.
    pub fn counters(&self) -> &[(String, u64)] {
        &self.counters
    }

    /// What the recording was.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// What the outputs show.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.total.samples == 0
    }

    /// All samples.
    pub fn total(&self) -> Count {
        self.total
    }

    /// How many processes have samples.
    pub fn processes_with_samples(&self) -> usize {
        let mut seen: Vec<ProcessId> = self
            .counts
            .keys()
            .map(|(thread, _)| self.thread(*thread).process)
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen.len()
    }

    /// The process of this id.
    pub fn process(&self, id: ProcessId) -> &Process {
        &self.processes[id.0 as usize]
    }

    /// The thread of this id.
    pub fn thread(&self, id: ThreadId) -> &Thread {
        &self.threads[id.0 as usize]
    }

    /// The function of this id.
    pub fn function_of(&self, id: FunctionId) -> &Function {
        &self.functions[id.0 as usize]
    }

    /// The module of this id.
    pub fn module_of(&self, id: ModuleId) -> &Module {
        &self.modules[id.0 as usize]
    }

    /// The frame of this id.
    pub fn frame_of(&self, id: FrameId) -> Frame {
        self.frames[id.0 as usize]
    }

    /// The frames of a stack, from root to leaf, into `frames` (cleared first).
    pub fn frames_of(&self, stack: StackId, frames: &mut Vec<FrameId>) {
        frames.clear();
        frames.extend(self.stacks.leaf_to_root(stack.0).map(FrameId));
        frames.reverse();
    }

    /// Every thread and stack that was seen, with its count, in the order of their ids.
    pub fn counts(&self) -> Vec<(ThreadId, StackId, Count)> {
        let mut counts: Vec<_> = self
            .counts
            .iter()
            .map(|((thread, stack), count)| (*thread, *stack, *count))
            .collect();
        counts.sort_unstable_by_key(|(thread, stack, _)| (*thread, *stack));
        counts
    }

    /// The frames that have samples above or at them, in the order of their ids.
    pub fn used_frames(&self) -> Vec<FrameId> {
        let mut seen = vec![false; self.stacks.len()];
        let mut used = vec![false; self.frames.len()];
        for (_, stack) in self.counts.keys() {
            let mut node = stack.0;
            while node != StackTable::EMPTY && !seen[node as usize] {
                seen[node as usize] = true;
                let (parent, frame) = self.stacks.node(node);
                used[frame as usize] = true;
                node = parent;
            }
        }
        (0..self.frames.len() as u32)
            .filter(|frame| used[*frame as usize])
            .map(FrameId)
            .collect()
    }

    /// Whether samples are kept in the order of time.
    pub fn has_timeline(&self) -> bool {
        self.timeline.is_some()
    }

    /// How many samples are in the counts but found no room in the timeline.
    pub fn untimed(&self) -> u64 {
        self.untimed
    }

    /// Leaves room for this many samples in the timeline.
    #[cfg(test)]
    pub(crate) fn limit_timeline(&mut self, moments: usize) {
        self.moments_left = moments;
    }

    /// The threads that have samples, in the order of their ids.
    pub fn threads_with_samples(&self) -> Vec<ThreadId> {
        let mut threads: Vec<ThreadId> = self.counts.keys().map(|(thread, _)| *thread).collect();
        threads.sort_unstable();
        threads.dedup();
        threads
    }

    /// The samples of a thread in the order of time; empty without a timeline.
    pub fn moments(&self, thread: ThreadId) -> Vec<Moment> {
        let kept = self
            .timeline
            .as_ref()
            .and_then(|timeline| timeline.get(thread.0 as usize));
        let mut moments = kept.cloned().unwrap_or_default();
        // Samples of a thread that moved between processors can arrive out of order.
        moments.sort_by_key(|moment| moment.time);
        moments
    }

    /// Labels of functions by the samples in which one is the leaf, hottest first. Markers are among
    /// them: time whose function is unknown is not nobody's. Functions that are shown alike are one.
    pub fn own_time(&self) -> Vec<(String, Count)> {
        let mut by_function: HashMap<FunctionId, Count, FxBuildHasher> = HashMap::default();
        for ((_, stack), count) in &self.counts {
            if let Some(leaf) = self.stacks.leaf_to_root(stack.0).next() {
                let function = self.frame_of(FrameId(leaf)).function;
                by_function.entry(function).or_default().add(*count);
            }
        }
        let mut own: HashMap<String, Count, FxBuildHasher> = HashMap::default();
        for (id, count) in by_function {
            let label = self.function_label(self.function_of(id), None);
            own.entry(label).or_default().add(count);
        }
        let mut own: Vec<_> = own.into_iter().collect();
        own.sort_unstable_by(|(left, a), (right, b)| {
            b.samples.cmp(&a.samples).then_with(|| left.cmp(right))
        });
        own
    }
}

// What `Profile::new` interns first, in its order.
const FULL_FUNCTION: u32 = 2;
const PLACE_FUNCTION: u32 = 3;
const FULL_MODULE: u32 = 0;
const EMPTY_STACK_NODE: u32 = 1;
const FULL_STACK_NODE: u32 = 2;

fn last_index(length: usize) -> u32 {
    u32::try_from(length - 1).expect("fewer than 2^32 processes and threads fit in memory")
}

#[cfg(test)]
mod tests;
