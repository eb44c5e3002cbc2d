//! The walk over native frames, in user space: over stacks that are made up, where each of its ends and
//! each number of newer Python frames is known; over this test's own stack, as the compiler's runtime
//! unwinds it; and over stacks of running programs, as framehop and gdb do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod corpus;
mod framehop;
mod gdb;
mod made;
mod own;
mod programs;
mod sizes;
mod stop;
mod tables;
mod untold;

use std::collections::HashMap;

use bytemuck::Zeroable as _;
use profiler_ebpf::native::{Entries, Native, Tables};
use profiler_ebpf::python::Memory;
use profiler_ebpf::{Mapping, NativeEnd, Rule, Target};
use pyebpf::unwind::{Row, Rules, Table};

/// The tables of one process.
#[derive(Default)]
struct Files {
    mappings: Vec<Mapping>,
    /// Of all tables.
    words: Vec<u32>,
    rules: HashMap<u16, Rule>,
    /// Changes with the mappings.
    id: u64,
}

impl Files {
    /// Adds a mapping with these rows.
    fn map(&mut self, start: u64, end: u64, offset: u64, rows: &[Row]) {
        let table = Table {
            rows: rows.to_vec(),
        };
        let mapping = self.load(&table);
        self.mappings.push(Mapping {
            start,
            end,
            offset: offset.wrapping_add(mapping.offset),
            ..mapping
        });
    }

    /// Adds a table: what is to be mapped of it, as far as the file tells.
    fn load(&mut self, table: &Table) -> Mapping {
        let packed = table.packed();
        let table = self.words.len() as u32;
        self.words.extend(&packed.words);
        Mapping {
            offset: u64::from(packed.start).wrapping_neg(),
            table,
            blocks: packed.blocks,
            ..Mapping::default()
        }
    }

    fn know(&mut self, rules: &Rules) {
        self.rules.extend(rules.since(0));
    }

    fn target(&self) -> Target {
        Target {
            mapping_count: self.mappings.len() as u32,
            mappings_id: self.id,
            ..Target::default()
        }
    }
}

impl Tables for Files {
    fn mapping(&self, slot: u32) -> Option<Mapping> {
        self.mappings.get(slot as usize).copied()
    }

    fn word(&self, index: u32) -> Option<u32> {
        self.words.get(index as usize).copied()
    }

    fn rule(&self, number: u16) -> Option<Rule> {
        self.rules.get(&number).copied()
    }
}

/// Walks to the end: the frames as the kernel would send them, and how it ended.
fn walk(
    memory: &impl Memory,
    files: &Files,
    entries: &Entries,
    ip: u64,
    registers: &[(u8, u64)],
) -> (Vec<u64>, NativeEnd) {
    walk_again(&mut Native::zeroed(), memory, files, entries, ip, registers)
}

/// As [`walk`], after others.
fn walk_again(
    native: &mut Native,
    memory: &impl Memory,
    files: &Files,
    entries: &Entries,
    ip: u64,
    registers: &[(u8, u64)],
) -> (Vec<u64>, NativeEnd) {
    for &(register, value) in registers {
        native.registers[register as usize] = value;
    }
    let target = files.target();
    let mut frames = Vec::new();
    if native.begin(&target, entries, ip) {
        loop {
            let taken = native.frames;
            let more = native.step((memory, files), &target, entries);
            frames.truncate(native.frames as usize);
            if native.frames > taken {
                frames.push(native.last);
            }
            if !more {
                break;
            }
        }
    }
    let end = u8::try_from(native.end)
        .ok()
        .and_then(NativeEnd::from_number);
    (frames, end.unwrap())
}
