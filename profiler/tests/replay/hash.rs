//! The hash that a stack crosses by: it changes with everything that the stack's frames show, and
//! with nothing else.

use profiler_ebpf::python::Walk;
use profiler_ebpf::{KERNEL_FAILED, MAX_KERNEL};

use super::BUILDS;
use super::recording::{Recording, empty_walk, walk, walk_again};

const EPOCH: u64 = 0x1234_5678_9abc_def0;
const TARGET: u32 = 3;

/// The hash of the longer stack, and that of its functions.
fn hashes(recording: &Recording) -> (u64, u64) {
    let mut walk = recording.walk_main();
    let functions = walk.name(EPOCH, TARGET);
    check(&walk);
    (walk.stack.hash, functions)
}

fn check(walk: &Walk) {
    assert_eq!(walk.sample.stack, walk.stack.hash);
    assert_eq!(walk.stack.hash != 0, walk.stack.frames != 0);
}

#[test]
fn the_same_stack_has_the_same_hash_whatever_was_walked_before() {
    let mut walk = empty_walk();
    for build in BUILDS.into_iter().chain(BUILDS.into_iter().rev()) {
        let recording = Recording::load(build);
        let before = hashes(&recording);
        let control_block = recording.main().control_block;
        walk_again(&mut walk, &recording, &recording.target, control_block);
        let functions = walk.name(EPOCH, TARGET);
        assert_eq!((walk.stack.hash, functions), before, "{build}");
    }
}

#[test]
fn no_two_stacks_have_the_same() {
    let mut met = Vec::new();
    for build in BUILDS {
        let recording = Recording::load(build);
        for thread in &recording.threads {
            let mut walk = walk(&recording, &recording.target, thread.control_block);
            for (epoch, target) in [(EPOCH, TARGET), (EPOCH + 1, TARGET), (EPOCH, TARGET + 1)] {
                let functions = walk.name(epoch, target);
                check(&walk);
                met.extend([functions, walk.stack.hash]);
            }
        }
    }
    let all = met.len();
    met.sort_unstable();
    met.dedup();
    assert_eq!(met.len(), all);
}

#[test]
fn each_instruction_and_each_function_changes_it() {
    for build in BUILDS {
        let recording = Recording::load(build);
        let layout = recording.layout;
        let (stack, functions) = hashes(&recording);
        let chain = recording.chain(recording.main().control_block);
        let frames: Vec<_> = chain.iter().filter(|link| !link.entry).collect();
        for frame in &frames {
            let mut elsewhere = recording.clone();
            let at = frame.address + u64::from(layout.frame_instruction);
            let half = elsewhere.memory.half(at);
            elsewhere.memory.write_half(at, half ^ 2);
            let after = hashes(&elsewhere);
            assert_ne!(after.0, stack, "{build}: an instruction");
            assert_eq!(after.1, functions, "{build}: an instruction");
        }
        let mut codes: Vec<u64> = frames.iter().map(|frame| frame.code).collect();
        codes.dedup();
        for code in codes {
            let mut another = recording.clone();
            let at = code + u64::from(layout.code_first_line);
            let line = another.memory.half(at);
            another.memory.write_half(at, line + 1);
            let after = hashes(&another);
            assert_ne!(after.0, stack, "{build}: an identity");
            assert_ne!(after.1, functions, "{build}: an identity");
        }
        // Without its newest frame.
        let mut shorter = recording.clone();
        let newest = shorter.newest(shorter.main().control_block);
        let frame = frames[1].address;
        shorter.memory.write_word(newest, frame);
        let after = hashes(&shorter);
        assert_ne!(after.0, stack, "{build}: a frame");
        assert_ne!(after.1, functions, "{build}: a frame");
    }
}

#[test]
fn each_frame_of_the_kernel_changes_it() {
    let recording = Recording::load(BUILDS[0]);
    let (alone, functions) = hashes(&recording);
    let with = |frames: &[u64], bytes: i64| {
        let mut walk = recording.walk_main();
        let room = walk.room_for_kernel().expect("there is room behind them");
        room[..frames.len()].copy_from_slice(frames);
        walk.take_kernel(bytes);
        walk.mix_kernel();
        assert_eq!(walk.name(EPOCH, TARGET), functions);
        (walk.stack.hash, walk.stack.kernel)
    };
    let deep = vec![7; MAX_KERNEL];
    let mut deeper = deep.clone();
    deeper[MAX_KERNEL - 1] = 8;
    let stacks = [
        with(&[], -14),
        with(&[1], 8),
        with(&[2], 8),
        with(&[1, 2], 16),
        with(&[2, 1], 16),
        with(&deep, 8 * MAX_KERNEL as i64),
        with(&deeper, 8 * MAX_KERNEL as i64),
    ];
    let counts = stacks.map(|(_, frames)| frames);
    assert_eq!(counts, [KERNEL_FAILED, 1, 1, 2, 2, 127, 127]);
    let mut met = stacks.map(|(hash, _)| hash).to_vec();
    met.push(alone);
    met.sort_unstable();
    met.dedup();
    assert_eq!(met.len(), stacks.len() + 1);
    // What lies behind them is none of it; none at all and more than there is room for are faults.
    assert_eq!(with(&[1, 2], 8), with(&[1, 3], 8));
    for absurd in [0, 7, 8 * (MAX_KERNEL as i64 + 1), i64::MAX, i64::MIN] {
        assert_eq!(with(&[1], absurd).1, KERNEL_FAILED, "{absurd}");
    }
}

#[test]
fn a_walk_that_found_no_frame_has_none() {
    for build in BUILDS {
        let mut recording = Recording::load(build);
        hashes(&recording);
        let newest = recording.newest(recording.main().control_block);
        recording.memory.write_word(newest, 0);
        assert_eq!(hashes(&recording).0, 0, "{build}");
    }
}
