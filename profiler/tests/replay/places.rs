//! Where frames lie must not matter: recorded frames are put elsewhere (across pages, in chunks
//! far apart, alone, above one another) and the walk must give the same stack, in few reads.

use std::cell::Cell;

use profiler_ebpf::python::Memory;
use profiler_ebpf::{Frame, MAX_FRAMES, Outcome};

use super::BUILDS;
use super::random::Random;
use super::recording::{Recording, empty_walk, outcome, walk_over};

/// Where frames are put: nothing was recorded there.
const STACK: u64 = 0x7000_0000;

/// The longer stack with its frames at `addresses`, newest first, which are as many as there shall
/// be: the recorded frames serve in turn. Also gives the frames to expect.
fn placed(recording: &Recording, addresses: &[u64]) -> (Recording, Vec<Frame>) {
    let whole = recording.walk_main();
    let mut placed = recording.clone();
    let chain = recording.chain(recording.main().control_block);
    let shown: Vec<_> = chain.iter().filter(|link| !link.entry).collect();
    let layout = &recording.layout;
    let mut link = recording.newest(recording.main().control_block);
    let mut expected = Vec::new();
    for (index, &address) in addresses.iter().enumerate() {
        let index = index % shown.len();
        let start = u64::from(layout.frame_start);
        let mut bytes = vec![0; layout.frame_span as usize];
        assert!(
            recording
                .memory
                .read(shown[index].address + start, &mut bytes)
        );
        placed.memory.write(address + start, &bytes);
        placed.memory.write_word(link, address);
        link = address + u64::from(layout.frame_previous);
        expected.push(whole.frames[index]);
    }
    let end = chain
        .last()
        .filter(|link| link.entry)
        .map_or(0, |link| link.address);
    placed.memory.write_word(link, end);
    placed.memory.fill();
    (placed, expected)
}

/// Checks that frames at these addresses are found.
fn check(recording: &Recording, addresses: &[u64]) {
    let (placed, expected) = placed(recording, addresses);
    let walk = placed.walk_main();
    // On 3.11 a chain that begins with a generator is none.
    let mut owner = [0];
    let oldest = addresses[addresses.len() - 1] + u64::from(recording.layout.frame_owner);
    let whole = recording.layout.version != 3 << 8 | 11
        || placed.memory.read(oldest, &mut owner) && owner != [1];
    let expected_outcome = if whole {
        Outcome::Complete
    } else {
        Outcome::TruncatedEntry
    };
    assert_eq!(outcome(&walk), expected_outcome, "{addresses:x?}");
    let found = &walk.frames[..walk.stack.frames as usize];
    assert_eq!(found, expected, "{} at {addresses:x?}", recording.version);
}

#[test]
fn frames_across_a_page_boundary_are_read_whole() {
    for build in BUILDS {
        let recording = Recording::load(build);
        let page = STACK + 0x4000;
        for back in (0..=160).step_by(8) {
            let across = page - back;
            check(&recording, &[across]);
            check(&recording, &[across, across - 128, across - 256]);
            check(&recording, &[across + 512, across, across - 4096]);
            check(&recording, &[across, across + 512, across + 4096]);
        }
    }
}

#[test]
fn chunks_may_be_far_apart_and_in_any_order() {
    for build in BUILDS {
        let recording = Recording::load(build);
        for far in [0x8000, 0x1_0000, 0x2_0000, 0x100_0000] {
            let low = STACK + 0x400;
            let high = low + far;
            check(&recording, &[high + 160, high, low + 160, low]);
            check(&recording, &[low + 160, low, high + 160, high]);
            check(&recording, &[high + 160, low + 160, high, low]);
        }
    }
}

/// Up to forty frames: most below the last one as in the data stack, some elsewhere.
fn scattered(random: &mut Random) -> Vec<u64> {
    let mut addresses: Vec<u64> = vec![STACK + 0x8_0000];
    for _ in 0..random.below(40) {
        let last = addresses[addresses.len() - 1];
        let next = match random.below(10) {
            0 => STACK + 8 * random.below(0x2_0000),
            1 => last + 128 + 8 * random.below(1024),
            2 => last - 128 - 8 * random.below(1024),
            3 => (last & !4095) - 8 * random.below(16),
            _ => last - 128 - 8 * random.below(8),
        };
        if addresses.iter().all(|&other| next.abs_diff(other) >= 128) {
            addresses.push(next);
        }
    }
    addresses
}

#[test]
fn scattered_frames_are_found_up_to_the_first_that_is_not_in_memory() {
    for build in BUILDS {
        let recording = Recording::load(build);
        let mut random = Random::new(build.minor.into());
        for _ in 0..60 {
            let addresses = scattered(&mut random);
            check(&recording, &addresses);
            let (mut placed, expected) = placed(&recording, &addresses);
            let gone = random.one_of(&addresses) & !4095;
            placed.memory.forget_page(gone);
            let walk = placed.walk_main();
            let start = u64::from(recording.layout.frame_start);
            let last = start + u64::from(recording.layout.frame_span) - 1;
            let end = addresses.iter().position(|&address| {
                (address + start) & !4095 == gone || (address + last) & !4095 == gone
            });
            // A frame object's head may lie in the page that is gone: it is not read.
            let Some(end) = end else {
                assert_eq!(outcome(&walk), Outcome::Complete);
                continue;
            };
            let expected_outcome = match end {
                0 => Outcome::UnreadableFrame,
                _ => Outcome::TruncatedFrame,
            };
            assert_eq!(outcome(&walk), expected_outcome, "{build} {addresses:x?}");
            let found = &walk.frames[..walk.stack.frames as usize];
            assert_eq!(*found, expected[..end], "{build} {addresses:x?}");
        }
    }
}

/// Memory that counts how often it is read.
struct Counted<'a> {
    recording: &'a Recording,
    reads: Cell<u32>,
}

impl Memory for Counted<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        self.reads.set(self.reads.get() + 1);
        self.recording.memory.read(address, into)
    }
}

#[test]
fn a_deep_stack_is_read_in_pages_and_its_code_objects_once() {
    for build in BUILDS {
        let recording = Recording::load(build);
        let top = STACK + 0x8_0000;
        let addresses: Vec<u64> = (0..MAX_FRAMES as u64)
            .map(|index| top - 128 * index)
            .collect();
        let (placed, expected) = placed(&recording, &addresses);
        let memory = Counted {
            recording: &placed,
            reads: Cell::new(0),
        };
        let mut walk = empty_walk();
        let control_block = placed.main().control_block;
        walk_over(
            &mut walk,
            &memory,
            &placed.layout,
            &placed.target,
            control_block,
        );
        assert_eq!(outcome(&walk), Outcome::Complete, "{build}");
        assert_eq!(walk.frames[..MAX_FRAMES], expected);
        // Up to 3.10 each frame is an object of its own. What one walk remembers of code objects
        // has few slots, so that some are read more than once.
        let frames = if build.minor <= 10 {
            MAX_FRAMES as u32
        } else {
            34
        };
        // Copies of the code for one thread are looked up each time.
        let copies = match placed.layout.frame_tlbc {
            0 => 0,
            _ => 2 * MAX_FRAMES as u32,
        };
        let reads = memory.reads.get();
        assert!(reads < frames + copies + 200, "{build}: {reads} reads");
    }
}
