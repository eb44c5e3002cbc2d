//! The functions of one file by address, in 16 bytes each and their names: made once from the
//! symbol tables that were found, asked by binary search. A function ends where its size says;
//! one without a size (hand-written assembly) where the next begins in its section.

#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use object::LittleEndian as LE;
use object::elf::{self, Sym64};
use object::read::ReadRef;
use object::read::elf::SectionHeader;

use super::Reason;
use super::elf::{Elf, Section};

/// Most symbols of one file: libtorch has 1.1 million.
const SYMBOLS_MAX: usize = 8 << 20;
/// Longest name that is kept, as the linker has it: types of Rust within types have 27 KiB.
const NAME_MAX: usize = 64 << 10;
/// How many functions around an address are looked at that may not reach it.
const ENCLOSING_MAX: u32 = 64;
const NONE: u32 = u32::MAX;

/// A function: addresses are counted from the table's base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Entry {
    start: u32,
    size: u32,
    /// The innermost function before it that may reach beyond its start.
    around: u32,
    name: u32,
}

/// The functions of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    base: u64,
    entries: Box<[Entry]>,
    /// Each ends with a 0.
    names: Box<[u8]>,
}

/// A function that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found<'t> {
    pub name: &'t [u8],
    /// Of the address, from the function's start.
    pub offset: u64,
}

impl Table {
    /// The function that has code at `address`.
    pub(super) fn find(&self, address: u64) -> Option<Found<'_>> {
        let address = u32::try_from(address.checked_sub(self.base)?).ok()?;
        let after = self.entries.partition_point(|entry| entry.start <= address);
        let mut at = after.checked_sub(1)?;
        for _ in 0..ENCLOSING_MAX {
            let entry = self.entries.get(at)?;
            let offset = address - entry.start;
            if offset < entry.size {
                let name = self.names.get(entry.name as usize..)?;
                let end = name.iter().position(|&byte| byte == 0)?;
                let name = &name[..end];
                return Some(Found {
                    name,
                    offset: offset.into(),
                });
            }
            at = entry.around as usize;
        }
        None
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.entries) + self.names.len()
    }

    /// For telling equal tables: keyed, so that no file can be made to look like another.
    pub(super) fn hash(&self, key: &RandomState) -> u64 {
        let mut hasher = key.build_hasher();
        (self.base, &self.names).hash(&mut hasher);
        self.entries.hash(&mut hasher);
        hasher.finish()
    }

    /// Every function: start, size, name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64, &[u8])> {
        self.entries.iter().map(|entry| {
            let name = &self.names[entry.name as usize..];
            let end = name.iter().position(|&byte| byte == 0).unwrap_or_default();
            let start = self.base + u64::from(entry.start);
            (start, entry.size.into(), &name[..end])
        })
    }
}

/// A symbol of code.
#[derive(Clone, Copy, Debug)]
struct Raw<'d> {
    start: u64,
    size: u64,
    /// Where its section ends.
    limit: u64,
    local: bool,
    name: &'d [u8],
}

impl Raw<'_> {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.size).min(self.limit)
    }

    /// Which of the names of one function is shown: the least.
    fn rank(&self) -> (bool, usize, usize, &[u8]) {
        let underscores = self.name.iter().take_while(|&&byte| byte == b'_').count();
        (self.local, underscores, self.name.len(), self.name)
    }
}

/// Gathers symbols of a file and of those that belong to it.
#[derive(Default)]
pub(super) struct Builder<'d> {
    symbols: Vec<Raw<'d>>,
    /// Whether local functions are among them: else one without a size could be taken to reach over
    /// them.
    pub complete: bool,
}

impl<'d> Builder<'d> {
    /// Adds the functions of the symbol tables of this kind, `SHT_SYMTAB` or `SHT_DYNSYM`.
    ///
    /// # Errors
    /// When there are more than may be.
    pub(super) fn add<R: ReadRef<'d>>(
        &mut self,
        elf: &Elf<'d, R>,
        kind: u32,
    ) -> Result<(), Reason> {
        let Some(section) = elf
            .sections
            .iter()
            .find(|section| section.sh_type(LE) == kind)
        else {
            return Ok(());
        };
        let (symbols, names) = elf
            .symbols(section)
            .ok_or(Reason::Damaged("its symbol table"))?;
        if symbols.len() + self.symbols.len() > SYMBOLS_MAX {
            return Err(Reason::TooLarge("symbols", symbols.len() as u64));
        }
        self.complete |= kind == elf::SHT_SYMTAB;
        let limits: Vec<Option<(u64, u64)>> = elf.sections.iter().map(code).collect();
        let found = symbols
            .iter()
            .filter_map(|symbol| raw(symbol, names, |index| limits.get(index).copied().flatten()));
        self.symbols.extend(found);
        Ok(())
    }

    /// The table; [`Reason::NoSymbols`] when there is no function.
    pub(super) fn build(mut self) -> Result<Table, Reason> {
        // Of functions that begin together the longest first: it is around the others.
        self.symbols.sort_unstable_by(|one, other| {
            let order = |symbol: &Raw<'d>| (symbol.start, u64::MAX - symbol.end());
            let by_place = order(one).cmp(&order(other));
            by_place.then_with(|| one.rank().cmp(&other.rank()))
        });
        self.symbols
            .dedup_by_key(|symbol| (symbol.start, symbol.end()));
        self.size_the_sizeless();
        let base = self.symbols.first().ok_or(Reason::NoSymbols)?.start;
        let mut entries: Vec<Entry> = Vec::with_capacity(self.symbols.len());
        let mut names = Vec::new();
        let mut around: Vec<u32> = Vec::new();
        for symbol in &self.symbols {
            let Some(entry) = Entry::new(symbol, base, names.len()) else {
                continue;
            };
            let reaches = |&at: &u32| {
                let outer = &entries[at as usize];
                u64::from(outer.start) + u64::from(outer.size) > entry.start.into()
            };
            while around.last().is_some_and(|at| !reaches(at)) {
                around.pop();
            }
            let outer = around.last().copied().unwrap_or(NONE);
            around.push(entries.len() as u32);
            entries.push(Entry {
                around: outer,
                ..entry
            });
            names.extend_from_slice(symbol.name);
            names.push(0);
        }
        if entries.is_empty() {
            return Err(Reason::NoSymbols);
        }
        Ok(Table {
            base,
            entries: entries.into(),
            names: names.into(),
        })
    }

    /// Lets each function without a size reach to the next in its section, and drops those that are
    /// labels within another.
    fn size_the_sizeless(&mut self) {
        let complete = self.complete;
        // Where the next function of any kind begins, for each.
        let mut next = u64::MAX;
        for at in (0..self.symbols.len()).rev() {
            let start = self.symbols[at].start;
            let symbol = &mut self.symbols[at];
            if symbol.size == 0 && complete {
                symbol.limit = symbol.limit.min(next);
            }
            if at > 0 && self.symbols[at - 1].start != start {
                next = start;
            }
        }
        let mut reached = 0;
        self.symbols.retain_mut(|symbol| {
            if symbol.size == 0 {
                let label = symbol.start < reached;
                symbol.size = symbol.limit - symbol.start;
                return complete && !label;
            }
            reached = reached.max(symbol.end());
            true
        });
    }
}

impl Entry {
    fn new(symbol: &Raw<'_>, base: u64, name: usize) -> Option<Entry> {
        let start = u32::try_from(symbol.start - base).ok()?;
        let size = symbol.end().checked_sub(symbol.start)?;
        (size > 0).then_some(Entry {
            start,
            size: u32::try_from(size).unwrap_or(u32::MAX),
            around: NONE,
            name: u32::try_from(name).ok()?,
        })
    }
}

/// From where to where a section has code.
fn code(section: &Section) -> Option<(u64, u64)> {
    let executable = section.sh_flags(LE) & u64::from(elf::SHF_EXECINSTR) != 0;
    let start = section.sh_addr(LE);
    executable.then(|| (start, start.saturating_add(section.sh_size(LE))))
}

/// A symbol, if it stands for code of a section; `code` tells from where to where one has some.
fn raw<'d>(
    symbol: &Sym64<LE>,
    names: &'d [u8],
    code: impl Fn(usize) -> Option<(u64, u64)>,
) -> Option<Raw<'d>> {
    let kind = symbol.st_info & 0xf;
    if ![elf::STT_FUNC, elf::STT_GNU_IFUNC, elf::STT_NOTYPE].contains(&kind) {
        return None;
    }
    // Indices that are reserved (absolute, common) lie beyond any section's.
    let (from, to) = code(symbol.st_shndx.get(LE).into())?;
    let start = symbol.st_value.get(LE);
    if !(from..to).contains(&start) {
        return None;
    }
    let name = names.get(symbol.st_name.get(LE) as usize..)?;
    let name = &name[..name.len().min(NAME_MAX)];
    let name = &name[..memchr(name)?];
    // `memcpy@@GLIBC_2.14`: the version is for the linker.
    let plain = name
        .iter()
        .position(|&byte| byte == b'@')
        .unwrap_or(name.len());
    let name = &name[..plain];
    // `$x` marks code for a disassembler, `.L5` is a compiler's own.
    let marker = kind == elf::STT_NOTYPE && (name.starts_with(b"$") || name.starts_with(b".L"));
    (!name.is_empty() && !marker).then_some(Raw {
        start,
        size: symbol.st_size.get(LE),
        limit: to,
        local: symbol.st_info >> 4 == elf::STB_LOCAL,
        name,
    })
}

fn memchr(name: &[u8]) -> Option<usize> {
    name.iter().position(|&byte| byte == 0)
}
