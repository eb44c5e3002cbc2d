//! A profile of some of the samples whose names and stacks are in another one, the *book*: those of one
//! container, or those that somebody asked for. It has its own copy of what it shows, so it outlives
//! the book.

use rustc_hash::FxHashMap;

use super::{Frame, FrameId, Meta, ProcessId, Profile, Shape, StackId, ThreadId};

/// Such a profile in the making.
#[derive(Debug)]
pub struct Part {
    profile: Profile,
    /// Whether threads and processes are told apart.
    by_thread: bool,
    // By the ids of the book.
    processes: FxHashMap<ProcessId, ProcessId>,
    threads: FxHashMap<ThreadId, ThreadId>,
    frames: FxHashMap<FrameId, FrameId>,
    stacks: FxHashMap<StackId, StackId>,
    /// Working memory: the frames of a stack, of the book and of this profile.
    theirs: Vec<FrameId>,
    ours: Vec<FrameId>,
}

impl Part {
    /// An empty one. Without `by_thread` all samples are of one thread, whose process has the pid 0.
    pub fn new(meta: Meta, shape: Shape, timeline: bool, by_thread: bool) -> Part {
        Part {
            profile: Profile::new(meta, shape, timeline),
            by_thread,
            processes: FxHashMap::default(),
            threads: FxHashMap::default(),
            frames: FxHashMap::default(),
            stacks: FxHashMap::default(),
            theirs: Vec::new(),
            ours: Vec::new(),
        }
    }

    /// Counts a sample: its thread and its stack are the book's.
    pub fn record(
        &mut self,
        book: &Profile,
        time: u64,
        (thread, stack): (ThreadId, StackId),
        weight: u64,
    ) {
        let thread = self.thread(book, thread);
        let stack = match self.stacks.get(&stack) {
            Some(&known) => known,
            None => self.stack(book, stack),
        };
        self.profile.record(time, thread, stack, weight);
    }

    /// The book has begun anew: its ids mean something else now.
    pub fn forget_ids(&mut self) {
        self.processes.clear();
        self.threads.clear();
        self.frames.clear();
        self.stacks.clear();
    }

    /// Takes over what threads are called in the book by now.
    pub fn name_threads(&mut self, book: &Profile) {
        if self.by_thread {
            for (&theirs, &ours) in &self.threads {
                let name = book.thread(theirs).name.clone();
                self.profile.set_thread_name(ours, name);
            }
        }
    }

    /// What it has so far.
    pub fn profile_mut(&mut self) -> &mut Profile {
        &mut self.profile
    }

    /// The profile.
    pub fn into_profile(self) -> Profile {
        self.profile
    }

    fn thread(&mut self, book: &Profile, id: ThreadId) -> ThreadId {
        if let Some(&known) = self.threads.get(&id) {
            return known;
        }
        let thread = match (self.by_thread, self.profile.threads.is_empty()) {
            (true, _) => {
                let theirs = book.thread(id);
                let profile = &mut self.profile;
                let process = *self
                    .processes
                    .entry(theirs.process)
                    .or_insert_with(|| profile.add_process(book.process(theirs.process).clone()));
                let thread = profile.add_thread(process, theirs.tid, theirs.comm.clone());
                profile.set_thread_name(thread, theirs.name.clone());
                thread
            }
            (false, true) => {
                let everyone = self.profile.add_process(super::Process::default());
                self.profile.add_thread(everyone, 0, String::new())
            }
            (false, false) => ThreadId(0),
        };
        self.threads.insert(id, thread);
        thread
    }

    fn stack(&mut self, book: &Profile, id: StackId) -> StackId {
        let mut theirs = std::mem::take(&mut self.theirs);
        let mut ours = std::mem::take(&mut self.ours);
        book.frames_of(id, &mut theirs);
        ours.clear();
        ours.extend(theirs.iter().map(|&frame| self.frame(book, frame)));
        let stack = self.profile.stack(ours.iter().copied());
        self.stacks.insert(id, stack);
        (self.theirs, self.ours) = (theirs, ours);
        stack
    }

    fn frame(&mut self, book: &Profile, id: FrameId) -> FrameId {
        if let Some(&known) = self.frames.get(&id) {
            return known;
        }
        let frame = match book.place_of(id.0) {
            Some(place) => self.profile.place(place),
            None => {
                let Frame { function, line } = book.frame_of(id);
                let function = self.profile.take_function(book, function);
                self.profile.frame(function, line)
            }
        };
        self.frames.insert(id, frame);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{function, profile};
    use super::*;
    use crate::profile::{Module, Process};

    fn part(by_thread: bool) -> Part {
        let shape = Shape::default();
        Part::new(profile(shape).meta().clone(), shape, false, by_thread)
    }

    fn counts(profile: &Profile) -> Vec<(u32, Vec<String>, u64)> {
        let counts = profile.counts().into_iter();
        let counts = counts.map(|(thread, stack, count)| {
            let mut frames = Vec::new();
            profile.frames_of(stack, &mut frames);
            let labels = frames.iter().map(|&frame| profile.frame_label(frame));
            (profile.thread(thread).tid, labels.collect(), count.samples)
        });
        counts.collect()
    }

    fn book() -> (Profile, [ThreadId; 2], [StackId; 2]) {
        let mut book = profile(Shape::default());
        // So that no id is the same by accident.
        book.function(function("other"));
        let process = book.add_process(Process {
            pid: 7,
            ..Process::default()
        });
        let threads = [8, 9].map(|tid| book.add_thread(process, tid, format!("t{tid}")));
        let f = book.function(function("f"));
        let f = book.frame(f, Some(3));
        let module = book.module(Module {
            path: "/lib/libz.so".to_owned(),
            ..Module::default()
        });
        let mut g = function("deflate");
        (g.file, g.short_file, g.module) = (String::new(), String::new(), Some(module));
        let g = book.function(g);
        let g = book.frame(g, None);
        let marker = book.marker("[truncated: x]");
        let stacks = [vec![f, g], vec![marker, f]].map(|stack| book.stack(stack));
        (book, threads, stacks)
    }

    #[test]
    fn samples_are_copied_with_their_names_and_threads() {
        let (book, threads, stacks) = book();
        let mut part = part(true);
        for (thread, stack) in [(0, 0), (0, 0), (1, 1)] {
            part.record(&book, 1, (threads[thread], stacks[stack]), 10);
        }
        assert_eq!(book.total().samples, 0);
        let profile = part.into_profile();
        let deflate = profile.module_of(crate::profile::ModuleId(1));
        assert_eq!(deflate.path, "/lib/libz.so");
        let labels = |labels: [&str; 2]| labels.map(str::to_owned).to_vec();
        let whole = labels(["f (main.py:3)", "deflate (libz.so)"]);
        let marked = labels(["[truncated: x]", "f (main.py:3)"]);
        assert_eq!(counts(&profile), [(8, whole, 2), (9, marked, 1)]);
        assert_eq!(profile.total().time, 30);
    }

    #[test]
    fn folded_it_has_one_thread_of_nobody() {
        let (book, threads, stacks) = book();
        let mut part = part(false);
        part.record(&book, 1, (threads[0], stacks[0]), 10);
        part.record(&book, 1, (threads[1], stacks[0]), 10);
        let profile = part.into_profile();
        let counts = counts(&profile);
        assert_eq!((counts.len(), counts[0].0, counts[0].2), (1, 0, 2));
    }

    #[test]
    fn a_book_that_has_begun_anew_is_another_one() {
        let (first, threads, stacks) = book();
        let mut part = part(true);
        part.record(&first, 1, (threads[0], stacks[0]), 10);
        let mut second = first.renewed();
        let process = second.add_process(Process {
            pid: 6,
            ..Process::default()
        });
        let thread = second.add_thread(process, 5, String::new());
        let h = second.function(function("h"));
        let h = second.frame(h, None);
        let stack = second.stack([h]);
        part.forget_ids();
        part.record(&second, 2, (thread, stack), 10);
        let counts = counts(part.profile_mut());
        assert_eq!(counts[1], (5, vec!["h (main.py)".to_owned()], 1));
        assert_eq!(counts.len(), 2);
    }

    #[test]
    fn places_keep_their_numbers() {
        let (mut book, threads, _) = book();
        let place = book.place(77);
        let stack = book.stack([place]);
        let mut part = part(true);
        part.record(&book, 1, (threads[0], stack), 10);
        let mut asked = Vec::new();
        part.profile_mut().put_in(|profile, place| {
            asked.push(place);
            [profile.marker("[named]")].into()
        });
        assert_eq!(asked, [77]);
    }
}
