//! Source lines and inlined functions, where a file has DWARF.
//!
//! By the crate addr2line over sections that are read whole. blazesym was the other choice: it maps
//! files, so that a target which truncates a library ends the reader with SIGBUS, keeps its own
//! tables of symbols by its own rules for aliases and sizes, and takes twice as long to build (33
//! instead of 15 seconds of one core, demanglers and xz included).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use addr2line::Context;
use gimli::{Dwarf, EndianArcSlice, LittleEndian, SectionId};
use object::LittleEndian as LE;
use object::elf;
use object::read::elf::SectionHeader;

use super::demangle::{NAME_MAX, demangle};
use super::elf::{Bounded, Cache, Elf};
use super::{Inlined, Reason};

type Slice = EndianArcSlice<LittleEndian>;

/// Most bytes of DWARF that are read of one file: twelve times what a libpython has.
const DWARF_MAX: u64 = 256 << 20;
/// Most functions inlined into one another that are shown.
const INLINED_MAX: usize = 64;
/// What has lines and functions; the places of variables are in others.
const SECTIONS: [SectionId; 9] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugAranges,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
];

/// The DWARF of one file.
pub(super) struct Lines {
    context: Context<Slice>,
    bytes: usize,
}

/// What is known of an address.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// The function that was not inlined.
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub inlined: Vec<Inlined>,
}

impl Lines {
    /// Reads the DWARF sections of `file`.
    ///
    /// # Errors
    /// When there is none, it is larger than may be, or damaged.
    pub(super) fn read(file: &File) -> Result<Lines, Reason> {
        let clone = file
            .try_clone()
            .map_err(|error| Reason::unreadable(&error))?;
        let cache = Cache::new(clone);
        let bounded = Bounded::new(&cache, DWARF_MAX);
        let elf = Elf::parse(&bounded)?;
        let mut left = DWARF_MAX;
        let wanted = SECTIONS.iter().chain([&SectionId::DebugStrOffsets]);
        for section in wanted.filter_map(|id| elf.section(id.name())) {
            let size = section.sh_size(LE);
            left = left
                .checked_sub(size)
                .ok_or(Reason::TooLarge("bytes of DWARF", size))?;
        }
        let mut bytes = 0;
        let dwarf = Dwarf::load(|id| {
            let wanted = SECTIONS.contains(&id) || id == SectionId::DebugStrOffsets;
            let section = match wanted {
                true => section(&elf, file, id).ok_or(Reason::Damaged("its DWARF"))?,
                false => Arc::default(),
            };
            bytes += section.len();
            Ok::<_, Reason>(EndianArcSlice::new(section, LittleEndian))
        })?;
        let context = Context::from_dwarf(dwarf).map_err(|_| Reason::Damaged("its DWARF"))?;
        Ok(Lines { context, bytes })
    }

    /// Bytes of memory, about: functions and lines that were looked at take as much as the sections.
    pub(super) fn bytes(&self) -> usize {
        2 * self.bytes
    }

    /// The source of what is at `address` in the file's own addresses.
    pub(super) fn find(&self, address: u64) -> Option<Place> {
        // addr2line adds one to it.
        address.checked_add(1)?;
        let mut frames = self.context.find_frames(address).skip_all_loads().ok()?;
        let mut found = Vec::new();
        while let Ok(Some(frame)) = frames.next() {
            let function = frame.function.as_ref();
            let function =
                function.and_then(|name| Some(bounded(&demangle(&name.raw_name().ok()?))));
            let location = frame.location.as_ref();
            found.push(Inlined {
                function: function.unwrap_or_default(),
                file: location.and_then(|place| Some(bounded(place.file?))),
                line: location.and_then(|place| place.line),
            });
            if found.len() > INLINED_MAX {
                return None;
            }
        }
        let outermost = found.pop()?;
        let function = Some(outermost.function).filter(|name| !name.is_empty());
        Some(Place {
            function,
            file: outermost.file,
            line: outermost.line,
            inlined: found,
        })
    }
}

/// The bytes of a section, none where the file has no such.
fn section<'d>(elf: &Elf<'d, &'d Cache>, file: &File, id: SectionId) -> Option<Arc<[u8]>> {
    let Some(section) = elf.section(id.name()) else {
        return Some(Arc::default());
    };
    if section.sh_flags(LE) & u64::from(elf::SHF_COMPRESSED) != 0 {
        return Some(Arc::from(&*elf.bytes(section)?));
    }
    let (offset, size) = (section.sh_offset(LE), section.sh_size(LE));
    if offset.checked_add(size)? > file.metadata().ok()?.len() {
        return None;
    }
    let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, usize::try_from(size).ok()?).collect();
    file.read_exact_at(Arc::get_mut(&mut bytes)?, offset).ok()?;
    Some(bytes)
}

/// As much of a text as is shown.
fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(NAME_MAX)].to_owned()
}
