//! Our tables of a live process, in user space: of each file once, whoever maps it.

use std::collections::HashMap;

use bytemuck::Zeroable as _;
use profiler_ebpf::native::{Entries, address};
use profiler_ebpf::python::Memory;
use profiler_ebpf::{NativeEnd, Rule};
use pyebpf::cpython::{self, VDSO, mapped_files};
use pyebpf::memory::ProcessMemory;
use pyebpf::unwind::{Module, Modules, Rules, Table};

use super::stop::Registers;
use super::{Files, walk};

/// A mapping of code and its file's device.
pub(crate) type Code = (String, cpython::Mapping);

/// The tables of the files that were met, and the mappings of the process that was looked at last.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) files: Files,
    rules: Rules,
    /// Of each file its rows in `files`.
    known: HashMap<(String, u64), (u32, u32)>,
    pub(crate) code: Vec<Code>,
}

impl Tables {
    /// Reads what a process has mapped now; true when that is not what it was.
    pub(crate) fn look(&mut self, pid: u32) -> bool {
        let parts = mapped_files(pid).unwrap_or_default().into_iter();
        let code = parts.filter(|part| part.executable);
        let code: Vec<Code> = code.map(|part| (part.device, part.mapping)).collect();
        if code == self.code {
            return false;
        }
        self.files.mappings.clear();
        for (device, mapping) in &code {
            let files = &mut self.files;
            let key = (device.clone(), mapping.inode);
            let (first_row, rows) = *self.known.entry(key).or_insert_with(|| {
                let rows = table(pid, mapping, &mut self.rules)
                    .unwrap_or_default()
                    .rows;
                let first = files.rows.len();
                files.rows.extend(&rows);
                (first as u32, rows.len() as u32)
            });
            files.mappings.push(profiler_ebpf::Mapping {
                start: mapping.start,
                end: mapping.end,
                offset: mapping.offset,
                first_row,
                rows,
            });
        }
        self.files.know(&self.rules);
        self.code = code;
        true
    }

    /// Walks: the addresses, newest first, and how it ended.
    pub(crate) fn walk(
        &self,
        memory: &impl Memory,
        registers: &Registers,
    ) -> (Vec<u64>, NativeEnd) {
        let numbered: Vec<(u8, u64)> = (0..).zip(registers.others).collect();
        let ip = registers.ip;
        let (frames, end) = walk(memory, &self.files, &Entries::zeroed(), ip, &numbered);
        (frames.into_iter().map(address).collect(), end)
    }

    /// The rule for an address of the process looked at last.
    pub(crate) fn rule(&self, address: u64) -> Option<Rule> {
        let files = &self.files;
        let mut mappings = files.mappings.iter();
        let mapping = mappings.find(|it| (it.start..it.end).contains(&address))?;
        let offset = address - mapping.start + mapping.offset;
        let first = mapping.first_row as usize;
        let rows = &files.rows[first..first + mapping.rows as usize];
        let after = rows.partition_point(|row| u64::from(row.start) <= offset);
        files
            .rules
            .get(&rows.get(after.checked_sub(1)?)?.rule)
            .copied()
    }

    /// What the process looked at last runs code from.
    pub(crate) fn modules(&self) -> Modules {
        let module = |(device, mapping): &Code| Module {
            start: mapping.start,
            end: mapping.end,
            offset: mapping.offset,
            device: device.as_str().into(),
            inode: mapping.inode,
            path: mapping.path.as_str().into(),
            ..Module::default()
        };
        Modules::new(self.code.iter().map(module).collect())
    }
}

/// The bytes of the file of a mapping.
pub(crate) fn bytes(pid: u32, mapping: &cpython::Mapping) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    if mapping.path == VDSO {
        bytes.resize(usize::try_from(mapping.end - mapping.start).ok()?, 0);
        ProcessMemory::new(pid)
            .try_read(mapping.start, &mut bytes)
            .ok()?;
    } else {
        std::io::Read::read_to_end(&mut mapping.open(pid).ok()?, &mut bytes).ok()?;
    }
    Some(bytes)
}

fn table(pid: u32, mapping: &cpython::Mapping, rules: &mut Rules) -> Option<Table> {
    if mapping.path == VDSO {
        Table::parse(&*bytes(pid, mapping)?, rules).ok()
    } else {
        Table::read(mapping.open(pid).ok()?, rules).ok()
    }
}
