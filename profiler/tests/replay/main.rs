//! The frame walk over recorded memory: `tests/data/memory` holds, for each CPython version, what
//! a walk of two threads with known stacks read. Replayed as it is it must give those stacks;
//! doctored it must say what is wrong with it. Needs neither a process nor root.
//!
//! `PYEBPF_RECORD=1 cargo test -p pyebpf --test replay record` makes the recordings anew.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fuzz;
mod gil;
mod identity;
mod outcomes;
mod pages;
mod places;
mod plain;
mod random;
mod recorder;
mod recording;
mod routes;

use profiler_ebpf::Outcome;

use recording::{Recording, outcome, walk};

/// The minor versions that there are recordings of.
const MINORS: std::ops::RangeInclusive<u8> = 6..=15;

#[test]
fn every_recording_gives_the_stacks_that_its_interpreter_told() {
    for minor in MINORS {
        let recording = Recording::load(minor);
        let mut shown = 0;
        let mut phantoms = 0;
        for thread in &recording.threads {
            let walk = walk(&recording, &recording.target, thread.control_block);
            assert_eq!(outcome(&walk), Outcome::Complete, "3.{minor}");
            assert_eq!(walk.unproven, 0, "3.{minor}");
            assert_eq!(walk.sample.gil == 1, thread.holds_gil, "3.{minor}");
            let named = recording.named(&walk);
            assert_eq!(named, thread.frames, "3.{minor}");
            shown += named.len();
            phantoms += walk.sample.frames as usize - named.len();
        }
        assert!(shown > 40, "3.{minor}: {shown} frames");
        // From 3.13 on an inlined constructor has a frame below it that is not shown.
        assert_eq!(phantoms > 0, minor >= 13, "3.{minor}: {phantoms}");
        let holding = recording.threads.iter().filter(|thread| thread.holds_gil);
        assert_eq!((recording.threads.len(), holding.count()), (2, 1));
    }
}

#[test]
fn one_walk_leaves_nothing_behind_for_the_next() {
    let mut walk = recording::empty_walk();
    for minor in MINORS.chain(MINORS.rev()) {
        let recording = Recording::load(minor);
        for thread in &recording.threads {
            recording::walk_again(
                &mut walk,
                &recording,
                &recording.target,
                thread.control_block,
            );
            assert_eq!(recording.named(&walk), thread.frames, "3.{minor}");
            assert_eq!(walk.sample.gil == 1, thread.holds_gil, "3.{minor}");
        }
    }
}
