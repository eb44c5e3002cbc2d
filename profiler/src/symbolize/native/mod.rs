//! Names of native functions: a file that a process has mapped and an address in, `malloc`, its
//! source line, and what was inlined there out.
//!
//! Each file is read once for all processes, when its first name is asked for; equal tables of
//! symbols (a library in many containers) are kept once. Symbols come from `.symtab`, from the
//! separate debug file, from `.gnu_debugdata`, and from `.dynsym`; lines from DWARF. An address that
//! no function covers has no name: the nearest is never taken. Nothing here is fast enough for the
//! path of samples: see `background`.

pub mod background;
mod debug_file;
mod demangle;
pub(super) mod elf;
mod extents;
mod functions;
pub(crate) mod fuzz;
mod in_root;
pub mod jit_dump;
mod kept;
mod lines;
mod linkage;
pub mod perf_map;
mod read;
mod table;
#[cfg(test)]
mod tests;
mod told;

use std::fs::{File, Metadata, OpenOptions};
use std::hash::RandomState;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use rustc_hash::FxHashMap;

use crate::cpython::Mapping;

use lines::Lines;
use read::Contents;
use table::Table;

/// Most bytes that symbol tables may take; then those that were not used for longest are forgotten
/// and read again when they are needed. 500 libraries of an ordinary Python take 30 MB.
const TABLES_MAX: usize = 96 << 20;
/// The same for DWARF, with the functions and lines made of it. The last one used may exceed it.
const LINES_MAX: usize = 128 << 20;
/// Most files that are known at a time.
const MODULES_MAX: usize = 1 << 16;
/// Most files that are held open: those with DWARF, and those that were not read yet.
const OPEN_MAX: usize = 256;

/// A function at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As it was written: `foo::bar(int)`.
    pub function: String,
    /// Of the address from the function's start, bytes; 0 where DWARF alone knows the function.
    pub offset: u64,
    /// The source file, and the line counted from 1: of the call, where functions are inlined.
    pub file: Option<String>,
    pub line: Option<u32>,
    /// What was inlined into it there, innermost first.
    pub inlined: Vec<Inlined>,
}

/// A function that was inlined into another; its name may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inlined {
    pub function: String,
    pub file: Option<String>,
    pub line: Option<u32>,
}

/// Why an address has no name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    /// The file or the process is gone, or not ours to read.
    #[error("cannot read it: {0}")]
    Unreadable(String),
    #[error("not an ELF file of 64 bits")]
    NotElf,
    /// Which part of it.
    #[error("{0} is damaged")]
    Damaged(&'static str),
    /// What there is too much of, and how much.
    #[error("too many {0}: {1}")]
    TooLarge(&'static str, u64),
    #[error("stripped: it has no symbols")]
    NoSymbols,
    #[error("no symbol there")]
    NoSymbol,
    #[error("too many files")]
    TooManyFiles,
}

/// What a [`Reason`] is about, or what is missing of a stack, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// What programs call it. Names stay.
    pub key: &'static str,
    /// What a person reads.
    pub text: &'static str,
}

impl Kind {
    pub(super) const UNANSWERED: Kind = Kind::new("unanswered", "not looked for before the end");
    pub(super) const TOO_MANY: Kind = Kind::new("too_many", "more places than pyebpf tells apart");

    const fn new(key: &'static str, text: &'static str) -> Kind {
        Kind { key, text }
    }
}

impl Reason {
    /// Which kind it is of.
    pub fn kind(&self) -> Kind {
        match self {
            Reason::Unreadable(_) => Kind::new("unreadable", "what would tell can't be read"),
            Reason::NotElf => Kind::new("not_elf", "the file is no ELF file of 64 bits"),
            Reason::Damaged(_) => Kind::new("damaged", "the file is damaged"),
            Reason::TooLarge(..) => Kind::new("too_large", "the file has too much of something"),
            Reason::NoSymbols => Kind::new("no_symbols", "the file is stripped"),
            Reason::NoSymbol => Kind::new("no_symbol", "no symbol there"),
            Reason::TooManyFiles => Kind::new("too_many_files", "too many files"),
        }
    }

    fn unreadable(error: &io::Error) -> Reason {
        Reason::Unreadable(error.to_string())
    }
}

/// A file that processes map, as [`Natives`] knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModuleId(u32);

impl ModuleId {
    /// The number itself.
    pub fn index(self) -> u32 {
        self.0
    }
}

/// Device, inode, time of the last change in seconds and nanoseconds, size: an inode is used again.
type FileKey = (u64, u64, i64, i64, u64);

/// Most bytes that are kept.
#[derive(Clone, Copy, Debug)]
struct Limits {
    tables: usize,
    lines: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            tables: TABLES_MAX,
            lines: LINES_MAX,
        }
    }
}

/// Every file whose functions were asked for.
#[derive(Default)]
pub struct Natives {
    modules: Vec<Module>,
    by_file: FxHashMap<FileKey, ModuleId>,
    vdso: Option<ModuleId>,
    /// Equal tables are one.
    tables: FxHashMap<u64, Weak<Table>>,
    key: RandomState,
    /// Counts the questions, for telling what was not used for longest.
    now: u64,
    held: usize,
    limits: Limits,
}

/// What is known of one file.
struct Module {
    place: Place,
    state: State,
    used: u64,
}

/// Where a file can be read.
enum Place {
    /// By the mapping of a process, the last that asked.
    Mapped {
        pid: u32,
        mapping: Mapping,
        key: FileKey,
    },
    /// Our own vDSO.
    Vdso,
}

enum State {
    /// With the file, if that is held.
    Unread(Option<File>),
    Read(Contents, Source),
    Refused(Reason),
}

/// What is known of a file's lines.
enum Source {
    None,
    /// In this file.
    Unread(File),
    Read(File, Box<Lines>),
}

impl Natives {
    /// The file that process `pid` has mapped. It is opened if it is new, and not read.
    ///
    /// # Errors
    /// When the file can't be opened, or there are too many.
    pub fn module(&mut self, pid: u32, mapping: &Mapping) -> Result<ModuleId, Reason> {
        let (path, metadata) = mapping
            .file(pid)
            .map_err(|error| Reason::unreadable(&error))?;
        let key = file_key(&metadata);
        if let Some(&id) = self.by_file.get(&key) {
            if let Some(Module {
                place:
                    Place::Mapped {
                        pid: known,
                        mapping: place,
                        ..
                    },
                ..
            }) = self.modules.get_mut(id.0 as usize)
            {
                *known = pid;
                place.clone_from(mapping);
            }
            return Ok(id);
        }
        let file = open(path, key)?;
        let held = self.held < OPEN_MAX;
        self.held += usize::from(held);
        let place = Place::Mapped {
            pid,
            mapping: mapping.clone(),
            key,
        };
        let id = self.add(place, State::Unread(held.then_some(file)))?;
        self.by_file.insert(key, id);
        Ok(id)
    }

    /// The code that the kernel maps into every process; ours is like everyone's.
    ///
    /// # Errors
    /// When there are too many files.
    pub fn vdso(&mut self) -> Result<ModuleId, Reason> {
        match self.vdso {
            Some(id) => Ok(id),
            None => {
                let id = self.add(Place::Vdso, State::Unread(None))?;
                self.vdso = Some(id);
                Ok(id)
            }
        }
    }

    fn add(&mut self, place: Place, state: State) -> Result<ModuleId, Reason> {
        if self.modules.len() >= MODULES_MAX {
            return Err(Reason::TooManyFiles);
        }
        let id = ModuleId(self.modules.len() as u32);
        self.modules.push(Module {
            place,
            state,
            used: 0,
        });
        Ok(id)
    }

    /// The file's `NT_GNU_BUILD_ID`, if it can be read and has one.
    pub fn build_id(&mut self, module: ModuleId) -> Option<Arc<[u8]>> {
        self.contents(module).ok()?.build_id.clone()
    }

    /// The file's own address of the byte at `offset` in the file, for what is mapped from there.
    ///
    /// # Errors
    /// When the file can't be read, or no segment has that byte.
    pub fn address(&mut self, module: ModuleId, offset: u64) -> Result<u64, Reason> {
        let contents = self.contents(module)?;
        elf::address_of(&contents.segments, offset).ok_or(Reason::NoSymbol)
    }

    /// The function that has the instruction at `address`, by the file's own addresses. Of a frame
    /// that has called another ask for the byte before its return address: that is in the call.
    ///
    /// # Errors
    /// With the reason why there is no name.
    pub fn name(&mut self, module: ModuleId, address: u64) -> Result<Name, Reason> {
        let mut segments = self.contents(module)?.segments.iter();
        if !segments.any(|segment| segment.has_code_at(address)) {
            return Err(Reason::NoSymbol);
        }
        self.read_lines(module);
        let Some(Module {
            state: State::Read(contents, source),
            ..
        }) = self.modules.get(module.0 as usize)
        else {
            return Err(Reason::NoSymbol);
        };
        let place = match source {
            Source::Read(_, lines) => lines.find(address).unwrap_or_default(),
            _ => lines::Place::default(),
        };
        let found = contents.table.as_ref().map(|table| table.find(address));
        let (function, offset) = match (found, place.function) {
            (Ok(Some(found)), _) => (
                demangle::demangle(&String::from_utf8_lossy(found.name)),
                found.offset,
            ),
            (_, Some(function)) => (function, 0),
            _ if let Some((name, offset)) = contents.linkage.find(address) => {
                (format!("{}@plt", demangle::demangle(name)), offset)
            }
            (Ok(None), None) => return Err(Reason::NoSymbol),
            (Err(reason), None) => return Err(reason.clone()),
        };
        Ok(Name {
            function,
            offset,
            file: place.file,
            line: place.line,
            inlined: place.inlined,
        })
    }

    /// Of an address without a name: how far it is from where its function begins, bytes, if the file
    /// tells that.
    pub fn into_function(&mut self, module: ModuleId, address: u64) -> Option<u64> {
        self.contents(module).ok()?.extents.find(address)
    }

    /// What the file has, read now if it was not.
    fn contents(&mut self, module: ModuleId) -> Result<&Contents, Reason> {
        self.now += 1;
        let at = module.0 as usize;
        let known = self.modules.get_mut(at).ok_or(Reason::TooManyFiles)?;
        known.used = self.now;
        if let State::Unread(held) = &mut known.state {
            self.held -= usize::from(held.is_some());
            let read = known.place.read(held.take());
            let state = match read {
                Ok((contents, dwarf)) => self.keep(contents, dwarf),
                Err(reason) => State::Refused(reason),
            };
            self.modules[at].state = state;
            self.forget_tables(module);
        }
        match &self.modules[at].state {
            State::Read(contents, _) => Ok(contents),
            State::Refused(reason) => Err(reason.clone()),
            State::Unread(_) => Err(Reason::NoSymbols),
        }
    }
}

impl Place {
    /// Reads the file, from `held` if that is it; and which file has DWARF.
    fn read(&self, held: Option<File>) -> Result<(Contents, Option<File>), Reason> {
        match self {
            Place::Mapped { pid, mapping, key } => {
                let file = match held {
                    Some(file) => file,
                    None => {
                        let place = mapping.file(*pid);
                        let (path, _) = place.map_err(|error| Reason::unreadable(&error))?;
                        open(path, *key)?
                    }
                };
                read::file(file, Some(*pid), &mapping.name())
            }
            Place::Vdso => Ok((read::vdso()?, None)),
        }
    }
}

/// Opens a file that has this key.
fn open(path: PathBuf, key: FileKey) -> Result<File, Reason> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .and_then(in_root::regular)
        .and_then(|file| Ok((file_key(&file.metadata()?), file)));
    match opened.map_err(|error| Reason::unreadable(&error))? {
        (found, file) if found == key => Ok(file),
        _ => Err(Reason::Unreadable("another file is there now".to_owned())),
    }
}

fn file_key(metadata: &Metadata) -> FileKey {
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    (
        metadata.dev(),
        metadata.ino(),
        changed.0,
        changed.1,
        metadata.size(),
    )
}
