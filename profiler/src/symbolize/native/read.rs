//! Reads one file for its functions: its own symbols, those of its debug file, and those that
//! `.gnu_debugdata` has packed. Tells which file has DWARF, and reads none of that.

use std::cell::OnceCell;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use lzma_rust2::XzReader;
use object::elf;
use object::read::ReadRef;

use super::Reason;
use super::debug_file::Wanted;
use super::elf::{Bounded, Cache, Elf, Segment};
use super::extents::Extents;
use super::linkage::Linkage;
use super::table::{Builder, Table};

/// Most bytes that are read of one file for its symbols: those of a libtorch with all of them take
/// 150 MB.
const FILE_MAX: u64 = 256 << 20;
/// Most bytes that `.gnu_debugdata` unpacks to, and memory that unpacking takes, KiB. Fedora's for
/// libpython takes 1 MB.
const UNPACKED_MAX: u64 = 64 << 20;
const UNPACKING_MAX: u32 = 32 << 10;
/// Most bytes of a vDSO; it has two pages.
const VDSO_MAX: u64 = 1 << 20;

/// What is known of a file.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    /// What the linker made of it, if that is there.
    pub build_id: Option<Arc<[u8]>>,
    pub segments: Vec<Segment>,
    pub table: Result<Arc<Table>, Reason>,
    pub linkage: Arc<Linkage>,
    /// Of a file whose symbols are not all there.
    pub extents: Extents,
}

/// Reads the file that process `pid` knows as `path`; with the file that has its DWARF.
pub(super) fn file(
    file: File,
    pid: Option<u32>,
    path: &Path,
) -> Result<(Contents, Option<File>), Reason> {
    let mut dwarf = file.try_clone().ok();
    let cache = Cache::new(file);
    let bounded = Bounded::new(&cache, FILE_MAX);
    let (debug_cache, debug_bounded) = (OnceCell::new(), OnceCell::new());
    let (unpacked, unpacked_bounded) = (OnceCell::new(), OnceCell::new());

    let elf = Elf::parse(&bounded)?;
    let mut symbols = Builder::default();
    add_own(&mut symbols, &elf)?;
    let has_dwarf = elf.section(".debug_info").is_some();
    if !has_dwarf {
        dwarf = None;
    }
    if !(has_dwarf && symbols.complete) {
        let wanted = Wanted {
            build_id: elf.build_id().map(<[u8]>::to_vec),
            link: elf.debug_link(),
        };
        if let Some(found) = wanted.find(pid, path) {
            let clone = found.try_clone().ok();
            let cache = debug_cache.get_or_init(|| Cache::new(found));
            let bounded = debug_bounded.get_or_init(|| Bounded::new(cache, FILE_MAX));
            // A damaged debug file leaves what the binary has.
            if let Ok(debug) = Elf::parse(bounded)
                && symbols.add(&debug, elf::SHT_SYMTAB).is_ok()
                && !has_dwarf
                && debug.section(".debug_info").is_some()
            {
                dwarf = clone;
            }
        }
    }
    if !symbols.complete
        && let Some(bytes) = elf
            .named(".gnu_debugdata")
            .and_then(|packed| unpack(&packed))
    {
        let bytes: &Vec<u8> = unpacked.get_or_init(|| bytes);
        let bounded = unpacked_bounded.get_or_init(|| Bounded::new(bytes.as_slice(), FILE_MAX));
        if let Ok(packed) = Elf::parse(bounded) {
            let _without = symbols.add(&packed, elf::SHT_SYMTAB);
        }
    }
    let contents = Contents {
        build_id: elf.build_id().map(Arc::from),
        linkage: Arc::new(Linkage::read(&elf)),
        extents: extents(&symbols, &elf),
        segments: elf.segments,
        table: symbols.build().map(Arc::new),
    };
    Ok((contents, dwarf))
}

/// Reads an ELF file that is in memory.
pub(super) fn bytes(bytes: &[u8]) -> Result<Contents, Reason> {
    let bounded = Bounded::new(bytes, FILE_MAX);
    let elf = Elf::parse(&bounded)?;
    let mut symbols = Builder::default();
    add_own(&mut symbols, &elf)?;
    let extents = extents(&symbols, &elf);
    let table = symbols.build().map(Arc::new);
    Ok(Contents {
        extents,
        build_id: elf.build_id().map(Arc::from),
        linkage: Arc::new(Linkage::read(&elf)),
        segments: elf.segments,
        table,
    })
}

fn add_own<'d, R: ReadRef<'d>>(symbols: &mut Builder<'d>, elf: &Elf<'d, R>) -> Result<(), Reason> {
    symbols.add(elf, elf::SHT_SYMTAB)?;
    symbols.add(elf, elf::SHT_DYNSYM)
}

fn extents<'d, R: ReadRef<'d>>(symbols: &Builder<'_>, elf: &Elf<'d, R>) -> Extents {
    match symbols.complete {
        true => Extents::default(),
        false => Extents::read(elf),
    }
}

/// What `.gnu_debugdata` has: an ELF file with the symbols that `.dynsym` lacks, packed by xz
/// (gdb's manual, "Debugging information in a special section").
pub(super) fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let reader = XzReader::new_mem_limit(packed, false, UNPACKING_MAX);
    let mut unpacked = Vec::new();
    let mut bounded = reader.take(UNPACKED_MAX);
    bounded.read_to_end(&mut unpacked).ok()?;
    (bounded.limit() > 0).then_some(unpacked)
}

/// Reads our own vDSO, which is every process's.
pub(super) fn vdso() -> Result<Contents, Reason> {
    let maps = std::fs::read_to_string("/proc/self/maps");
    let maps = maps.map_err(|error| Reason::unreadable(&error))?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"));
    let range = line.and_then(|line| line.split(' ').next()?.split_once('-'));
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = range
        .and_then(|(start, end)| Some((hex(start)?, hex(end)?)))
        .filter(|(start, end)| (1..VDSO_MAX).contains(&end.saturating_sub(*start)))
        .ok_or(Reason::NoSymbols)?;
    let mut image = vec![0; (end - start) as usize];
    let memory = File::open("/proc/self/mem");
    memory
        .and_then(|memory| memory.read_exact_at(&mut image, start))
        .map_err(|error| Reason::unreadable(&error))?;
    bytes(&image)
}
