//! The identity of code objects: it changes with each part that tells one from its successor at
//! the same address, with nothing else, and is the same from the walk and from user space.

use profiler_ebpf::layout_flags;
use profiler_ebpf::python::{CodeFault, Memory, identity};

use super::BUILDS;
use super::recording::Recording;

impl Recording {
    fn identity(&self, code: u64) -> u32 {
        identity(&self.memory, &self.layout, self.target.code_type, code).unwrap()
    }

    fn doctored(&self, doctor: impl Fn(&mut Recording)) -> Recording {
        let mut recording = self.clone();
        doctor(&mut recording);
        recording
    }
}

/// The code objects of the longer stack, each once.
fn codes(recording: &Recording) -> Vec<u64> {
    let chain = recording.chain(recording.main().control_block);
    let shown = chain.iter().filter(|link| !link.entry);
    let mut codes: Vec<u64> = shown.map(|link| link.code).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

#[test]
fn user_space_and_the_walk_agree_and_every_code_object_has_its_own() {
    for build in BUILDS {
        let recording = Recording::load(build);
        let walk = recording.walk_main();
        for frame in &walk.frames[..walk.stack.frames as usize] {
            assert_eq!(frame.identity, recording.identity(frame.code), "{build}");
        }
        let codes = codes(&recording);
        let mut identities: Vec<u32> = codes.iter().map(|&code| recording.identity(code)).collect();
        identities.sort_unstable();
        identities.dedup();
        assert_eq!(identities.len(), codes.len(), "{build}");
        assert_ne!(identities[0], 0);
    }
}

#[test]
fn each_part_that_tells_code_objects_apart_changes_it() {
    for build in BUILDS {
        let recording = Recording::load(build);
        let layout = recording.layout;
        for code in codes(&recording) {
            let before = recording.identity(code);
            let field = |offset: u32| code + u64::from(offset);
            let first_line = recording.doctored(|recording| {
                let at = field(layout.code_first_line);
                let line = recording.memory.half(at);
                recording.memory.write_half(at, line + 1);
            });
            assert_ne!(first_line.identity(code), before, "{build}");
            let versioned =
                layout.code_version != 0 && recording.memory.half(field(layout.code_version)) != 0;
            if versioned {
                let version = recording.doctored(|recording| {
                    let at = field(layout.code_version);
                    let version = recording.memory.half(at);
                    recording.memory.write_half(at, version + 1);
                });
                assert_ne!(version.identity(code), before, "{build}");
            } else {
                check_parts(&recording, code);
            }
            if layout.code_version != 0 {
                // Static code and code made after the counter had overflowed have version 0.
                let unversioned = recording.doctored(|recording| {
                    recording.memory.write_half(field(layout.code_version), 0);
                });
                check_parts(&unversioned, code);
            }
        }
    }
}

/// The parts that count where there is no version.
fn check_parts(recording: &Recording, code: u64) {
    let layout = recording.layout;
    let before = recording.identity(code);
    let differs = |what: &str, doctor: &dyn Fn(&mut Recording)| {
        let after = recording.doctored(doctor).identity(code);
        assert_ne!(after, before, "{}: {what}", recording.version);
    };
    let word = |offset: u32| recording.memory.word(code + u64::from(offset));
    let (name, file) = (word(layout.code_name), word(layout.code_filename));
    let flip = |recording: &mut Recording, at: u64, bit: u32| {
        let word = recording.memory.word(at);
        recording.memory.write_word(at, word ^ 1 << bit);
    };

    differs("line table", &|recording| {
        flip(recording, code + u64::from(layout.code_linetable), 4);
    });
    differs("the name's hash", &|recording| {
        flip(recording, name + u64::from(layout.str_hash), 63);
    });
    // The same text elsewhere: another object.
    for (what, field, text) in [
        ("name", layout.code_name, name),
        ("file", layout.code_filename, file),
    ] {
        differs(what, &|recording| {
            let copy = 0x7000_0000;
            for at in (0..256).step_by(8) {
                // As far as the string was read.
                let mut word = [0; 8];
                let _known = recording.memory.read(text + at, &mut word);
                recording.memory.write(copy + at, &word);
            }
            recording.memory.write_word(code + u64::from(field), copy);
        });
    }
    let length = recording.memory.word(file + u64::from(layout.str_length));
    let state = recording.memory.half(file + u64::from(layout.str_state));
    let bytes = layout.flags & layout_flags::BYTE_STRINGS != 0;
    let kind = match bytes {
        true => 1,
        false => u64::from(state >> layout.str_kind_shift & 7),
    };
    let ascii = state >> (layout.str_kind_shift + 4) & 1 != 0;
    let data = if ascii || bytes {
        layout.str_ascii
    } else {
        layout.str_compact
    };
    let end = file + u64::from(data) + length * kind;
    for back in 1..=16 {
        differs("the file's tail", &|recording| {
            let at = (end - back) & !7;
            flip(recording, at, ((end - back) % 8 * 8) as u32);
        });
    }
    // With the same tail, whose last characters are all one. Short names have none to spare.
    if length * kind < 24 {
        return;
    }
    let mut alike = recording.clone();
    alike.memory.write(end - 24, &[b'x'; 24]);
    let before = alike.identity(code);
    let at = file + u64::from(layout.str_length);
    alike.memory.write_word(at, length - 8 / kind);
    let after = alike.identity(code);
    assert_ne!(after, before, "{}: the file's length", alike.version);
}

#[test]
fn what_changes_while_a_code_object_lives_does_not_change_it() {
    for build in BUILDS {
        let recording = Recording::load(build);
        for code in codes(&recording) {
            let after = recording.doctored(|recording| {
                // References to it, to its name and to its file come and go.
                let layout = recording.layout;
                for field in [layout.code_name, layout.code_filename] {
                    let text = recording.memory.word(code + u64::from(field));
                    recording.memory.write_word(text, 77);
                }
                recording.memory.write_word(code, 77);
                // co_argcount and so on lie before the first line, pointers to caches behind the
                // line table.
                let behind = code + u64::from(layout.code_linetable) + 8;
                recording.memory.write_word(behind, 77);
            });
            let before = recording.identity(code);
            assert_eq!(after.identity(code), before, "{build}");
        }
    }
}

#[test]
fn what_can_t_be_read_has_none() {
    for build in BUILDS {
        let recording = Recording::load(build);
        let kind = recording.target.code_type;
        for code in [0, 0x7000_0000, u64::MAX, u64::MAX - 63] {
            let found = identity(&recording.memory, &recording.layout, kind, code);
            assert_eq!(found, Err(CodeFault::Unreadable), "{build} {code:#x}");
        }
        if recording.layout.code_version != 0 {
            continue;
        }
        for field in [recording.layout.code_name, recording.layout.code_filename] {
            let code = codes(&recording)[0];
            let without = recording.doctored(|recording| {
                recording
                    .memory
                    .write_word(code + u64::from(field), 0x7000_0000);
            });
            let found = identity(&without.memory, &without.layout, kind, code);
            assert_eq!(found, Err(CodeFault::NoIdentity), "{build}");
        }
    }
}
