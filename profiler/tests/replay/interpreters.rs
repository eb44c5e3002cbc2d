//! Threads with a thread state in each of several interpreters, made up in recordings: up to 3.11 the
//! one that the key names may not be the one in which the thread runs.

use profiler_ebpf::{Chain, MAX_THREADS_WALKED, Outcome, Target};
use pyebpf::cpython::Build;

use super::BUILDS;
use super::recording::{Recording, outcome, walk};

/// Where nothing was recorded: there the interpreters go.
const SPARE: u64 = 0x7000_0000;
const EACH: u64 = 0x1_0000;

impl Recording {
    /// Where the other thread's frames begin.
    fn other_frames(&self) -> u64 {
        let other = self.thread_state(self.threads[1].control_block);
        self.memory
            .word(other + u64::from(self.layout.thread_frame))
    }

    /// Puts an interpreter before all others, with a thread state of the main thread, with these
    /// frames or none.
    fn enter(&mut self, number: u64, frames: Option<u64>) {
        let (interpreter, state) = (SPARE + number * EACH, SPARE + number * EACH + 0x8000);
        let first = self.memory.word(self.target.interpreters);
        let layout = self.layout;
        let source = match layout.chain == Chain::CFrame as u32 {
            // A cframe without a frame.
            true => frames.unwrap_or(state + 0x1000),
            false => frames.unwrap_or(0),
        };
        let control_block = self.main().control_block;
        let memory = &mut self.memory;
        memory.write(state, &[0; 0x200]);
        memory.write(state + 0x1000, &[0; 0x40]);
        memory.write_word(state + u64::from(layout.thread_frame), source);
        memory.write_word(state + u64::from(layout.thread_interpreter), interpreter);
        memory.write_word(state + u64::from(layout.thread_id), control_block);
        memory.write_word(interpreter + u64::from(layout.interpreter_threads), state);
        memory.write_word(interpreter + u64::from(layout.interpreter_next), first);
        memory.write_word(self.target.interpreters, interpreter);
    }

    /// Puts thread states of no interest before those of the first interpreter.
    fn fill_list(&mut self) {
        let link = self.memory.word(self.target.interpreters);
        let mut link = link + u64::from(self.layout.interpreter_threads);
        let first = self.memory.word(link);
        for index in 0..u64::from(MAX_THREADS_WALKED) {
            let state = SPARE + 0x100 * EACH + 0x1000 * index;
            self.memory.write_word(link, state);
            self.memory
                .write_word(state + u64::from(self.layout.thread_id), index);
            link = state + u64::from(self.layout.thread_next);
        }
        self.memory.write_word(link, first);
    }

    /// The main thread's stack once it has released the GIL: how it ended, and of which thread of
    /// the recording its frames are.
    fn released(&self) -> (Outcome, Option<usize>) {
        let target = Target {
            current: 0,
            ..self.target
        };
        let walk = walk(self, &target, self.main().control_block);
        let named = self.named(&walk);
        let whose = self
            .threads
            .iter()
            .position(|thread| thread.frames == named);
        (outcome(&walk), whose)
    }
}

fn keeps_first(build: Build) -> bool {
    build.major == 3 && build.minor <= 11
}

fn main_thread(recording: &Recording) -> Option<usize> {
    let main = recording.main().control_block;
    recording
        .threads
        .iter()
        .position(|thread| thread.control_block == main)
}

#[test]
fn a_thread_is_shown_where_it_runs_in_a_second_interpreter() {
    for build in BUILDS.into_iter().filter(|build| keeps_first(*build)) {
        let mut recording = Recording::load(build);
        let frames = Some(recording.other_frames());
        recording.enter(0, frames);
        let (outcome, whose) = recording.released();
        assert_eq!((outcome, whose), (Outcome::Complete, Some(1)), "{build}");
        // One more that it is not in changes nothing.
        recording.enter(1, None);
        assert_eq!(
            recording.released(),
            (Outcome::Complete, Some(1)),
            "{build}"
        );
    }
}

#[test]
fn a_thread_is_shown_where_it_runs_while_it_is_in_no_other_interpreter() {
    for build in BUILDS.into_iter().filter(|build| build.major == 3) {
        let mut recording = Recording::load(build);
        let frames = Some(recording.other_frames());
        recording.enter(0, None);
        let whole = (Outcome::Complete, main_thread(&recording));
        assert_eq!(recording.released(), whole, "{build}");
        // The versions that change the key are believed.
        if !keeps_first(build) {
            recording.enter(1, frames);
            assert_eq!(recording.released(), whole, "{build}");
        }
    }
}

#[test]
fn a_thread_with_frames_in_several_interpreters_is_not_guessed() {
    for build in BUILDS.into_iter().filter(|build| keeps_first(*build)) {
        let mut recording = Recording::load(build);
        let frames = Some(recording.other_frames());
        recording.enter(0, frames);
        recording.enter(1, frames);
        let (outcome, _) = recording.released();
        assert_eq!(outcome, Outcome::UnreadableInterpreter, "{build}");
    }
}

#[test]
fn a_list_too_long_to_be_searched_decides_nothing() {
    for build in BUILDS.into_iter().filter(|build| keeps_first(*build)) {
        let mut recording = Recording::load(build);
        recording.fill_list();
        // With one interpreter there is nothing to search.
        let whole = (Outcome::Complete, main_thread(&recording));
        assert_eq!(recording.released(), whole, "{build}");
        recording.enter(0, None);
        let (outcome, _) = recording.released();
        assert_eq!(outcome, Outcome::UnreadableInterpreter, "{build}");
    }
}
