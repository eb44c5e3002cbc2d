//! The frame walk over recorded memory: `tests/data/memory` holds, for each CPython version, what
//! a walk of two threads with known stacks read. Replayed as it is it must give those stacks;
//! doctored it must say what is wrong with it. Needs neither a process nor root.
//!
//! `PYEBPF_RECORD=1 cargo test -p pyebpf --test replay record` makes the recordings anew.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod capture;
mod faults;
mod fuzz;
mod gil;
mod hash;
mod identity;
mod interpreters;
mod made;
mod outcomes;
mod pages;
mod places;
mod plain;
mod random;
mod recorder;
mod recording;
mod routes;
mod torn;

use profiler_ebpf::Outcome;
use pyebpf::cpython::Build;

use recording::{Recording, outcome, walk};

/// The builds that there are recordings of, or made-up ones in their stead: all.
const BUILDS: [Build; 14] = Build::ALL;

#[test]
fn every_recording_gives_the_stacks_that_its_interpreter_told() {
    for build in BUILDS {
        let recording = Recording::load(build);
        let mut shown = 0;
        let mut phantoms = 0;
        for thread in &recording.threads {
            let walk = walk(&recording, &recording.target, thread.control_block);
            assert_eq!(outcome(&walk), Outcome::Complete, "{build}");
            assert_eq!(walk.unproven, 0, "{build}");
            assert_eq!(walk.sample.gil == 1, thread.holds_gil, "{build}");
            let named = recording.named(&walk);
            assert_eq!(named, thread.frames, "{build}");
            shown += named.len();
            phantoms += walk.stack.frames as usize - named.len();
        }
        assert!(shown > 40, "{build}: {shown} frames");
        // From 3.13 on an inlined constructor has a frame below it that is not shown; 3.13 inlines
        // none without its GIL.
        let inlines = build.minor >= 13 && build != Build::new(3, 13, true);
        assert_eq!(phantoms > 0, inlines, "{build}: {phantoms}");
        let holding = recording.threads.iter().filter(|thread| thread.holds_gil);
        assert_eq!((recording.threads.len(), holding.count()), (2, 1));
    }
}

#[test]
fn one_walk_leaves_nothing_behind_for_the_next() {
    let mut walk = recording::empty_walk();
    for build in BUILDS.into_iter().chain(BUILDS.into_iter().rev()) {
        let recording = Recording::load(build);
        for thread in &recording.threads {
            recording::walk_again(
                &mut walk,
                &recording,
                &recording.target,
                thread.control_block,
            );
            assert_eq!(recording.named(&walk), thread.frames, "{build}");
            assert_eq!(walk.sample.gil == 1, thread.holds_gil, "{build}");
        }
    }
}
