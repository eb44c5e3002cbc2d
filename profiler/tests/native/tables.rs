//! Our tables of a live process, in user space: of each file once, whoever maps it.

use std::cell::RefCell;
use std::collections::HashMap;

use bytemuck::Zeroable as _;
use profiler_ebpf::native::{Entries, Native, address};
use profiler_ebpf::python::Memory;
use profiler_ebpf::{Mapping, NativeEnd, Rule};
use pyebpf::cpython::{self, VDSO, mapped_files};
use pyebpf::memory::ProcessMemory;
use pyebpf::unwind::{Module, Modules, Rules, Table};

use super::stop::Registers;
use super::{Files, walk_again};

/// A mapping of code and its file's device.
pub(crate) type Code = (String, cpython::Mapping);

/// The tables of the files that were met, and the mappings of the process that was looked at last.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) files: Files,
    rules: Rules,
    /// Of each file its table, and the same in `files`.
    known: HashMap<(String, u64), (Table, Mapping)>,
    pub(crate) code: Vec<Code>,
    /// Of the last walk.
    native: RefCell<Option<Box<Native>>>,
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
            let (_, loaded) = self.known.entry(key).or_insert_with(|| {
                let table = table(pid, mapping, &mut self.rules).unwrap_or_default();
                let loaded = files.load(&table);
                (table, loaded)
            });
            files.mappings.push(Mapping {
                start: mapping.start,
                end: mapping.end,
                offset: mapping.offset.wrapping_add(loaded.offset),
                ..*loaded
            });
        }
        self.files.know(&self.rules);
        self.files.id += 1;
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
        let mut native = self.native.borrow_mut();
        let native = native.get_or_insert_with(|| Box::new(Native::zeroed()));
        let entries = Entries::zeroed();
        let (frames, end) = walk_again(native, memory, &self.files, &entries, ip, &numbered);
        (frames.into_iter().map(address).collect(), end)
    }

    /// The rule for an address of the process looked at last.
    pub(crate) fn rule(&self, address: u64) -> Option<Rule> {
        let mut code = self.code.iter();
        let (device, mapping) = code.find(|(_, it)| (it.start..it.end).contains(&address))?;
        let offset = address - mapping.start + mapping.offset;
        let (table, _) = self.known.get(&(device.clone(), mapping.inode))?;
        let rows = &table.rows;
        let after = rows.partition_point(|row| u64::from(row.start) <= offset);
        let row = rows.get(after.checked_sub(1)?)?;
        self.files.rules.get(&row.rule).copied()
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
