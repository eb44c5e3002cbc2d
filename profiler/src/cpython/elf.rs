//! Reads the few parts of an ELF file (x86-64, little-endian) that tell whether it is a CPython:
//! named symbols, named sections, bytes at a virtual address. Of a file that is gone it reads what a
//! process has mapped. The file belongs to whoever runs it: each size is bounded before it is read,
//! and what makes no sense is an absence.

mod dynamic;

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use object::LittleEndian as LE;
use object::elf::{self, FileHeader64, ProgramHeader64, SectionHeader64, Sym64};
use object::pod::{Pod, from_bytes, slice_from_all_bytes};

use crate::memory::{ProcessMemory, read_bytes};

/// Most program headers, section headers, and bytes of one string or symbol table that are read:
/// far above a CPython's own (some thousand symbols), so that a claim of more costs nothing.
const PROGRAM_HEADERS_MAX: u16 = 256;
const SECTION_HEADERS_MAX: u16 = 8192;
const TABLE_MAX: u64 = 32 << 20;

/// Most bytes that are read of one file in all, so that looking at it takes bounded time however
/// many sections it declares. A libpython with all its symbols needs less than 5 MB.
const FILE_MAX: u64 = 64 << 20;

/// Most bytes of constants that are searched, and how many of them at a time.
const CONSTANTS_MAX: u64 = 32 << 20;
const PIECE: u64 = 1 << 20;

/// A loadable segment: addresses are the file's own, before any load bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub address: u64,
    pub offset: u64,
    pub file_size: u64,
    pub memory_size: u64,
    pub executable: bool,
    pub writable: bool,
}

/// A defined symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    pub address: u64,
    pub size: u64,
}

/// Which of a file's symbol tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// `.dynsym`: what the file exports and imports.
    Dynamic,
    /// `.symtab`, which has the local symbols too, where it has not been stripped.
    Full,
}

/// An open ELF file, or one that a process has mapped.
pub(super) struct Image {
    file: Budgeted,
    /// Address and length of the dynamic segment.
    dynamic: Option<(u64, u64)>,
    sections: Vec<SectionHeader64<LE>>,
    names: Vec<u8>,
    pub segments: Vec<Segment>,
    /// Whether it names a loader that is to start it, as programs do and few libraries.
    pub is_program: bool,
}

impl Image {
    /// Reads the headers; `None` when the file is no executable or library for this machine.
    pub(super) fn open(file: File) -> Option<Image> {
        let length = file.metadata().ok()?.len();
        Image::read(Content::File { file, length })
    }

    /// The file whose first bytes a process has mapped at `start`: its headers and segments are in
    /// memory, the rest of it is not.
    pub(super) fn mapped(memory: ProcessMemory, start: u64) -> Option<Image> {
        let bias = 0;
        let mut image = Image::read(Content::Memory {
            memory,
            start,
            bias,
        })?;
        let first = image.segments.iter().find(|segment| segment.offset == 0)?;
        let bias = start.wrapping_sub(first.address & !0xfff);
        image.file.content = Content::Memory {
            memory,
            start,
            bias,
        };
        Some(image)
    }

    fn read(content: Content) -> Option<Image> {
        let file = Budgeted {
            content,
            left: Cell::new(FILE_MAX),
        };
        let header = file.read(0, 64)?;
        let (header, _) = from_bytes::<FileHeader64<LE>>(&header).ok()?;
        let ident = &header.e_ident;
        let kind = header.e_type.get(LE);
        if ident.magic != elf::ELFMAG
            || ident.class != elf::ELFCLASS64
            || ident.data != elf::ELFDATA2LSB
            || header.e_machine.get(LE) != elf::EM_X86_64
            || !matches!(kind, elf::ET_EXEC | elf::ET_DYN)
        {
            return None;
        }
        let count = header.e_phnum.get(LE).min(PROGRAM_HEADERS_MAX);
        let headers = file.table::<ProgramHeader64<LE>>(header.e_phoff.get(LE), count)?;
        let mut dynamic = headers
            .iter()
            .filter(|segment| segment.p_type.get(LE) == elf::PT_DYNAMIC)
            .map(|segment| (segment.p_vaddr.get(LE), segment.p_memsz.get(LE)));
        let dynamic = dynamic.next();
        let mut kinds = headers.iter().map(|segment| segment.p_type.get(LE));
        let is_program = kinds.any(|kind| kind == elf::PT_INTERP);
        let segments = headers
            .iter()
            .filter(|segment| segment.p_type.get(LE) == elf::PT_LOAD)
            .map(|segment| Segment {
                address: segment.p_vaddr.get(LE),
                offset: segment.p_offset.get(LE),
                file_size: segment.p_filesz.get(LE),
                memory_size: segment.p_memsz.get(LE),
                executable: segment.p_flags.get(LE) & elf::PF_X != 0,
                writable: segment.p_flags.get(LE) & elf::PF_W != 0,
            })
            .collect();
        // Section headers may be gone or damaged in a file that runs, and are not mapped.
        let count = match file.content {
            Content::File { .. } => header.e_shnum.get(LE).min(SECTION_HEADERS_MAX),
            Content::Memory { .. } => 0,
        };
        let sections = file.table::<SectionHeader64<LE>>(header.e_shoff.get(LE), count);
        let mut image = Image {
            file,
            dynamic,
            sections: sections.unwrap_or_default(),
            names: Vec::new(),
            segments,
            is_program,
        };
        image.names = image
            .section_at(header.e_shstrndx.get(LE).into())
            .unwrap_or_default();
        Some(image)
    }

    /// The address and size of the first section of that name.
    pub(super) fn section(&self, name: &str) -> Option<Symbol> {
        let section = self
            .sections
            .iter()
            .find(|section| is_at(&self.names, section.sh_name.get(LE) as usize, name))?;
        Some(Symbol {
            address: section.sh_addr.get(LE),
            size: section.sh_size.get(LE),
        })
    }

    /// Those of `wanted` that the file defines in its first `table`, where there may be more than
    /// one only in a damaged file, into `found`, which keeps what it has.
    pub(super) fn symbols<'n>(
        &self,
        table: Table,
        wanted: &[&'n str],
        found: &mut HashMap<&'n str, Symbol>,
    ) {
        if let Some((symbols, names)) = self.table(table) {
            for (name, symbol) in look_up(&symbols, &names, wanted) {
                if symbol.st_shndx.get(LE) != elf::SHN_UNDEF {
                    found.entry(name).or_insert(Symbol {
                        address: symbol.st_value.get(LE),
                        size: symbol.st_size.get(LE),
                    });
                }
            }
        }
    }

    /// Whether the file wants one of these symbols from others.
    pub(super) fn imports(&self, wanted: &[&str]) -> bool {
        self.table(Table::Dynamic).is_some_and(|(symbols, names)| {
            let mut found = look_up(&symbols, &names, wanted);
            found.any(|(_, symbol)| symbol.st_shndx.get(LE) == elf::SHN_UNDEF)
        })
    }

    /// The entries of a table of symbols, and their names.
    fn table(&self, table: Table) -> Option<(Vec<u8>, Vec<u8>)> {
        let kind = match table {
            Table::Dynamic => elf::SHT_DYNSYM,
            Table::Full => elf::SHT_SYMTAB,
        };
        let mut sections = self.sections.iter();
        match sections.find(|section| section.sh_type.get(LE) == kind) {
            Some(section) => self
                .bytes_of(section)
                .zip(self.section_at(section.sh_link.get(LE) as usize)),
            None if table == Table::Dynamic => {
                let symbols = self.dynamic_symbols()?;
                let (at, length) = symbols.table;
                let entries = self.bytes(at, length)?;
                let (at, length) = symbols.names;
                Some((entries, self.bytes(at, length)?))
            }
            None => None,
        }
    }

    /// Whether its constants, the segments that are for reading alone, have these bytes in their last
    /// [`CONSTANTS_MAX`].
    pub(super) fn constants_have(&self, wanted: &[u8]) -> bool {
        let constants = self.segments.iter().rev();
        let constants = constants.filter(|segment| !segment.executable && !segment.writable);
        let mut left = CONSTANTS_MAX;
        for segment in constants {
            let mut end = segment.file_size;
            while end > 0 && left > 0 {
                let length = end.min(PIECE).min(left);
                let from = end - length;
                // What begins in this piece may end in the next.
                let more = wanted.len() as u64;
                let Some(at) = segment.address.checked_add(from) else {
                    break;
                };
                let Some(bytes) = self.bytes(at, length + more) else {
                    return false;
                };
                let mut parts = bytes.windows(wanted.len());
                if parts.any(|part| part.first() == wanted.first() && part == wanted) {
                    return true;
                }
                (end, left) = (from, left - length);
            }
        }
        false
    }

    /// Whether the file has section headers to go by.
    pub(super) fn has_sections(&self) -> bool {
        !self.sections.is_empty()
    }

    /// Up to `length` bytes that the file has for `address`: fewer where its segment ends.
    pub(super) fn bytes(&self, address: u64, length: u64) -> Option<Vec<u8>> {
        let (segment, skip) = self.segments.iter().find_map(|segment| {
            let skip = address.checked_sub(segment.address)?;
            (skip < segment.file_size).then_some((segment, skip))
        })?;
        let length = length.min(segment.file_size - skip);
        match self.file.content {
            Content::File { .. } => self.file.read(segment.offset.checked_add(skip)?, length),
            Content::Memory { start, bias, .. } => {
                let offset = address.wrapping_add(bias).wrapping_sub(start);
                self.file.read(offset, length)
            }
        }
    }

    /// How far from its own addresses it was read.
    fn bias(&self) -> u64 {
        match self.file.content {
            Content::File { .. } => 0,
            Content::Memory { bias, .. } => bias,
        }
    }

    /// Whether the program has memory at `address`, in the file or zeroed.
    pub(super) fn holds(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| {
            address
                .checked_sub(segment.address)
                .is_some_and(|skip| skip < segment.memory_size)
        })
    }

    fn section_at(&self, index: usize) -> Option<Vec<u8>> {
        self.bytes_of(self.sections.get(index)?)
    }

    fn bytes_of(&self, section: &SectionHeader64<LE>) -> Option<Vec<u8>> {
        if section.sh_type.get(LE) == elf::SHT_NOBITS {
            return None;
        }
        self.file
            .read(section.sh_offset.get(LE), section.sh_size.get(LE))
    }
}

/// Those symbols of a table that have a name of `wanted`.
fn look_up<'t, 'n>(
    symbols: &'t [u8],
    names: &'t [u8],
    wanted: &'t [&'n str],
) -> impl Iterator<Item = (&'n str, &'t Sym64<LE>)> {
    // A table that ends within an entry keeps its whole ones.
    let whole = symbols.len() - symbols.len() % size_of::<Sym64<LE>>();
    let symbols = slice_from_all_bytes::<Sym64<LE>>(&symbols[..whole]).unwrap_or_default();
    symbols.iter().filter_map(move |symbol| {
        let at = symbol.st_name.get(LE) as usize;
        let name = wanted.iter().find(|name| is_at(names, at, name))?;
        Some((*name, symbol))
    })
}

/// Where the bytes are.
enum Content {
    File {
        file: File,
        length: u64,
    },
    /// The file's first byte is at `start`; its address 0 would be at `bias`.
    Memory {
        memory: ProcessMemory,
        start: u64,
        bias: u64,
    },
}

/// A file of which at most [`FILE_MAX`] bytes are read.
struct Budgeted {
    content: Content,
    /// Bytes that may still be read.
    left: Cell<u64>,
}

impl Budgeted {
    /// `length` bytes at `offset`, unless they are too many or the file ends before.
    fn read(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        if length > TABLE_MAX {
            return None;
        }
        let left = self.left.get().checked_sub(length)?;
        let bytes = match &self.content {
            Content::File { file, length: end } => {
                if offset.checked_add(length)? > *end {
                    return None;
                }
                let mut bytes = vec![0; usize::try_from(length).ok()?];
                file.read_exact_at(&mut bytes, offset).ok()?;
                bytes
            }
            Content::Memory { memory, start, .. } => read_bytes(
                memory,
                start.wrapping_add(offset),
                length,
                TABLE_MAX as usize,
            )?,
        };
        self.left.set(left);
        Some(bytes)
    }

    fn table<T: Pod + Copy>(&self, offset: u64, count: u16) -> Option<Vec<T>> {
        let bytes = self.read(offset, u64::from(count) * size_of::<T>() as u64)?;
        Some(slice_from_all_bytes::<T>(&bytes).ok()?.to_vec())
    }
}

fn is_at(names: &[u8], at: usize, name: &str) -> bool {
    let rest = names.get(at..).unwrap_or_default();
    rest.starts_with(name.as_bytes()) && rest.get(name.len()) == Some(&0)
}
