//! Foreign bytes of any kind: doctored recordings, memory made up of pointers, layouts and records
//! of random numbers. What reads them must end, within its bounds, without a panic; where only
//! frames and code objects are damaged, a plain walk says what to expect.

use std::cell::Cell;
use std::collections::BTreeSet;

use bytemuck::Zeroable;
use profiler_ebpf::python::{Memory, Walk};
use profiler_ebpf::{Layout, MAX_FRAMES, MAX_STEPS, Outcome, RecordKind, Target, layout_flags};
use pyebpf::cpython::{Build, code};
use pyebpf::sample::{Record, decode};

use super::BUILDS;
use super::capture::{capture, empty_capture};
use super::plain::plain;
use super::random::Random;
use super::recording::{Recording, empty_walk, outcome, walk_over};

/// Most reads of a walk: what finding the thread takes, and the most that a step can.
const READS_MAX: u32 = 300 + 8 * MAX_STEPS;

/// Memory that counts how often it is read.
struct Counted<'a, M> {
    memory: &'a M,
    reads: Cell<u32>,
}

impl<M: Memory> Memory for Counted<'_, M> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        self.reads.set(self.reads.get() + 1);
        self.memory.read(address, into)
    }
}

/// Walks, checks every bound, and names some of the frames.
fn walk_within_bounds(
    walk: &mut Walk,
    memory: &impl Memory,
    layout: &Layout,
    target: &Target,
    control_block: u64,
) {
    let counted = Counted {
        memory,
        reads: Cell::new(0),
    };
    walk.sample.outcome = u8::MAX;
    walk_over(walk, &counted, layout, target, control_block);
    assert!(counted.reads.get() <= READS_MAX, "{}", counted.reads.get());
    let frames = walk.stack.frames as usize;
    assert!(frames <= MAX_FRAMES);
    if outcome(walk) == Outcome::TruncatedDepth {
        assert!(frames == MAX_FRAMES || layout.flags & layout_flags::ENTRY_FRAMES != 0);
    }
    assert!(walk.unproven as usize <= frames);
    assert!(walk.sample.gil <= 1);
    let mut state = empty_capture();
    walk.name(1, 2);
    for code in capture(&mut state, &mut BTreeSet::new(), walk, memory, layout) {
        let kind = target.code_type;
        let _any = code::read(&code, layout, kind, code.address, code.identity);
        let _any = code::read_names(&code, layout, kind, code.address, code.identity);
    }
    for frame in walk.frames[..frames].iter().rev().take(3) {
        let _any = code::read(memory, layout, target.code_type, frame.code, frame.identity);
    }
}

/// A value to put in the place of `word`: a near one, one from elsewhere, or an extreme.
fn other(random: &mut Random, word: u64, words: &[u64]) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => u64::MAX - random.below(256),
        2 => random.word(),
        3 => word ^ 1 << random.below(64),
        4 => word.wrapping_add(8 * random.below(32)),
        5 => word.wrapping_sub(8 * random.below(32)),
        _ => random.one_of(words),
    }
}

#[test]
fn any_damage_to_memory_leaves_a_walk_within_its_bounds() {
    let mut walk = empty_walk();
    for build in BUILDS {
        let mut recording = Recording::load(build);
        let lines = recording.memory.lines();
        recording.memory.fill();
        let places = lines.iter().flat_map(|line| (*line..line + 64).step_by(8));
        let places: Vec<u64> = places.collect();
        let words: Vec<u64> = places.iter().map(|&at| recording.memory.word(at)).collect();
        let mut random = Random::new(100 + u64::from(build.minor));
        for round in 0..300 {
            let mut damaged = recording.clone();
            for _ in 0..=random.below(1 << (round % 8)) {
                let at = random.one_of(&places);
                let word = damaged.memory.word(at);
                damaged
                    .memory
                    .write_word(at, other(&mut random, word, &words));
            }
            for thread in &recording.threads {
                let (layout, target) = (&damaged.layout, &damaged.target);
                let control_block = thread.control_block;
                walk_within_bounds(&mut walk, &damaged.memory, layout, target, control_block);
            }
        }
    }
}

#[test]
fn damaged_frames_and_code_objects_are_walked_as_the_rules_say() {
    let mut walk = empty_walk();
    let mut ends = [0; Outcome::ALL.len()];
    for build in BUILDS {
        let mut recording = Recording::load(build);
        recording.memory.fill();
        let control_block = recording.main().control_block;
        let chain = recording.chain(control_block);
        let fields = chain.iter().flat_map(|link| {
            let layout = &recording.layout;
            let frame = link.address + u64::from(layout.frame_start);
            let mut places = vec![link.address + u64::from(layout.frame_previous)];
            places.extend((frame..frame + u64::from(layout.frame_span)).step_by(8));
            places.extend((link.code + 8..link.code + 160).step_by(8));
            places
        });
        // The code field of an entry frame is of no interest.
        let known = |at: &u64| recording.memory.read(*at, &mut [0; 8]);
        let newest = recording.newest(control_block);
        let places: Vec<u64> = fields.filter(known).chain([newest; 20]).collect();
        let words: Vec<u64> = places.iter().map(|&at| recording.memory.word(at)).collect();
        let mut random = Random::new(200 + u64::from(build.minor));
        for round in 0..300 {
            let mut damaged = recording.clone();
            for _ in 0..=random.below(1 << (round % 5)) {
                let at = random.one_of(&places);
                let word = damaged.memory.word(at);
                damaged
                    .memory
                    .write_word(at, other(&mut random, word, &words));
            }
            let (layout, target) = (&damaged.layout, &damaged.target);
            walk_within_bounds(&mut walk, &damaged.memory, layout, target, control_block);
            let (end, frames) = plain(&damaged, damaged.memory.word(newest));
            assert_eq!(outcome(&walk), end, "{build} round {round}");
            let found = &walk.frames[..walk.stack.frames as usize];
            assert!(
                *found == frames,
                "{build} round {round}: {found:x?} {frames:x?}"
            );
            ends[end as usize] += 1;
        }
    }
    // The damage is of every kind: else this proves little.
    for end in Outcome::ALL[..=4].iter().chain(&Outcome::ALL[6..=7]) {
        assert!(
            ends[*end as usize] > 0,
            "no walk ended as {end:?}: {ends:?}"
        );
    }
}

/// Memory in which each word is one of a few: pointers lead to more of the same, and what should
/// be a thread's own id often is. One read in `absent` fails.
struct MadeUp<'a> {
    words: &'a [u64],
    seed: u64,
    absent: u64,
}

impl Memory for MadeUp<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        if Random::new(self.seed ^ address >> 12).below(self.absent) == 0 {
            return false;
        }
        for (index, byte) in into.iter_mut().enumerate() {
            let at = address.wrapping_add(index as u64);
            let word = Random::new(self.seed ^ at >> 3).one_of(self.words);
            *byte = word.to_le_bytes()[(at & 7) as usize];
        }
        true
    }
}

#[test]
fn memory_layouts_and_targets_of_any_content_leave_a_walk_within_its_bounds() {
    let mut walk = empty_walk();
    let mut random = Random::new(300);
    let mut begun = 0;
    for round in 0..1500 {
        let control_block = 0x7000_1000;
        let mut words = [
            control_block,
            control_block,
            0x10_0000,
            0x10_1000,
            0,
            0,
            0,
            0,
        ];
        for word in &mut words[4..] {
            *word = random.word() >> random.below(64);
        }
        let memory = MadeUp {
            words: &words,
            seed: random.word(),
            absent: 2 + random.below(500),
        };
        let build = random.one_of(&Build::ALL);
        let mut layout = pyebpf::cpython::layout(build).unwrap();
        if round % 2 == 0 {
            let fields: &mut [u32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut layout));
            for _ in 0..random.below(10) {
                let field = random.below(fields.len() as u64) as usize;
                fields[field] = (random.word() >> (32 + random.below(32))) as u32;
            }
            // This one is our own in every version, not the target's word.
            layout.str_kind_shift = random.one_of(&[2, 8]);
        }
        let mut target = Target::zeroed();
        target.interpreters = random.one_of(&words);
        target.current = random.one_of(&words);
        target.tss_key = random.one_of(&words);
        target.tls_offset = random.one_of(&words) as i64;
        target.tls_module = random.one_of(&words);
        target.code_type = random.one_of(&words);
        walk_within_bounds(&mut walk, &memory, &layout, &target, control_block);
        begun += u32::from(walk.stack.frames > 0);
    }
    assert!(begun > 100, "{begun} walks met a frame");
}

#[test]
fn records_of_any_content_are_decoded_within_their_bytes_or_refused() {
    let mut random = Random::new(400);
    let mut taken = [0; 4];
    for _ in 0..20_000 {
        let length = random.below(200) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| random.word() as u8).collect();
        let kinds = [
            RecordKind::Sample,
            RecordKind::Process,
            RecordKind::Stack,
            RecordKind::Code,
        ];
        for (at, byte) in [(0, random.one_of(&kinds) as u8), (1, 0), (2, 0), (3, 0)] {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        // Small numbers, as counts, events and outcomes are.
        for at in [4, 16, 32, 48, 52, 64, 80, 96] {
            if let Some(place) = bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&[random.below(12) as u8, 0, 0, 0]);
            }
        }
        // A stack's native frames: two bytes, and one for how they ended.
        if let Some(place) = bytes.get_mut(20..24) {
            place.copy_from_slice(&[random.below(12) as u8, 0, random.below(12) as u8, 0]);
        }
        match decode(&bytes) {
            Some(Record::Sample { .. }) => {
                assert!(length >= 56);
                taken[0] += 1;
            }
            Some(Record::Stack { frames, .. }) => {
                assert!(24 + frames.bytes() <= length);
                taken[1] += 1;
            }
            Some(Record::Process { .. }) => taken[2] += 1,
            Some(Record::Code(code)) => {
                let (layout, at) = (pyebpf::cpython::layout(12).unwrap(), code.address);
                let _any = code::read(&code, &layout, 0, at, code.identity);
                taken[3] += 1;
            }
            None => {}
        }
    }
    assert!(taken.iter().all(|&count| count > 100), "{taken:?}");
}
