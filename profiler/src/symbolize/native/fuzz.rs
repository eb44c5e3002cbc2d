//! The parsers of this folder for `crate::fuzz`: what must hold of whatever they make.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use super::demangle::{NAME_MAX, demangle};
use super::lines::Lines;
use super::{jit_dump, perf_map, read};

/// A mapped file: its symbols, its DWARF, and the names of its functions.
pub(crate) fn native(bytes: &[u8]) {
    let in_memory = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile());
    let mut file = in_memory.expect("a temporary file can be made");
    file.write_all(bytes).expect("it can be written");
    let clone = || File::try_clone(&file).expect("it is open");
    let _same = read::bytes(bytes);
    let Ok((contents, dwarf)) = read::file(clone(), None, Path::new("/nowhere/at/all")) else {
        return;
    };
    let lines = dwarf.and_then(|file| Lines::read(&file).ok());
    let mut addresses = vec![0x1000, 0x1139, u64::MAX];
    if let Ok(table) = &contents.table {
        for (start, size, name) in table.iter().take(64) {
            let found = table.find(start).expect("each function has its start");
            assert!(size > 0 && found.offset == 0 && !found.name.is_empty());
            addresses.extend([start, start + size - 1, start + size]);
            assert!(!demangle(&String::from_utf8_lossy(name)).is_empty());
        }
    }
    for address in addresses {
        let in_code = |segment: &super::elf::Segment| segment.has_code_at(address);
        if let Some(lines) = &lines
            && contents.segments.iter().any(in_code)
        {
            let _any = lines.find(address);
        }
    }
}

/// A mangled name.
pub(crate) fn mangled(bytes: &[u8]) {
    let name = String::from_utf8_lossy(bytes);
    assert!(demangle(&name).len() <= NAME_MAX.max(name.len()));
}

/// `jit-PID.dump`.
pub(crate) fn dumps_of_code(bytes: &[u8]) {
    jit_dump::fuzz(bytes);
}

/// `/tmp/perf-PID.map`.
pub(crate) fn maps_of_symbols(bytes: &[u8]) {
    perf_map::fuzz(bytes);
}
