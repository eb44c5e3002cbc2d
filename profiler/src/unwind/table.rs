//! The rows of one file: its frame description entries sorted, with what lies between them marked as
//! without information, and neighbours that say the same joined.

use std::fs::File;

use gimli::{
    BaseAddresses, CieOrFde, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, UnwindContext,
    UnwindSection as _,
};
use object::{
    Object as _, ObjectSection as _, ReadCache, ReadRef,
    elf::{ELFMAG, PF_X, PT_GNU_EH_FRAME, PT_LOAD},
    read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _},
};
use profiler_ebpf::{Cfa, Rule};
use thiserror::Error;

use super::rules::{Rules, rule};

/// Most bytes of `.eh_frame` that are read: some ten times what the largest libraries have.
const BYTES_MAX: u64 = 512 << 20;
/// Most rows of one file, which as many bytes could make.
const ROWS_MAX: usize = 1 << 23;
/// What compilers and linkers align functions to, at least, where they do.
const ALIGNMENT: u32 = 16;
/// What a program begins with, where the file says nothing of it, is no longer than this: it calls what
/// is written in C, as `_start` of glibc's dynamic linker does (sysdeps/x86_64/dl-machine.h).
const FIRST_BYTES: u64 = 64;

/// From here on, until the next row, this rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Offset in the file, bytes.
    pub start: u32,
    /// The rule's number; 0: there is no unwind information.
    pub rule: u16,
}

/// The rows of one file, in the order of their starts.
#[derive(Debug, Default)]
pub struct Table {
    pub rows: Vec<Row>,
}

/// Why a file has no table.
#[derive(Debug, Error)]
pub enum Refusal {
    #[error("it is no ELF file")]
    NotElf,
    #[error("it is no ELF file of 64 bits, or a damaged one: {0}")]
    Damaged(#[from] object::Error),
    #[error("its unwind information has {0} bytes, more than {BYTES_MAX}")]
    TooLarge(u64),
    #[error("it has more than {ROWS_MAX} rows of unwind information")]
    TooManyRows,
}

/// A part of the file that is mapped as code.
struct Segment {
    address: u64,
    offset: u64,
    size: u64,
}

impl Table {
    /// Reads the unwind information of an ELF file. A file without any has no rows.
    ///
    /// # Errors
    /// When it is no ELF file for this machine, or too large.
    pub fn read(file: File, rules: &mut Rules) -> Result<Table, Refusal> {
        Table::parse(&ReadCache::new(file), rules)
    }

    /// Likewise, from whatever holds its bytes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse<'data>(data: impl ReadRef<'data>, rules: &mut Rules) -> Result<Table, Refusal> {
        if data.read_bytes_at(0, ELFMAG.len() as u64) != Ok(&ELFMAG) {
            return Err(Refusal::NotElf);
        }
        let file = Elf::parse(data)?;
        let endian = object::LittleEndian;
        let code: Vec<Segment> = file
            .elf_program_headers()
            .iter()
            .filter(|header| header.p_type(endian) == PT_LOAD && header.p_flags(endian) & PF_X != 0)
            .map(|header| Segment {
                address: header.p_vaddr(endian),
                offset: header.p_offset(endian),
                size: header.p_filesz(endian),
            })
            .collect();
        let Some((start, bytes)) = eh_frame(&file)? else {
            return Ok(Table::default());
        };
        let address = |name| file.section_by_name(name).map_or(0, |it| it.address());
        let bases = BaseAddresses::default()
            .set_eh_frame(start)
            .set_text(address(".text"))
            .set_got(address(".got"));
        let first = file.elf_header().e_entry(endian);
        flatten(bytes, &bases, (&code, first), rules)
    }
}

type Elf<'data, R> = ElfFile64<'data, object::LittleEndian, R>;

/// The address and the bytes of the unwind information. A file that was stripped of its sections has it
/// where its index for the program's own use points (Linux Standard Base 5.0, 10.6.2), up to a
/// terminator.
fn eh_frame<'data, R: ReadRef<'data>>(
    file: &Elf<'data, R>,
) -> Result<Option<(u64, &'data [u8])>, Refusal> {
    if let Some(section) = file.section_by_name(".eh_frame") {
        if section.size() > BYTES_MAX {
            return Err(Refusal::TooLarge(section.size()));
        }
        return Ok(Some((section.address(), section.data()?)));
    }
    let endian = object::LittleEndian;
    let headers = file.elf_program_headers();
    let index = headers
        .iter()
        .find(|header| header.p_type(endian) == PT_GNU_EH_FRAME);
    let Some(index) = index else {
        return Ok(None);
    };
    let (Ok(bytes), address) = (index.data(endian, file.data()), index.p_vaddr(endian)) else {
        return Ok(None);
    };
    let bases = BaseAddresses::default().set_eh_frame_hdr(address);
    let Ok(index) = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8) else {
        return Ok(None);
    };
    let start = index.eh_frame_ptr().pointer();
    // The segment that it is in, from there on.
    let rest = headers.iter().find_map(|header| {
        let into = start.checked_sub(header.p_vaddr(endian))?;
        let loaded = header.p_type(endian) == PT_LOAD && into < header.p_filesz(endian);
        let bytes = loaded.then(|| header.data(endian, file.data()).ok())??;
        bytes.get(usize::try_from(into).ok()?..)
    });
    Ok(rest.map(|bytes| (start, bytes)))
}

/// The rows of one frame description entry: where in the file it ends, and where in `rows` it is.
struct Entry {
    start: u32,
    end: u32,
    rows: std::ops::Range<usize>,
}

fn flatten(
    bytes: &[u8],
    bases: &BaseAddresses,
    (code, first): (&[Segment], u64),
    rules: &mut Rules,
) -> Result<Table, Refusal> {
    let section = EhFrame::from(EndianSlice::new(bytes, LittleEndian));
    let mut context = UnwindContext::new();
    let mut entries = Vec::new();
    let mut rows = Vec::new();
    let mut all = section.entries(bases);
    // What comes after something that makes no sense is not found: entries have no other order.
    while let Ok(Some(entry)) = all.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let Ok(entry) = partial.parse(EhFrame::cie_from_offset) else {
            continue;
        };
        let (from, to) = (entry.initial_address(), entry.end_address());
        let Some((start, end)) = in_file(code, from, to) else {
            continue;
        };
        let first = rows.len();
        let signal = entry.is_signal_trampoline();
        if let Ok(mut table) = entry.rows(&section, bases, &mut context) {
            while let Ok(Some(row)) = table.next_row() {
                let at = row.start_address();
                if rows.len() >= ROWS_MAX {
                    return Err(Refusal::TooManyRows);
                }
                let Some(into) = at.checked_sub(from).filter(|_| at < to) else {
                    break;
                };
                rows.push(Row {
                    start: start + into as u32,
                    rule: rules.number(rule(&section, row, signal)),
                });
            }
        }
        entries.push(Entry {
            start,
            end,
            rows: first..rows.len(),
        });
    }
    entries.sort_by_key(|entry| entry.start);
    let mut table = Table::default();
    let none = rules.number(Rule::default());
    let end = rules.number(Rule {
        cfa: Cfa::End as u8,
        ..Rule::default()
    });
    // A library begins nowhere, which is 0.
    let first = (first != 0).then(|| in_file(code, first, first.saturating_add(FIRST_BYTES)));
    let first = first.flatten();
    // What has no information, but where a program begins nobody has called.
    let unknown = |table: &mut Table, from: u32, to: u32| {
        table.push(from, none);
        if let Some((start, after)) = first.filter(|&(start, _)| (from..to).contains(&start)) {
            table.push(start, end);
            if after < to {
                table.push(after, none);
            }
        }
    };
    let mut covered = 0;
    for entry in &entries {
        // Entries that overlap are none that a linker makes.
        if entry.start < covered {
            continue;
        }
        if entry.start > covered && !is_padding(covered, entry.start) {
            unknown(&mut table, covered, entry.start);
        }
        let mut last = entry.start;
        for row in &rows[entry.rows.clone()] {
            if row.start >= last {
                table.push(row.start, row.rule);
                last = row.start;
            }
        }
        covered = entry.end;
    }
    if !entries.is_empty() {
        unknown(&mut table, covered, u32::MAX);
    }
    table.rows.shrink_to_fit();
    Ok(table)
}

impl Table {
    fn push(&mut self, start: u32, rule: u16) {
        match self.rows.last_mut() {
            Some(last) if last.rule == rule => {}
            Some(last) if last.start == start => last.rule = rule,
            _ => self.rows.push(Row { start, rule }),
        }
    }
}

/// Whether what lies between two functions only aligns the second: nothing runs there, and a row that
/// says so would be one in six. A function in between that nothing is said of begins aligned, and so
/// leaves no less than an alignment.
fn is_padding(end: u32, start: u32) -> bool {
    start.is_multiple_of(ALIGNMENT) && start - end < ALIGNMENT
}

/// Where addresses of the file's own address space lie in the file, if that is code.
fn in_file(code: &[Segment], from: u64, to: u64) -> Option<(u32, u32)> {
    if from >= to {
        return None;
    }
    let segment = code.iter().find(|segment| {
        let into = from.checked_sub(segment.address);
        into.is_some_and(|into| into < segment.size && to - segment.address <= segment.size)
    })?;
    let offset = |address: u64| {
        let offset = segment.offset.checked_add(address - segment.address)?;
        u32::try_from(offset).ok()
    };
    Some((offset(from)?, offset(to)?))
}

#[cfg(test)]
mod tests;
