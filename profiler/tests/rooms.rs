//! Holds the rooms of `ARCHITECTURE.md` apart: what each may import, where versions are looked at,
//! and what no part of the program does to a target. Reads the sources as text.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms that a sample goes through and what they stand on, each with the rooms that it may
/// import. None may import the wiring.
const PIPELINE: [(&str, &[&str]); 9] = [
    ("memory", &[]),
    ("cpython", &["memory"]),
    ("unwind", &[]),
    ("bpf", &[]),
    ("target", &["bpf", "cpython", "memory", "unwind"]),
    ("sample", &[]),
    (
        "symbolize",
        &["cpython", "memory", "profile", "sample", "unwind"],
    ),
    ("profile", &[]),
    ("output", &["profile"]),
];

/// What puts the rooms together, and what talks to the user; these may import any room.
const WIRING: [&str; 15] = [
    "agent",
    "cli",
    "commands",
    "destination",
    "doctor",
    "fuzz",
    "lib",
    "main",
    "preflight",
    "progress",
    "recorder",
    "session",
    "signals",
    "talk",
    "tally",
];

/// A source file: its room, its path below `src`, its text without comments.
struct Source {
    room: String,
    path: PathBuf,
    text: String,
}

fn without_comments(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let code = line.find("//").map_or(line, |at| &line[..at]);
        code.to_owned() + "\n"
    });
    lines.collect()
}

fn collect(folder: &Path, root: &Path, into: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, root, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let below = path.strip_prefix(root).unwrap().to_owned();
            let room = below.iter().next().unwrap().to_str().unwrap();
            into.push(Source {
                room: room.trim_end_matches(".rs").to_owned(),
                text: without_comments(&fs::read_to_string(&path).unwrap()),
                path: below,
            });
        }
    }
}

/// The sources of one crate of the workspace.
fn sources(of: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(of)
        .join("src");
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    assert!(found.len() > 2, "{}: no sources", root.display());
    found
}

/// The rooms that a text names after `crate::`, in whatever form of `use` or path.
fn imports(text: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        let word = text.trim_start().chars();
        word.take_while(|&letter| letter.is_alphanumeric() || letter == '_')
            .collect()
    };
    let mut found = BTreeSet::new();
    for (at, path) in text.match_indices("crate::") {
        let rest = &text[at + path.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        found.insert(word(list));
        let mut depth = 1;
        for (at, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => {
                    found.insert(word(&list[at + 1..]));
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    // What follows a last comma.
    found.remove("");
    found
}

#[test]
fn every_form_of_import_is_seen() {
    let text = "use crate::one;\nuse crate::{\n    two::{A, three},\n    four,\n};
        pub(crate) fn f() { crate::five::g() }\nuse crate::{six, seven::{self, Eight}};";
    let expected = ["five", "four", "one", "seven", "six", "two"];
    assert_eq!(imports(text).into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn every_room_has_its_place() {
    let rooms: BTreeSet<String> = sources("profiler")
        .into_iter()
        .map(|file| file.room)
        .collect();
    let pipeline = PIPELINE.iter().map(|(room, _)| *room);
    let known: BTreeSet<String> = pipeline.chain(WIRING).map(str::to_owned).collect();
    assert_eq!(rooms, known, "a new room belongs into a list of this file");
}

#[test]
fn the_library_declares_the_rooms_in_their_order() {
    let files = sources("profiler");
    let library = files.iter().find(|file| file.room == "lib").unwrap();
    let rooms = PIPELINE.map(|(room, _)| library.text.find(&format!("pub mod {room};")).unwrap());
    assert!(
        rooms.is_sorted(),
        "{:?} at {rooms:?}",
        PIPELINE.map(|(room, _)| room)
    );
}

#[test]
fn samples_go_one_way() {
    for file in sources("profiler") {
        let Some((_, allowed)) = PIPELINE.iter().find(|(room, _)| *room == file.room) else {
            continue;
        };
        for import in imports(&file.text) {
            assert!(
                import == file.room || allowed.contains(&import.as_str()),
                "{} imports crate::{import}; `{}` may import {allowed:?}",
                file.path.display(),
                file.room
            );
        }
        // A file of its own reaches the other rooms through `super`, too.
        let depth = file.path.iter().count();
        assert!(
            depth > 1 || !file.text.contains("\nuse super::"),
            "{} imports through super",
            file.path.display()
        );
    }
}

#[test]
fn a_profile_and_its_outputs_know_nothing_of_the_kernel() {
    for file in sources("profiler") {
        let apart = ["profile", "output"].contains(&file.room.as_str());
        assert!(
            !(apart && file.text.contains("profiler_ebpf")),
            "{} uses the contract with the kernel",
            file.path.display()
        );
    }
}

#[test]
fn versions_are_looked_at_in_one_room() {
    let user = sources("profiler");
    let user = user.iter().filter(|file| file.room != "cpython");
    let kernel = sources("profiler-ebpf");
    for file in user.chain(&kernel) {
        // Names that others have given to what they send end so, too.
        let text = file.text.replace(".version\"", "");
        for sign in [".version", ".minor", "Version::"] {
            assert!(
                !text.contains(sign),
                "{} has `{sign}`: what depends on a version of CPython belongs into cpython/",
                file.path.display()
            );
        }
    }
}

#[test]
fn a_target_is_never_stopped_or_written_to() {
    let mut files = sources("profiler");
    files.extend(sources("profiler-ebpf"));
    for file in files {
        let text = file.text.to_lowercase();
        for sign in [
            "ptrace(",
            "ptrace_attach",
            "ptrace_seize",
            "process_vm_writev",
            "sigstop",
            "probe_write_user",
            "#[kprobe",
            "#[uprobe",
        ] {
            assert!(!text.contains(sign), "{} has `{sign}`", file.path.display());
        }
    }
}
