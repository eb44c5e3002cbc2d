//! Unwind tables of the processes whose native frames are walked: of each file once, whoever maps it,
//! read when a process is sampled for the first time, forgotten with the last that has it.

use std::sync::Arc;

use anyhow::Result;
use profiler_ebpf::{MAX_MAPPINGS, MAX_PROCESS_MAPPINGS, Mapping};
use rustc_hash::FxHashMap;

use crate::{
    bpf::{Kernel, WORDS_MAX},
    cpython::{self, Interpreter, VDSO},
    memory::ProcessMemory,
    unwind::{Module, Modules, Ranges, Refusal, Rules, Table},
};

/// Most bytes of the kernel's own library that are read; it has two pages.
const VDSO_MAX: usize = 1 << 20;

/// A file as `/proc/PID/maps` names it: device and inode.
type FileKey = (Arc<str>, u64);

/// The table of one file in the kernel's map.
#[derive(Clone, Copy)]
struct Loaded {
    /// Its words: index of the first, and how many.
    first: u32,
    words: u32,
    blocks: u32,
    /// Where in the file the first block starts.
    start: u32,
    /// How many spaces have it mapped.
    users: u32,
}

/// The mappings of one process, or of several that were forked from one another.
struct Space {
    first: u32,
    count: u32,
    files: Vec<FileKey>,
    modules: Arc<Modules>,
    /// How many processes have it.
    users: u32,
}

/// What is loaded for whom.
pub(super) struct Natives {
    rules: Rules,
    /// How many rules the kernel has.
    rules_set: usize,
    words: Ranges,
    slots: Ranges,
    files: FxHashMap<FileKey, Loaded>,
    /// By number.
    spaces: FxHashMap<u64, Space>,
    last_space: u64,
    /// By incarnation.
    processes: FxHashMap<u32, u64>,
    /// Spaces that nobody has any more, until walks that began before are over.
    retired: Vec<Space>,
    /// Incarnations that have mapped something since.
    changed: Vec<u32>,
    /// How many files found no room, or had unwind information that is no good.
    pub(super) full: u64,
    pub(super) refused: u64,
}

impl Default for Natives {
    fn default() -> Natives {
        Natives {
            rules: Rules::default(),
            rules_set: 0,
            words: Ranges::new(WORDS_MAX),
            slots: Ranges::new(MAX_MAPPINGS),
            files: FxHashMap::default(),
            spaces: FxHashMap::default(),
            last_space: 0,
            processes: FxHashMap::default(),
            retired: Vec::new(),
            changed: Vec::new(),
            full: 0,
            refused: 0,
        }
    }
}

impl Natives {
    /// What an incarnation runs code from, as far as that is loaded.
    pub(super) fn modules(&self, id: u32) -> Option<&Arc<Modules>> {
        let space = self.processes.get(&id)?;
        Some(&self.spaces[space].modules)
    }

    /// Loads the tables of what process `pid`, incarnation `id`, has mapped now, and tells the kernel.
    ///
    /// # Errors
    /// When the process is gone, or the kernel refuses.
    pub(super) fn load(
        &mut self,
        kernel: &mut Kernel,
        (pid, id): (u32, u32),
        interpreter: &Interpreter,
    ) -> Result<()> {
        let known = [
            interpreter.target.code_type,
            interpreter.target.interpreters,
        ];
        let modules = modules(pid, &known)?;
        let mut mappings = Vec::new();
        let mut files = Vec::new();
        for (module, file) in &modules {
            if mappings.len() as u32 >= MAX_PROCESS_MAPPINGS {
                self.full += 1;
                break;
            }
            let key = (module.device.clone(), module.inode);
            let loaded = match self.files.get_mut(&key) {
                Some(loaded) => {
                    loaded.users += 1;
                    *loaded
                }
                None => {
                    let table = table(pid, file, &mut self.rules);
                    self.load_file(kernel, &key, table)?
                }
            };
            files.push(key);
            mappings.push(Mapping {
                start: module.start,
                end: module.end,
                offset: module.offset.wrapping_sub(loaded.start.into()),
                table: loaded.first,
                blocks: loaded.blocks,
            });
        }
        let count = mappings.len() as u32;
        let modules = modules.into_iter().map(|(module, _)| module).collect();
        let mut space = Space {
            first: 0,
            count: 0,
            files,
            modules: Arc::new(Modules::new(modules)),
            users: 1,
        };
        match self.slots.take(count) {
            Some(first) => (space.first, space.count) = (first, count),
            None => self.full += 1,
        }
        if space.count > 0 {
            kernel.tables()?.set_mappings(space.first, &mappings)?;
        }
        self.last_space += 1;
        // An exec meanwhile has another id; what is read here then is nobody's.
        if let Some(mut target) = kernel.target(pid).filter(|target| target.id == id) {
            (target.first_mapping, target.mapping_count) = (space.first, space.count);
            target.mappings_id = self.last_space;
            kernel.set_target(pid, &target)?;
        }
        self.leave(id);
        self.spaces.insert(self.last_space, space);
        self.processes.insert(id, self.last_space);
        Ok(())
    }

    /// Loads the table of a file that nobody has mapped before. One that has none has no blocks.
    fn load_file(
        &mut self,
        kernel: &mut Kernel,
        key: &FileKey,
        table: Option<Table>,
    ) -> Result<Loaded> {
        self.refused += u64::from(table.is_none());
        let table = table.unwrap_or_default().packed();
        let mut loaded = Loaded {
            first: 0,
            words: 0,
            blocks: 0,
            start: table.start,
            users: 1,
        };
        let words = table.words.len() as u32;
        match self.words.take(words) {
            Some(first) => {
                (loaded.first, loaded.words, loaded.blocks) = (first, words, table.blocks);
            }
            None => self.full += 1,
        }
        let tables = kernel.tables()?;
        for (number, rule) in self.rules.since(self.rules_set) {
            tables.set_rule(number, &rule)?;
        }
        self.rules_set = self.rules.len();
        if loaded.words > 0 {
            tables.set_table(loaded.first, &table.words)?;
        }
        self.files.insert(key.clone(), loaded);
        Ok(loaded)
    }

    /// The child incarnation has what its parent has.
    pub(super) fn share(&mut self, id: u32, parent: u32) {
        if let Some(&space) = self.processes.get(&parent) {
            self.leave(id);
            self.processes.insert(id, space);
            if let Some(space) = self.spaces.get_mut(&space) {
                space.users += 1;
            }
        }
    }

    /// An incarnation has mapped something.
    pub(super) fn note_change(&mut self, id: u32) {
        if self.processes.contains_key(&id) && !self.changed.contains(&id) {
            self.changed.push(id);
        }
    }

    /// The incarnations that have mapped something since the last call.
    pub(super) fn take_changed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.changed)
    }

    /// Once a second: forgets the incarnations for which `keep` is false, and what was theirs alone.
    pub(super) fn tick(&mut self, keep: impl Fn(u32) -> bool) {
        for space in std::mem::take(&mut self.retired) {
            self.slots.give_back(space.first, space.count);
            for key in &space.files {
                let Some(loaded) = self.files.get_mut(key) else {
                    continue;
                };
                loaded.users -= 1;
                if loaded.users == 0 {
                    self.words.give_back(loaded.first, loaded.words);
                    self.files.remove(key);
                }
            }
        }
        let gone: Vec<u32> = self
            .processes
            .keys()
            .copied()
            .filter(|&id| !keep(id))
            .collect();
        for id in gone {
            self.leave(id);
        }
    }

    fn leave(&mut self, id: u32) {
        let Some(number) = self.processes.remove(&id) else {
            return;
        };
        let space = self.spaces.get_mut(&number);
        let last = space.is_some_and(|space| {
            space.users -= 1;
            space.users == 0
        });
        if last {
            self.retired.extend(self.spaces.remove(&number));
        }
    }
}

/// The table of a mapped file; `None` when it is no good, or not there any more.
fn table(pid: u32, mapping: &cpython::Mapping, rules: &mut Rules) -> Option<Table> {
    if mapping.path != VDSO {
        return match Table::read(mapping.open(pid).ok()?, rules) {
            // A JIT's dump, or memory that it shares with itself: nobody has promised a table.
            Err(Refusal::NotElf) => Some(Table::default()),
            read => read.ok(),
        };
    }
    let length = usize::try_from(mapping.end - mapping.start).ok()?;
    let mut bytes = vec![0; length.min(VDSO_MAX)];
    let memory = ProcessMemory::new(pid);
    memory.try_read(mapping.start, &mut bytes).ok()?;
    Table::parse(&*bytes, rules).ok()
}

/// The executable mappings of a process, with how to open each; the file in which one of the `known`
/// addresses lies is the interpreter's.
fn modules(pid: u32, known: &[u64]) -> Result<Vec<(Module, cpython::Mapping)>> {
    let parts = cpython::mapped_files(pid)?;
    let interpreter: Vec<FileKey> = parts
        .iter()
        .filter(|part| {
            known
                .iter()
                .any(|address| (part.mapping.start..part.mapping.end).contains(address))
        })
        .map(|part| (Arc::from(&*part.device), part.mapping.inode))
        .collect();
    let executable = parts.into_iter().filter(|part| part.executable);
    Ok(executable
        .map(|part| {
            let key = (Arc::from(part.device), part.mapping.inode);
            let module = Module {
                pid,
                start: part.mapping.start,
                end: part.mapping.end,
                offset: part.mapping.offset,
                interpreter: interpreter.contains(&key),
                device: key.0,
                inode: key.1,
                path: part.mapping.path.as_str().into(),
            };
            (module, part.mapping)
        })
        .collect())
}
