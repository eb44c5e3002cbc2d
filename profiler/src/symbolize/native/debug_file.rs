//! Finds the file that has the symbols which a distribution took out of a binary: by build id, or by
//! the name that the binary links to. It is looked for as the process sees its files, then as we see
//! ours, and taken only if it has the same build id, or the checksum that the binary names.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use flate2::Crc;

use super::elf::{Bounded, Cache, Elf};
use super::in_root;

/// Where distributions put them.
const FOLDER: &str = "/usr/lib/debug";
/// Most bytes of which a checksum is made: a second's work.
const SUMMED_MAX: u64 = 1 << 30;
/// Most bytes that are read to see a file's build id.
const HEADERS_MAX: u64 = 8 << 20;

/// What a binary says of its debug file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub build_id: Option<Vec<u8>>,
    /// The name of a file and its CRC-32.
    pub link: Option<(String, u32)>,
}

impl Wanted {
    /// Opens the debug file of the binary that process `pid` knows as `path`.
    pub(super) fn find(&self, pid: Option<u32>, path: &Path) -> Option<File> {
        let roots = match pid {
            Some(_) => vec![pid, None],
            None => vec![None],
        };
        let places = self.places(path);
        roots.iter().find_map(|&root| {
            let mut places = places.iter();
            places.find_map(|place| self.accept(in_root::open(root, place).ok()?))
        })
    }

    /// Where it may lie, the surest first (gdb's manual, "Debugging Information in Separate Files").
    fn places(&self, path: &Path) -> Vec<PathBuf> {
        let mut places = Vec::new();
        if let Some((first, rest)) = self.build_id.as_ref().and_then(|id| id.split_first()) {
            let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
            places.push(format!("{FOLDER}/.build-id/{first:02x}/{rest}.debug").into());
        }
        if let Some((name, _)) = &self.link
            && let Some(folder) = path.parent().filter(|folder| folder.is_absolute())
        {
            let below = folder.strip_prefix("/").unwrap_or(folder);
            // What has the binary's own name would be the binary.
            if path.file_name().is_none_or(|own| own != name.as_str()) {
                places.push(folder.join(name));
            }
            places.push(folder.join(".debug").join(name));
            places.push(Path::new(FOLDER).join(below).join(name));
        }
        places
    }

    fn accept(&self, file: File) -> Option<File> {
        let found = build_id(file.try_clone().ok()?);
        let right = match (&self.build_id, found, &self.link) {
            (Some(wanted), Some(found), _) => *wanted == found,
            (_, _, Some((_, sum))) => checksum(&file)? == *sum,
            _ => false,
        };
        right.then_some(file)
    }
}

fn build_id(file: File) -> Option<Vec<u8>> {
    let cache = Cache::new(file);
    let bounded = Bounded::new(&cache, HEADERS_MAX);
    let elf = Elf::parse(&bounded).ok()?;
    elf.build_id().map(<[u8]>::to_vec)
}

fn checksum(mut file: &File) -> Option<u32> {
    file.rewind().ok()?;
    let mut from = file.take(SUMMED_MAX);
    let mut sum = Crc::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match from.read(&mut piece).ok()? {
            0 => return (from.limit() > 0).then(|| sum.sum()),
            length => sum.update(&piece[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_debug_file_is_looked_for_where_gdb_does() {
        let wanted = Wanted {
            build_id: Some(vec![0xab, 0x01, 0xff]),
            link: Some(("a.debug".to_owned(), 1)),
        };
        let places = wanted.places(Path::new("/opt/lib/a.so"));
        let places: Vec<_> = places.iter().filter_map(|place| place.to_str()).collect();
        assert_eq!(
            places,
            [
                "/usr/lib/debug/.build-id/ab/01ff.debug",
                "/opt/lib/a.debug",
                "/opt/lib/.debug/a.debug",
                "/usr/lib/debug/opt/lib/a.debug",
            ]
        );
    }

    #[test]
    fn a_linked_file_is_taken_only_with_its_checksum() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let (binary, debug) = (folder.path().join("a"), folder.path().join("a.debug"));
        fs::write(&debug, b"123456789").expect("a file can be written");
        // The check value of CRC-32 (ISO 3309).
        for (sum, expected) in [(0xcbf4_3926, true), (0xcbf4_3927, false)] {
            let wanted = Wanted {
                build_id: None,
                link: Some(("a.debug".to_owned(), sum)),
            };
            assert_eq!(wanted.find(None, &binary).is_some(), expected);
        }
    }
}
