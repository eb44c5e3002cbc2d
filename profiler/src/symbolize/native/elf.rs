//! The parts of an ELF file (64-bit, little-endian) that names come from: its segments, sections,
//! build id, and the link to its debug file. The file belongs to whoever runs it: what is read of it
//! goes through a [`Bounded`] view, sections that are packed are unpacked within the same bound, and
//! nothing is memory-mapped, since a file that shrinks would end us with SIGBUS.

use std::borrow::Cow;
use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::ops::Range;

use flate2::read::ZlibDecoder;
use object::LittleEndian as LE;
use object::elf::{self, FileHeader64, SectionHeader64, Sym64};
use object::pod::slice_from_all_bytes;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable};
use object::read::{ReadCache, ReadRef};

use super::Reason;

type Header = FileHeader64<LE>;
pub(super) type Section = SectionHeader64<LE>;

/// Most program headers and section headers; libraries have some tens of each, and a C++ library
/// with a section for each function has none left once it is linked.
const PROGRAM_HEADERS_MAX: usize = 256;
const SECTIONS_MAX: usize = 65_536;

/// A file, or bytes, of which at most so many are read.
pub(super) struct Bounded<R> {
    data: R,
    left: Cell<u64>,
}

impl<'d, R: ReadRef<'d>> Bounded<R> {
    /// At most `most` bytes of `data`.
    pub(super) fn new(data: R, most: u64) -> Bounded<R> {
        let left = Cell::new(most);
        Bounded { data, left }
    }

    fn take(&self, size: u64) -> Result<(), ()> {
        let left = self.left.get().checked_sub(size).ok_or(())?;
        self.left.set(left);
        Ok(())
    }
}

impl<'d, R: ReadRef<'d>> ReadRef<'d> for &Bounded<R> {
    fn len(self) -> Result<u64, ()> {
        self.data.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'d [u8], ()> {
        self.take(size)?;
        self.data.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'d [u8], ()> {
        let found = self.data.read_bytes_at_until(range, delimiter)?;
        self.take(found.len() as u64)?;
        Ok(found)
    }
}

/// What is read of an open file stays until this is dropped.
pub(super) type Cache = ReadCache<File>;

/// A loadable segment, by the file's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub address: u64,
    pub offset: u64,
    pub size: u64,
    pub executable: bool,
}

impl Segment {
    /// Whether what runs at `address` comes from there.
    pub(super) fn has_code_at(&self, address: u64) -> bool {
        let skip = address.checked_sub(self.address);
        self.executable && skip.is_some_and(|skip| skip < self.size)
    }
}

/// An ELF file whose headers have been read.
pub(super) struct Elf<'d, R: ReadRef<'d>> {
    data: &'d Bounded<R>,
    pub segments: Vec<Segment>,
    pub sections: SectionTable<'d, Header, &'d Bounded<R>>,
    notes: Vec<(u64, u64)>,
}

impl<'d, R: ReadRef<'d>> Elf<'d, R> {
    /// Reads the headers.
    ///
    /// # Errors
    /// When it is no 64-bit little-endian ELF file, or its headers lie outside of it.
    pub(super) fn parse(data: &'d Bounded<R>) -> Result<Elf<'d, R>, Reason> {
        let header = Header::parse(data).map_err(|_| Reason::NotElf)?;
        let endian = header.endian().map_err(|_| Reason::NotElf)?;
        let headers = header
            .program_headers(endian, data)
            .map_err(|_| Reason::Damaged("its program headers"))?;
        if headers.len() > PROGRAM_HEADERS_MAX {
            return Err(Reason::TooLarge("program headers", headers.len() as u64));
        }
        let segments = headers
            .iter()
            .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
            .map(|segment| Segment {
                address: segment.p_vaddr(endian),
                offset: segment.p_offset(endian),
                size: segment.p_filesz(endian),
                executable: segment.p_flags(endian) & elf::PF_X != 0,
            })
            .collect();
        let notes = headers
            .iter()
            .filter(|segment| segment.p_type(endian) == elf::PT_NOTE)
            .map(|segment| (segment.p_offset(endian), segment.p_filesz(endian)))
            .collect();
        // A file that runs may have no section headers, or damaged ones.
        let count = header.shnum(endian, data).unwrap_or_default();
        let sections = match count {
            0 => SectionTable::default(),
            1..=SECTIONS_MAX => header.sections(endian, data).unwrap_or_default(),
            _ => return Err(Reason::TooLarge("sections", count as u64)),
        };
        Ok(Elf {
            data,
            segments,
            sections,
            notes,
        })
    }

    /// The first section of that name that has bytes.
    pub(super) fn section(&self, name: &str) -> Option<&'d Section> {
        let named = self.sections.section_by_name(LE, name.as_bytes());
        let (_, section) = named?;
        (section.sh_type(LE) != elf::SHT_NOBITS).then_some(section)
    }

    /// The bytes of a section, unpacked if need be, if the bound allows.
    pub(super) fn bytes(&self, section: &'d Section) -> Option<Cow<'d, [u8]>> {
        let (offset, size) = (section.sh_offset(LE), section.sh_size(LE));
        if section.sh_type(LE) == elf::SHT_NOBITS {
            return None;
        }
        let bytes = self.data.read_bytes_at(offset, size).ok()?;
        if section.sh_flags(LE) & u64::from(elf::SHF_COMPRESSED) == 0 {
            return Some(Cow::Borrowed(bytes));
        }
        // `Elf64_Chdr`: type (4 bytes), reserved (4), size (8), alignment (8).
        let (header, packed) = bytes.split_at_checked(24)?;
        let word = |at: usize| {
            header
                .get(at..at + 8)?
                .try_into()
                .ok()
                .map(u64::from_le_bytes)
        };
        let (kind, size) = (word(0)? as u32, word(8)?);
        if kind != elf::ELFCOMPRESS_ZLIB {
            return None;
        }
        self.data.take(size).ok()?;
        let mut unpacked = Vec::with_capacity(usize::try_from(size).ok()?);
        let taken = ZlibDecoder::new(packed)
            .take(size)
            .read_to_end(&mut unpacked);
        (taken.is_ok() && unpacked.len() as u64 == size).then_some(Cow::Owned(unpacked))
    }

    /// The bytes of a section by its name.
    pub(super) fn named(&self, name: &str) -> Option<Cow<'d, [u8]>> {
        self.bytes(self.section(name)?)
    }

    /// The symbols of a table, and the bytes of their names; none where either is packed.
    pub(super) fn symbols(&self, table: &'d Section) -> Option<(&'d [Sym64<LE>], &'d [u8])> {
        let plain = |section: &'d Section| match self.bytes(section)? {
            Cow::Borrowed(bytes) => Some(bytes),
            Cow::Owned(_) => None,
        };
        let bytes = plain(table)?;
        let whole = bytes.len() - bytes.len() % size_of::<Sym64<LE>>();
        let symbols = slice_from_all_bytes(bytes.get(..whole)?).ok()?;
        Some((symbols, plain(self.linked(table)?)?))
    }

    /// The section that one refers to.
    pub(super) fn linked(&self, section: &Section) -> Option<&'d Section> {
        let index = object::SectionIndex(section.sh_link(LE) as usize);
        self.sections.section(index).ok()
    }

    /// What the linker made of the file's content: the note `NT_GNU_BUILD_ID` (ld's `--build-id`).
    pub(super) fn build_id(&self) -> Option<&'d [u8]> {
        let notes = self.notes.iter().copied();
        let sections = self.sections.iter();
        let in_sections = sections
            .filter(|section| section.sh_type(LE) == elf::SHT_NOTE)
            .map(|section| (section.sh_offset(LE), section.sh_size(LE)));
        notes.chain(in_sections).find_map(|(offset, size)| {
            let bytes = self.data.read_bytes_at(offset, size.min(4096)).ok()?;
            build_id(bytes)
        })
    }

    /// The name of the debug file and its CRC-32, from `.gnu_debuglink` (gdb's manual, "Debugging
    /// Information in Separate Files"): a name, zeros up to a multiple of four, the checksum.
    pub(super) fn debug_link(&self) -> Option<(String, u32)> {
        let bytes = self.named(".gnu_debuglink")?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        let sum = bytes.get((end + 4) & !3..)?.first_chunk()?;
        let name = std::str::from_utf8(&bytes[..end]).ok()?;
        let plain = !name.is_empty() && !name.contains('/');
        plain.then(|| (name.to_owned(), u32::from_le_bytes(*sum)))
    }
}

/// The build id in a run of notes: sizes of name and content, a type, and both, at multiples of 4.
pub(in crate::symbolize) fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    loop {
        let (header, rest) = notes.split_first_chunk::<12>()?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let (name, content) = (word(0) as usize, word(4) as usize);
        let (owner, rest) = rest.split_at_checked(name.checked_next_multiple_of(4)?)?;
        let id = rest.get(..content)?;
        if word(8) == elf::NT_GNU_BUILD_ID && owner == b"GNU\0" {
            // Long enough to be one, and no longer than any hash.
            return (4..=64).contains(&content).then_some(id);
        }
        notes = rest.get(content.checked_next_multiple_of(4)?..)?;
    }
}

/// The file's own address of what a process has mapped from `offset` in the file. Segments may share
/// a page of the file: the executable one is meant, as code is what runs.
pub(super) fn address_of(segments: &[Segment], offset: u64) -> Option<u64> {
    let within = |segment: &&Segment| {
        offset
            .checked_sub(segment.offset & !0xfff)
            .is_some_and(|skip| skip < segment.size.saturating_add(segment.offset & 0xfff))
    };
    let mut code = segments.iter().filter(|segment| segment.executable);
    let segment = code.find(within).or_else(|| segments.iter().find(within))?;
    Some(
        segment
            .address
            .wrapping_add(offset.wrapping_sub(segment.offset)),
    )
}
