//! Who holds the GIL, by each version's own sign of it: recordings in which the sign is turned.

use profiler_ebpf::{Gil, Target};
use pyebpf::cpython::Build;

use super::BUILDS;
use super::recording::{Recording, walk, walk_again};

/// `gil` of the samples of both threads: the one that holds it, and the other.
fn signs(recording: &Recording) -> [u8; 2] {
    [0, 1].map(|index: usize| {
        let control_block = recording.threads[index].control_block;
        walk(recording, &recording.target, control_block).sample.gil
    })
}

fn states(recording: &Recording) -> [u64; 2] {
    [0, 1].map(|index: usize| recording.thread_state(recording.threads[index].control_block))
}

#[test]
fn up_to_3_11_the_current_thread_state_holds_it() {
    for build in BUILDS.into_iter().filter(|build| build.minor <= 11) {
        let mut recording = Recording::load(build);
        assert_eq!(recording.layout.gil, Gil::Current as u32);
        assert_eq!(signs(&recording), [1, 0], "{build}");
        let [_, other] = states(&recording);
        recording.memory.write_word(recording.target.current, other);
        assert_eq!(signs(&recording), [0, 1], "{build}");
        recording.memory.write_word(recording.target.current, 0);
        assert_eq!(signs(&recording), [0, 0], "{build}");
    }
}

#[test]
fn who_held_it_in_the_last_sample_does_not_matter() {
    for build in BUILDS.into_iter().filter(|build| build.minor <= 11) {
        let recording = Recording::load(build);
        let control_block = recording.main().control_block;
        let mut walk = recording.walk_main();
        assert_eq!(walk.sample.gil, 1);
        for current in [0, 8] {
            let target = Target {
                current,
                ..recording.target
            };
            walk_again(&mut walk, &recording, &target, control_block);
            assert_eq!(walk.sample.gil, 0, "{build}: current at {current}");
        }
    }
}

#[test]
fn in_3_12_its_last_holder_holds_it_while_it_is_locked() {
    let mut recording = Recording::load(12.into());
    assert_eq!(recording.layout.gil, Gil::Holder as u32);
    let [_, other] = states(&recording);
    let interpreter = recording.memory.word(recording.target.interpreters);
    let gil = interpreter + u64::from(recording.layout.gil_offset);
    let gil = recording.memory.word(gil);
    assert_eq!(signs(&recording), [1, 0]);
    let holder = recording.memory.word(gil + 8);
    recording.memory.write_word(gil + 8, other);
    assert_eq!(signs(&recording), [0, 1]);
    recording.memory.write_word(gil + 8, holder);
    for locked in [0, u32::MAX] {
        recording.memory.write_half(gil + 16, locked);
        assert_eq!(signs(&recording), [0, 0], "locked is {locked}");
    }
}

#[test]
fn from_3_13_on_the_thread_state_says_so_itself() {
    let with_gil = |build: &Build| build.minor >= 13 && !build.free_threaded;
    for build in BUILDS.into_iter().filter(with_gil) {
        let mut recording = Recording::load(build);
        assert_eq!(recording.layout.gil, Gil::Status as u32);
        let [holding, other] = states(&recording);
        let offset = u64::from(recording.layout.gil_offset);
        assert_eq!(signs(&recording), [1, 0], "{build}");
        let (set, clear) = (
            recording.memory.half(holding + offset),
            recording.memory.half(other + offset),
        );
        recording.memory.write_half(holding + offset, clear);
        recording.memory.write_half(other + offset, set);
        assert_eq!(signs(&recording), [0, 1], "{build}");
    }
}

#[test]
fn in_a_free_threaded_build_it_is_held_while_attached() {
    for build in BUILDS.into_iter().filter(|build| build.free_threaded) {
        let mut recording = Recording::load(build);
        assert_eq!(recording.layout.gil, Gil::Attached as u32);
        let [attached, _] = states(&recording);
        let state = attached + u64::from(recording.layout.gil_offset);
        assert_eq!(signs(&recording), [1, 0], "{build}");
        // Suspended, for the collector, and shutting down.
        for other in [0, 2, 3] {
            recording.memory.write_half(state, other);
            assert_eq!(signs(&recording), [0, 0], "{build} state {other}");
        }
    }
}

#[test]
fn without_a_gil_nobody_holds_it() {
    for build in BUILDS {
        let mut recording = Recording::load(build);
        recording.layout.gil = Gil::None as u32;
        assert_eq!(signs(&recording), [0, 0], "{build}");
    }
}
