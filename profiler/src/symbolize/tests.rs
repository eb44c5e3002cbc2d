//! Planted code objects, stacks by the thousand, and what is left of them when an epoch ends.

use std::time::{Duration, SystemTime};

use profiler_ebpf::{Layout, Target, python::identity};

use super::*;
use crate::{
    cpython::{self, Version},
    memory::ProcessMemory,
    profile::{Meta, Shape},
};

const FIRST_LINE: u32 = 7;

/// Code objects in the memory of this very process, which is read like any other's.
struct Planted {
    layout: Layout,
    codes: Vec<Vec<u8>>,
    /// Their name, their file's name and their line table are one and the same.
    #[expect(dead_code, reason = "it is read through its addresses")]
    shared: [Vec<u8>; 3],
}

impl Planted {
    fn new(count: u32, table: usize) -> Planted {
        let layout = cpython::layout(12).unwrap();
        let name = text(&layout, "spam");
        let file = text(&layout, "relative.py");
        let mut bytes = vec![0; layout.bytes_data as usize + table];
        put(&mut bytes, layout.bytes_size, &(table as u64).to_le_bytes());
        let shared = [name, file, bytes];
        let address = |at: usize| (shared[at].as_ptr() as u64).to_le_bytes();
        let code = |number: u32| {
            let mut code = vec![0; 512];
            put(&mut code, 0, &1_u64.to_le_bytes());
            put(&mut code, layout.code_name, &address(0));
            put(&mut code, layout.code_qualname, &address(0));
            put(&mut code, layout.code_filename, &address(1));
            put(&mut code, layout.code_linetable, &address(2));
            put(&mut code, layout.code_first_line, &FIRST_LINE.to_le_bytes());
            put(&mut code, layout.code_version, &number.to_le_bytes());
            code
        };
        let codes = (1..=count).map(code).collect();
        Planted {
            layout,
            codes,
            shared,
        }
    }

    fn frames(&self) -> Vec<Frame> {
        let memory = ProcessMemory::new(std::process::id());
        let frame = |code: &Vec<u8>| {
            let code = code.as_ptr() as u64;
            Frame {
                code,
                instruction: -1,
                identity: identity(&memory, &self.layout, 0, code).unwrap(),
            }
        };
        self.codes.iter().map(frame).collect()
    }

    fn interpreter(&self) -> Interpreter {
        Interpreter {
            checked: true,
            remarks: Vec::new(),
            eval_loop: Vec::new(),
            version: Version {
                major: 3,
                minor: 12,
                micro: 1,
            },
            layout: self.layout,
            target: Target::default(),
        }
    }
}

fn put(object: &mut [u8], at: u32, bytes: &[u8]) {
    object[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

/// A compact ASCII string.
fn text(layout: &Layout, text: &str) -> Vec<u8> {
    let mut object = vec![0; layout.str_ascii as usize];
    let length = text.len() as u64;
    put(&mut object, layout.str_length, &length.to_le_bytes());
    put(&mut object, layout.str_state, &0x64_u32.to_le_bytes());
    object.extend_from_slice(text.as_bytes());
    object
}

fn profile() -> Profile {
    let meta = Meta {
        started: SystemTime::UNIX_EPOCH,
        rate: 99,
        command: String::new(),
        duration: Duration::ZERO,
    };
    Profile::new(meta, Shape::default(), false)
}

impl Symbols {
    /// Takes in a stack and names it.
    fn take_and_name(
        &mut self,
        id: u32,
        process: (u32, &Interpreter),
        profile: &mut Profile,
        frames: &[Frame],
        named: &mut Vec<FrameId>,
    ) {
        let hash = frames[0].code;
        self.take_stack(id, process, hash, frames[..].into());
        let naming = self.name(id, process, profile, hash, false, named);
        assert_eq!(naming, Naming::Named);
    }

    /// Whether a stack of the first incarnation is known, and names it.
    fn names(
        &mut self,
        process: (u32, &Interpreter),
        profile: &mut Profile,
        hash: u64,
        named: &mut Vec<FrameId>,
    ) -> bool {
        self.name(1, process, profile, hash, false, named) == Naming::Named
    }

    fn tables(&self) -> usize {
        self.known.processes.values().map(Process::tables).sum()
    }
}

#[test]
fn huge_line_tables_stay_within_the_budget() {
    const TABLE: usize = 200_000;
    let planted = Planted::new(300, TABLE);
    let process = (std::process::id(), &planted.interpreter());
    let frames = planted.frames();
    // One by one, and as one deep stack.
    for at_once in [1, frames.len()] {
        let mut symbols = Symbols::default();
        let mut profile = profile();
        let mut named = Vec::new();
        let mut met = 0;
        for frames in frames.chunks(at_once) {
            symbols.take_and_name(1, process, &mut profile, frames, &mut named);
            met += frames.len();
            let bytes = symbols.known.bytes;
            assert!(bytes <= BYTES_MAX, "{bytes} bytes");
            let kept = symbols.tables();
            assert!(kept <= bytes, "{kept} bytes of tables");
            // Nothing is thrown away before the budget is used up.
            if met * (TABLE + 1000) < BYTES_MAX {
                assert_eq!(kept, met * TABLE);
            }
        }
        // It is used up within a stack, too: what comes after that is kept.
        let kept = symbols.tables();
        assert!((TABLE..BYTES_MAX).contains(&kept), "{kept} bytes of tables");
        assert!(symbols.unknown().is_empty(), "{:?}", symbols.unknown());
        let line = profile.frame_of(named[0]).line;
        assert_eq!((named.len(), line), (300, Some(FIRST_LINE)));
    }
}

#[test]
fn what_is_forgotten_gives_its_room_back() {
    let planted = Planted::new(3, 1000);
    let process = (std::process::id(), &planted.interpreter());
    let (mut symbols, mut profile) = (Symbols::default(), profile());
    for id in [1, 2] {
        let frames = planted.frames();
        symbols.take_and_name(id, process, &mut profile, &frames, &mut Vec::new());
    }
    let both = symbols.known.bytes;
    symbols.retain(|id| id == 2);
    assert_eq!(symbols.known.bytes, both / 2);
    symbols.retain(|_| false);
    assert_eq!(symbols.known.bytes, 0);
}

#[test]
fn a_stack_is_known_by_its_hash_and_its_target() {
    let planted = Planted::new(2, 10);
    let process = (std::process::id(), &planted.interpreter());
    let (mut symbols, mut profile) = (Symbols::default(), profile());
    let frames = planted.frames();
    symbols.take_stack(1, process, 77, frames[..1].into());
    symbols.take_stack(2, process, 77, frames[..].into());
    let mut name = |id, hash| {
        let mut named = Vec::new();
        let naming = symbols.name(id, process, &mut profile, hash, false, &mut named);
        (naming == Naming::Named, named.len())
    };
    assert_eq!(name(1, 77), (true, 1));
    assert_eq!(name(2, 77), (true, 2));
    assert_eq!(name(1, 78), (false, 0));
    assert_eq!(name(3, 77), (false, 0));
}

#[test]
fn a_stack_that_is_sent_again_takes_no_more_room() {
    let planted = Planted::new(3, 10);
    let process = (std::process::id(), &planted.interpreter());
    let mut symbols = Symbols::default();
    let frames = planted.frames();
    symbols.take_stack(1, process, 77, frames[..].into());
    let once = symbols.known.bytes;
    symbols.take_stack(1, process, 77, frames[..].into());
    assert_eq!(symbols.known.bytes, once);
    assert!(once > size_of_val(&frames[..]));
}

/// Takes in stacks until an epoch ends. Returns the hash of the last one.
fn fill(symbols: &mut Symbols, process: (u32, &Interpreter), hash: u64) -> u64 {
    let frames = vec![Frame::default(); 1024];
    for hash in hash.. {
        symbols.take_stack(1, process, hash, frames[..].into());
        if symbols.begun {
            return hash;
        }
    }
    unreachable!("the budget is finite")
}

#[test]
fn an_epoch_ends_with_the_budget_and_what_is_on_its_way_is_still_named() {
    let planted = Planted::new(2, 10);
    let interpreter = planted.interpreter();
    let process = (std::process::id(), &interpreter);
    let (mut symbols, mut profile) = (Symbols::default(), profile());
    let first = symbols.new_epoch().expect("the kernel knows none yet");
    assert_eq!(symbols.new_epoch(), None);
    let frames = planted.frames();
    symbols.take_and_name(1, process, &mut profile, &frames, &mut Vec::new());
    let hash = frames[0].code;
    let last = fill(&mut symbols, process, 1);
    assert!(last as usize * 1024 * size_of::<Frame>() > BYTES_MAX / 2);
    assert_eq!(symbols.new_epoch(), Some(first.wrapping_add(1)));
    assert_eq!(symbols.new_epoch(), None);
    assert_eq!(symbols.known.bytes, 0);

    // The code objects are gone by now, what was read of them is taken over.
    drop(planted);
    let mut named = Vec::new();
    assert!(symbols.names(process, &mut profile, hash, &mut named));
    assert_eq!(named.len(), 2);
    assert!(symbols.unknown().is_empty(), "{:?}", symbols.unknown());

    let ended = symbols.before.as_ref().unwrap().1;
    symbols.drained(ended + IN_FLIGHT / 2);
    assert!(symbols.names(process, &mut profile, hash, &mut Vec::new()));
    symbols.drained(ended + IN_FLIGHT);
    assert!(!symbols.names(process, &mut profile, hash, &mut Vec::new()));
    // What was named meanwhile is this epoch's.
    symbols.take_and_name(1, process, &mut profile, &frames, &mut named);
    assert!(symbols.unknown().is_empty(), "{:?}", symbols.unknown());
}

#[test]
fn a_stack_whose_tables_are_more_than_the_budget_is_not_forgotten() {
    const TABLE: usize = 1 << 18;
    let count = (3 * BYTES_MAX / TABLE) as u32;
    let planted = Planted::new(count, TABLE);
    let process = (std::process::id(), &planted.interpreter());
    let (mut symbols, mut profile) = (Symbols::default(), profile());
    symbols.new_epoch();
    let frames = planted.frames();
    let mut named = Vec::new();
    symbols.take_and_name(1, process, &mut profile, &frames, &mut named);
    assert_eq!(named.len(), frames.len());
    // Samples of it are on their way.
    let hash = frames[0].code;
    assert!(symbols.names(process, &mut profile, hash, &mut Vec::new()));
    assert!(symbols.known.bytes <= 2 * BYTES_MAX);
    assert!(symbols.unknown().is_empty(), "{:?}", symbols.unknown());
}

#[test]
fn what_two_epochs_ago_was_known_is_not_kept() {
    let planted = Planted::new(1, 10);
    let process = (std::process::id(), &planted.interpreter());
    let (mut symbols, mut profile) = (Symbols::default(), profile());
    symbols.new_epoch();
    let last = fill(&mut symbols, process, 1);
    symbols.new_epoch();
    assert!(symbols.names(process, &mut profile, 1, &mut Vec::new()));
    fill(&mut symbols, process, last + 1);
    assert!(!symbols.names(process, &mut profile, 1, &mut Vec::new()));
    assert!(symbols.names(process, &mut profile, last + 1, &mut Vec::new()));
}

#[test]
fn what_is_known_is_the_same_in_a_profile_that_begins_anew() {
    let planted = Planted::new(1, 16);
    let interpreter = planted.interpreter();
    let process = (std::process::id(), &interpreter);
    let frames = planted.frames();
    // One that has no code object, so that it is unknown.
    let unknown = Frame {
        code: 8,
        identity: 1,
        instruction: 0,
    };
    let stack = [frames[0], unknown];
    let mut symbols = Symbols::default();
    let mut old = profile();
    // So that ids differ.
    old.marker("[other]");
    let mut named = Vec::new();
    symbols.take_and_name(1, process, &mut old, &stack, &mut named);
    let labels = |profile: &Profile, named: &[FrameId]| {
        let labels = named.iter().map(|&frame| profile.frame_label(frame));
        labels.collect::<Vec<_>>()
    };
    let before = labels(&old, &named);
    let mut new = profile();
    symbols.renew(&old, &mut new);
    // What is known need not be read again.
    drop(planted.codes);
    named.clear();
    let hash = stack[0].code;
    let naming = symbols.name(1, process, &mut new, hash, false, &mut named);
    assert_eq!(
        (naming, labels(&new, &named)),
        (Naming::Named, before.clone())
    );
    assert!(
        before[0].starts_with("spam (relative.py") && before[1].starts_with("[unknown"),
        "{before:?}"
    );
}
