//! Every read of a walk fails once, in every recording: pages come and go. What is left must be what
//! a whole walk gives, or less of it and said to be less; never another frame.

use std::cell::Cell;

use profiler_ebpf::python::{Memory, Walk};
use profiler_ebpf::{Frame, NO_INSTRUCTION, Outcome, Target};

use super::BUILDS;
use super::recording::{Recording, empty_walk, outcome, walk_over};

/// Memory whose read number `fails` fails, and those after it, or only it.
struct Failing<'a> {
    recording: &'a Recording,
    reads: Cell<u32>,
    fails: u32,
    ever_after: bool,
}

impl Memory for Failing<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let number = self.reads.get();
        self.reads.set(number + 1);
        let fails = number == self.fails || self.ever_after && number > self.fails;
        !fails && self.recording.memory.read(address, into)
    }
}

fn walk(
    recording: &Recording,
    target: &Target,
    thread: usize,
    fails: u32,
    ever_after: bool,
) -> (Box<Walk>, u32) {
    let memory = Failing {
        recording,
        reads: Cell::new(0),
        fails,
        ever_after,
    };
    let mut walk = empty_walk();
    walk.sample.outcome = u8::MAX;
    let control_block = recording.threads[thread].control_block;
    walk_over(&mut walk, &memory, &recording.layout, target, control_block);
    (walk, memory.reads.get())
}

fn frames(walk: &Walk) -> &[Frame] {
    &walk.frames[..walk.stack.frames as usize]
}

/// Whether it is the same frame, as far as it could be read.
fn same(found: &Frame, whole: &Frame) -> bool {
    found.code == whole.code
        && (found.identity == whole.identity || found.identity == 0)
        && (found.instruction == whole.instruction || found.instruction == NO_INSTRUCTION)
}

/// Fails each read of a walk that is whole without; gives how many reads there are.
pub(crate) fn check(recording: &Recording, target: &Target, thread: usize) -> u32 {
    let (whole, reads) = walk(recording, target, thread, u32::MAX, false);
    let version = &recording.version;
    assert_eq!(outcome(&whole), Outcome::Complete, "{version}");
    for fails in 0..reads {
        for ever_after in [false, true] {
            let (walk, _) = walk(recording, target, thread, fails, ever_after);
            let (found, expected) = (frames(&walk), frames(&whole));
            let at = format!("{version}, read {fails} of {reads}, {:?}", outcome(&walk));
            assert!(found.len() <= expected.len(), "{at}");
            let alike = found
                .iter()
                .zip(expected)
                .all(|(found, whole)| same(found, whole));
            assert!(alike, "{at}: {found:x?} instead of {expected:x?}");
            let unproven = found.iter().filter(|frame| frame.identity == 0);
            assert_eq!(walk.unproven as usize, unproven.count(), "{at}");
            if outcome(&walk) == Outcome::Complete {
                assert_eq!(found.len(), expected.len(), "{at}");
            }
        }
    }
    reads
}

#[test]
fn no_read_that_fails_gives_a_wrong_frame() {
    for build in BUILDS {
        let mut recording = Recording::load(build);
        recording.memory.fill();
        let all = recording.target;
        let list = Target {
            current: 0,
            tss_key: 0,
            tls_offset: 0,
            ..all
        };
        for thread in [0, 1] {
            for target in [&all, &list] {
                let reads = check(&recording, target, thread);
                assert!(reads > 4, "{build}: {reads} reads");
            }
        }
    }
}
