//! Recordings doctored in one place: the walk must keep the frames above it, and say why it ends.

use profiler_ebpf::python::Walk;
use profiler_ebpf::{Frame, MAX_FRAMES, Outcome, Target, layout_flags};
use pyebpf::cpython::Build;
use pyebpf::cpython::code::{self, Reason};

use super::BUILDS;
use super::recording::{Link, Recording, outcome, walk};

/// An address at which nothing was recorded.
const HOLE: u64 = 0x10_0000;

fn frames(walk: &Walk) -> &[Frame] {
    &walk.frames[..walk.stack.frames as usize]
}

/// Whether the chain is wrong for some instructions of a call.
fn torn(build: Build) -> bool {
    matches!(build.minor, 11 | 12)
}

fn flag(recording: &Recording, flag: u32) -> bool {
    recording.layout.flags & flag != 0
}

/// The recording of a version, the whole walk of its longer stack, and that stack's links.
fn whole(build: Build) -> (Recording, Box<Walk>, Vec<Link>) {
    let mut recording = Recording::load(build);
    // A walk that takes another way through a page reads other parts of it.
    recording.memory.fill();
    let walk = recording.walk_main();
    let chain = recording.chain(recording.main().control_block);
    let shown = chain.iter().filter(|link| !link.entry).count();
    assert_eq!(frames(&walk).len(), shown);
    (recording, walk, chain)
}

/// For each frame of the stack that is shown: the recording doctored by `doctor`, its walk, the
/// frame's place among those shown, and what a whole walk gives.
fn each_frame(
    build: Build,
    doctor: impl Fn(&mut Recording, &[Link], usize),
    mut check: impl FnMut(&Walk, &[Frame], usize),
) {
    let (recording, whole, chain) = whole(build);
    let shown = (0..chain.len()).filter(|&at| !chain[at].entry);
    for (place, at) in shown.enumerate() {
        let mut recording = recording.clone();
        doctor(&mut recording, &chain, at);
        check(&recording.walk_main(), frames(&whole), place);
    }
}

#[test]
fn a_pointer_to_what_is_not_there_ends_the_stack_at_that_frame() {
    for build in BUILDS {
        // The last bytes of the address space, too: there addresses wrap around. And a place
        // within the frame that should have been.
        let last = [u64::MAX, u64::MAX - 7, u64::MAX - 71, u64::MAX - 4095].map(Some);
        for absent in [Some(HOLE), None].into_iter().chain(last) {
            let point = |recording: &mut Recording, chain: &[Link], at: usize| match at {
                0 => {
                    let link = recording.newest(recording.main().control_block);
                    let absent = absent.unwrap_or(chain[at].address + 4);
                    recording.memory.write_word(link, absent);
                }
                at => {
                    let absent = absent.unwrap_or(chain[at].address + 4);
                    recording.set_caller(chain[at - 1], absent);
                }
            };
            each_frame(build, point, |walk, whole, place| {
                let expected = match place {
                    0 => Outcome::UnreadableFrame,
                    _ => Outcome::TruncatedFrame,
                };
                let at = format!("{build} frame {place} at {absent:x?}");
                assert_eq!(outcome(walk), expected, "{at}");
                assert_eq!(frames(walk), &whole[..place], "{at}");
            });
        }
    }
}

#[test]
fn a_page_that_is_not_in_memory_ends_the_stack_at_its_first_frame() {
    for build in BUILDS {
        let (recording, whole, chain) = whole(build);
        let mut truncated = 0;
        let pages: Vec<u64> = chain.iter().map(|link| link.address & !4095).collect();
        for &page in &pages {
            let mut recording = recording.clone();
            recording.memory.forget_page(page);
            // Names and code objects share pages with frames up to 3.10.
            let walk = walk(
                &recording,
                &recording.target,
                recording.main().control_block,
            );
            if let Outcome::TruncatedFrame = outcome(&walk) {
                let kept = frames(&walk);
                let codes = |frames: &[Frame]| -> Vec<u64> {
                    frames.iter().map(|frame| frame.code).collect()
                };
                let end = chain.iter().position(|link| {
                    let last = link.address + u64::from(recording.layout.frame_start);
                    let last = last + u64::from(recording.layout.frame_span) - 1;
                    link.address & !4095 == page || last & !4095 == page
                });
                let shown = chain[..end.unwrap()].iter().filter(|link| !link.entry);
                assert_eq!(kept.len(), shown.count(), "{build}");
                assert_eq!(codes(kept), codes(frames(&whole))[..kept.len()], "{build}");
                truncated += 1;
            }
        }
        assert!(truncated > 0, "{build}");
    }
}

impl Recording {
    /// An object that is no code object: the file's name.
    fn other_object(&self, code: u64) -> u64 {
        self.memory
            .word(code + u64::from(self.layout.code_filename))
    }
}

#[test]
fn where_calls_are_torn_a_frame_without_its_code_object_is_garbage() {
    for build in BUILDS.into_iter().filter(|build| torn(*build)) {
        for absent in [true, false] {
            let point = |recording: &mut Recording, chain: &[Link], at: usize| {
                let other = recording.other_object(chain[at].code);
                recording.set_code(chain[at], if absent { HOLE } else { other });
            };
            each_frame(build, point, |walk, whole, place| {
                let expected = match place {
                    0 => Outcome::UnreadableCode,
                    _ => Outcome::TruncatedCode,
                };
                assert_eq!(outcome(walk), expected, "{build} frame {place}");
                assert_eq!(frames(walk), &whole[..place], "{build} frame {place}");
            });
        }
    }
}

#[test]
fn elsewhere_a_code_object_that_is_not_there_costs_only_its_identity() {
    for build in BUILDS.into_iter().filter(|build| !torn(*build)) {
        let point = |recording: &mut Recording, chain: &[Link], at: usize| {
            recording.set_code(chain[at], HOLE);
        };
        each_frame(build, point, |walk, whole, place| {
            assert_eq!(outcome(walk), Outcome::Complete, "{build} frame {place}");
            assert_eq!(walk.unproven, 1);
            let (kept, frame) = (frames(walk), frames(walk)[place]);
            assert_eq!((frame.code, frame.identity), (HOLE, 0), "{build}");
            assert_eq!(kept[..place], whole[..place], "{build}");
            assert_eq!(kept[place + 1..], whole[place + 1..], "{build}");
        });
    }
}

/// The kernel takes memory away from a process for a while, to move it to larger pages; what the
/// process does not use at the time stays away for long.
#[test]
fn a_code_object_whose_name_is_not_there_costs_only_its_identity() {
    for build in BUILDS {
        if Recording::load(build).layout.code_version != 0 {
            continue;
        }
        let take_name = |recording: &mut Recording, chain: &[Link], at: usize| {
            let name = chain[at].code + u64::from(recording.layout.code_name);
            recording.memory.write_word(name, HOLE);
        };
        each_frame(build, take_name, |walk, whole, place| {
            // Others may be of the same code object.
            let code = whole[place].code;
            let places = (0..whole.len()).filter(|&place| whole[place].code == code);
            assert_eq!(
                walk.unproven as usize,
                places.count(),
                "{build} frame {place}"
            );
            assert_eq!(outcome(walk), Outcome::Complete, "{build} frame {place}");
            for (seen, whole) in frames(walk).iter().zip(whole) {
                let identity = if whole.code == code {
                    0
                } else {
                    whole.identity
                };
                assert_eq!(
                    (seen.code, seen.identity),
                    (whole.code, identity),
                    "{build}"
                );
            }
        });
    }
}

#[test]
fn what_is_no_code_object_gets_no_name() {
    for build in BUILDS {
        let (mut recording, walk, chain) = whole(build);
        let (code, sampled) = (chain[0].code, walk.frames[0].identity);
        let kind = code + u64::from(recording.layout.object_type);
        recording.memory.write_word(kind, HOLE);
        let code_type = recording.target.code_type;
        let read = code::read(
            &recording.memory,
            &recording.layout,
            code_type,
            code,
            sampled,
        );
        // Where the walk checks the type, the object was code when it was sampled.
        let reason = match build.minor {
            11 | 12 => Reason::Replaced,
            _ => Reason::NotCode,
        };
        assert_eq!(read, Err(reason), "{build}");
    }
}

#[test]
fn a_chain_without_the_frame_that_enters_the_interpreter_is_not_whole() {
    for build in BUILDS {
        let cut = |recording: &mut Recording, chain: &[Link], at: usize| {
            recording.set_caller(chain[at], 0);
        };
        let (recording, _, chain) = whole(build);
        let mut generators = 0;
        each_frame(build, cut, |walk, whole, place| {
            // Up to 3.11 the chain has no mark of its end, but no chain begins with a generator.
            let in_generator = build.minor == 11 && owner(&recording, &chain[place]) == 1;
            generators += u32::from(in_generator);
            let expected = match build.minor {
                ..=11 if !in_generator => Outcome::Complete,
                _ => Outcome::TruncatedEntry,
            };
            assert_eq!(outcome(walk), expected, "{build} frame {place}");
            assert_eq!(frames(walk), &whole[..=place], "{build} frame {place}");
        });
        assert_eq!(generators > 0, build.minor == 11);
    }
}

/// The `owner` of a frame (3.11 and later).
fn owner(recording: &Recording, link: &Link) -> u8 {
    let mut byte = [0];
    let address = link.address + u64::from(recording.layout.frame_owner);
    assert!(profiler_ebpf::python::Memory::read(
        &recording.memory,
        address,
        &mut byte
    ));
    byte[0]
}

#[test]
fn a_thread_outside_python_has_no_frames() {
    for build in BUILDS {
        let (mut recording, _, chain) = whole(build);
        let newest = recording.newest(recording.main().control_block);
        recording.memory.write_word(newest, 0);
        assert_eq!(outcome(&recording.walk_main()), Outcome::NoFrames);
        // Entry frames alone are none, either.
        if let Some(entry) = chain.iter().find(|link| link.entry) {
            recording.memory.write_word(newest, entry.address);
            recording.set_caller(*entry, 0);
            let walk = recording.walk_main();
            assert_eq!(outcome(&walk), Outcome::NoFrames, "{build}");
            assert_eq!(walk.stack.frames, 0);
        }
    }
}

#[test]
fn a_chain_that_bites_its_tail_is_cut_at_the_limit() {
    for build in BUILDS {
        let (recording, whole, chain) = whole(build);
        for start in [0, 1, chain.len() - 1] {
            let mut recording = recording.clone();
            let last = chain.iter().rfind(|link| !link.entry).unwrap();
            recording.set_caller(*last, chain[start].address);
            if chain[start].entry {
                continue;
            }
            let walk = recording.walk_main();
            assert_eq!(outcome(&walk), Outcome::TruncatedDepth, "{build}");
            assert_eq!(walk.stack.frames as usize, MAX_FRAMES);
            let first = frames(&whole).len();
            assert_eq!(frames(&walk)[..first], *frames(&whole), "{build}");
        }
    }
}

#[test]
fn a_chain_of_entry_frames_without_an_end_is_not_taken_for_whole() {
    for build in BUILDS {
        let (mut recording, whole, chain) = whole(build);
        if !flag(&recording, layout_flags::ENTRY_FRAMES) {
            continue;
        }
        let entry = *chain.iter().find(|link| link.entry).unwrap();
        recording.set_caller(entry, entry.address);
        let mut walk = whole;
        let control_block = recording.main().control_block;
        super::recording::walk_again(&mut walk, &recording, &recording.target, control_block);
        assert_eq!(outcome(&walk), Outcome::TruncatedDepth, "{build}");
    }
}

#[test]
fn an_owner_that_no_version_has_is_garbage() {
    for build in BUILDS.into_iter().filter(|build| build.minor >= 11) {
        let garbage = if build.minor == 11 {
            [3, 5, 255]
        } else {
            [5, 6, 255]
        };
        for owner in garbage {
            let doctor = |recording: &mut Recording, chain: &[Link], at: usize| {
                let field = chain[at].address + u64::from(recording.layout.frame_owner);
                recording.memory.write(field, &[owner]);
            };
            each_frame(build, doctor, |walk, whole, place| {
                let expected = match place {
                    0 => Outcome::UnreadableCode,
                    _ => Outcome::TruncatedCode,
                };
                assert_eq!(outcome(walk), expected, "{build} frame {place}");
                assert_eq!(frames(walk), &whole[..place], "{build} frame {place}");
            });
        }
    }
}

#[test]
fn what_leads_to_no_thread_state_says_so() {
    for build in BUILDS {
        let recording = Recording::load(build);
        let Target { interpreters, .. } = recording.target;
        let stranger = walk(&recording, &recording.target, HOLE);
        assert_eq!(outcome(&stranger), Outcome::NoThreadState, "{build}");

        let none = |head: Option<u64>| {
            let mut recording = recording.clone();
            match head {
                Some(head) => recording.memory.write_word(interpreters, head),
                None => recording.memory.forget_page(interpreters),
            }
            outcome(&walk(&recording, &recording.target, HOLE))
        };
        assert_eq!(none(Some(0)), Outcome::NoInterpreter, "{build}");
        assert_eq!(none(Some(HOLE)), Outcome::UnreadableThread, "{build}");
        assert_eq!(none(None), Outcome::UnreadableThread, "{build}");
    }
}
