//! Every parser of foreign bytes over the inputs of `tests/data/fuzz`, which are real ones and those
//! that once broke it, and over a fixed number of damaged copies of them. `cargo xtask fuzz` looks
//! further, guided by what code an input reaches; what it finds becomes an input here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "replay/random.rs"]
mod random;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use pyebpf::fuzz::PARSERS;

use random::Random;

/// Damaged inputs of each parser: a few seconds for all, in a debug build.
const ROUNDS: u32 = 10_000;

/// Numbers that lie on the edges of what parsers compare with.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 60,
    i64::MAX as u64,
    u64::MAX,
];

fn folder(parser: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/fuzz");
    folder.join(parser)
}

/// The inputs of a parser, by name.
fn inputs(parser: &str) -> Vec<(String, Vec<u8>)> {
    let folder = folder(parser);
    let files = fs::read_dir(&folder).unwrap_or_else(|_| panic!("no {}", folder.display()));
    let mut found: Vec<(String, Vec<u8>)> = files
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    // The order of a folder is no order; the damage is to be the same in every run.
    found.sort();
    found
}

/// Damages an input in one way, or joins it with another.
fn damage(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(bytes.len() as u64 + 1) as usize;
    match random.below(7) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, random.word() as u8),
        2 => {
            let from = random.below(other.len() as u64 + 1) as usize;
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        3 => {
            let piece = bytes[at..].iter().copied().take(64).collect::<Vec<_>>();
            bytes.splice(at..at, piece);
        }
        kind => {
            let Some(place) = bytes.get_mut(at..) else {
                return;
            };
            let value = match kind {
                4 => random.one_of(&EDGES),
                5 => random.word() >> random.below(64),
                _ => u64::from(place.first().map_or(0, |byte| byte ^ 1 << random.below(8))),
            };
            let width = if kind == 6 { 1 } else { 1 << random.below(4) };
            let value = value.to_le_bytes();
            for (to, from) in place.iter_mut().zip(&value[..width]) {
                *to = *from;
            }
        }
    }
}

/// Runs a parser; keeps the input where it panics.
fn run(name: &str, parser: fn(&[u8]), bytes: &[u8], what: &str) {
    if catch_unwind(|| parser(bytes)).is_err() {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{name}"));
        fs::write(&kept, bytes).unwrap();
        let (kept, folder) = (kept.display(), folder(name));
        let folder = folder.display();
        panic!("{name} panics at {what}, kept as {kept}: copy it to {folder} and mend the parser");
    }
}

#[test]
fn inputs_of_any_content_are_parsed_or_refused() {
    for (name, parser) in PARSERS {
        let inputs = inputs(name);
        assert!(!inputs.is_empty(), "{name} has no input");
        for (file, bytes) in &inputs {
            run(name, parser, bytes, file);
        }
        let mut random = Random::new(500);
        for round in 0..ROUNDS {
            let pick = |random: &mut Random| random.below(inputs.len() as u64) as usize;
            let (one, other) = (pick(&mut random), pick(&mut random));
            let (file, bytes) = &inputs[one];
            let mut bytes = bytes.clone();
            for _ in 0..=random.below(4) {
                damage(&mut random, &mut bytes, &inputs[other].1);
            }
            run(
                name,
                parser,
                &bytes,
                &format!("{file}, damaged in round {round}"),
            );
        }
    }
}

#[test]
fn every_folder_of_inputs_has_its_parser() {
    for entry in fs::read_dir(folder("")).unwrap() {
        let name = entry.unwrap().file_name();
        let known = PARSERS.iter().any(|(parser, _)| name == *parser);
        assert!(known, "no parser reads {}", name.display());
    }
}
