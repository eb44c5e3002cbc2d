//! A generator of 3.12 at the instant at which it is resumed and not yet linked to what resumed it:
//! recordings are put into that state, and the walk must give the stack all the same, or less.

use profiler_ebpf::{Frame, Outcome};

use super::faults;
use super::recording::{Recording, outcome};

/// From a generator's frame down to its `gi_exc_state`; in that, `previous_item`.
const EXCEPTIONS: u64 = 32;
const PREVIOUS_ITEM: u64 = 8;
/// Where nothing was recorded.
const SPARE: u64 = 0x7000_0000;

/// The longer stack of 3.12 from its first generator on, as it is while that is resumed by
/// `between` more generators and the newest frame of the data stack; and the frames to expect.
fn resumed(between: usize) -> (Recording, Vec<Frame>) {
    let mut recording = Recording::load(12.into());
    recording.memory.fill();
    let control_block = recording.main().control_block;
    let whole = recording.walk_main();
    let chain = recording.chain(control_block);
    let owner = |recording: &Recording, address: u64| {
        let owner = address + u64::from(recording.layout.frame_owner);
        recording.memory.known(owner).unwrap()
    };
    let generator = |link: &&super::recording::Link| owner(&recording, link.address) == 1;
    let first = *chain.iter().find(generator).unwrap();
    let place = chain.iter().filter(|link| !link.entry);
    let place = place
        .take_while(|link| link.address != first.address)
        .count();
    let caller = chain
        .iter()
        .skip_while(|link| link.address != first.address)
        .skip(1);
    let caller = *caller.into_iter().find(|link| !link.entry).unwrap();
    assert_eq!(
        owner(&recording, caller.address),
        0,
        "a frame of the data stack"
    );

    let layout = recording.layout;
    let state = recording.thread_state(control_block);
    let newest = recording.newest(control_block);
    let memory = &mut recording.memory;
    memory.write_word(newest, first.address);
    memory.write_word(first.address + u64::from(layout.frame_previous), 0);
    // What the newest frame of the data stack ends with.
    let words = memory.half(caller.code + u64::from(layout.code_frame_size));
    let top = caller.address + 8 * u64::from(words);
    memory.write_word(state + u64::from(layout.thread_stack_top), top);

    let frames = &whole.frames[..whole.stack.frames as usize];
    let mut expected = vec![frames[place]];
    // The list of exceptions: of the generators, the newest first, then the thread's own.
    let mut item = first.address - EXCEPTIONS;
    memory.write_word(state + u64::from(layout.thread_exceptions), item);
    let mut bytes = [0; 80];
    assert!(profiler_ebpf::python::Memory::read(
        memory,
        first.address,
        &mut bytes
    ));
    let mut others: Vec<u64> = (0..between)
        .map(|index| SPARE + 0x200 * index as u64)
        .collect();
    for (index, &other) in others.iter().enumerate() {
        memory.write(other, &bytes);
        let next = others.get(index + 1).copied().unwrap_or(caller.address);
        memory.write_word(other + u64::from(layout.frame_previous), next);
        memory.write_word(item + PREVIOUS_ITEM, other - EXCEPTIONS);
        item = other - EXCEPTIONS;
        expected.push(frames[place]);
    }
    others.clear();
    let own = SPARE + 0x8000;
    memory.write_word(item + PREVIOUS_ITEM, own);
    memory.write_word(own + PREVIOUS_ITEM, 0);
    memory.fill();
    expected.extend_from_slice(&frames[place + 1..]);
    (recording, expected)
}

#[test]
fn what_resumed_a_generator_is_found() {
    for between in [0, 1, 2, 5] {
        let (recording, expected) = resumed(between);
        let walk = recording.walk_main();
        assert_eq!(outcome(&walk), Outcome::Complete, "{between} between");
        let found = &walk.frames[..walk.stack.frames as usize];
        assert_eq!(*found, expected, "{between} between");
        faults::check(&recording, &recording.target, 0);
    }
}

#[test]
fn what_cannot_be_told_is_marked() {
    let (recording, expected) = resumed(20);
    let walk = recording.walk_main();
    assert_eq!(outcome(&walk), Outcome::TruncatedEntry, "too many between");
    assert_eq!(walk.frames[0], expected[0]);
    let state = recording.thread_state(recording.main().control_block);
    let layout = recording.layout;
    for top in [0, 4, SPARE + 0x4000, u64::MAX] {
        let (mut recording, expected) = resumed(0);
        let field = state + u64::from(layout.thread_stack_top);
        recording.memory.write_word(field, top);
        let walk = recording.walk_main();
        assert_eq!(outcome(&walk), Outcome::TruncatedEntry, "{top:#x}");
        assert_eq!(walk.frames[..walk.stack.frames as usize], expected[..1]);
    }
}
