//! The files that a process runs code from, out of `/proc/PID/maps`, and how to open exactly those
//! files: a name alone may mean another file by now, or in another mount namespace.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Most bytes of `/proc/PID/maps` that are read: some hundred thousand mappings.
const MAPS_MAX: u64 = 16 << 20;

/// The first executable mapping of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// Where in the file it begins, bytes.
    pub offset: u64,
    pub inode: u64,
    /// As the process sees it, perhaps with ` (deleted)` at its end.
    pub path: String,
}

/// One executable mapping of each file that process `pid` has mapped, in the order of addresses.
///
/// # Errors
/// When `/proc/PID/maps` can't be read: the process is gone or not ours to look at.
pub(super) fn executable_files(pid: u32) -> Result<Vec<Mapping>> {
    Ok(parse(&maps(pid)?))
}

/// `/proc/PID/maps`, as far as it is of a sensible size.
fn maps(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/maps");
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAPS_MAX).read_to_end(&mut text))
        .with_context(|| format!("cannot read {path}"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A mapped part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// As `/proc/PID/maps` has it.
    pub device: String,
    pub executable: bool,
    pub mapping: Mapping,
}

/// What the kernel calls the library that it maps into every process: a file of which there is no name,
/// and inode 0.
pub const VDSO: &str = "[vdso]";

/// Every mapping of a file that process `pid` has, and [`VDSO`], in the order of addresses.
///
/// # Errors
/// When `/proc/PID/maps` can't be read: the process is gone or not ours to look at.
pub fn mapped_files(pid: u32) -> Result<Vec<Part>> {
    let text = maps(pid)?;
    let parts = text.lines().filter_map(parse_line_of_any);
    let parts = parts.filter(|(_, _, mapping)| mapping.inode != 0 || mapping.path == VDSO);
    Ok(parts
        .map(|(device, executable, mapping)| Part {
            device: device.to_owned(),
            executable,
            mapping,
        })
        .collect())
}

/// Where process `pid` has mapped the first byte of the file that `mapping` is a part of.
pub(super) fn first_byte(pid: u32, mapping: &Mapping) -> Option<u64> {
    first_byte_in(&maps(pid).ok()?, mapping)
}

pub(super) fn first_byte_in(text: &str, mapping: &Mapping) -> Option<u64> {
    let parts = text.lines().filter_map(parse_any);
    let of_file =
        parts.filter(|(_, _, part)| part.inode == mapping.inode && part.path == mapping.path);
    let mut before = of_file.filter(|(_, _, part)| part.offset == 0 && part.start <= mapping.start);
    before.next_back().map(|(_, _, part)| part.start)
}

pub(super) fn parse(text: &str) -> Vec<Mapping> {
    let mut files = Vec::new();
    let mut known = std::collections::HashSet::new();
    for (device, mapping) in text.lines().filter_map(parse_line) {
        if known.insert((device, mapping.inode)) {
            files.push(mapping);
        }
    }
    files
}

/// An executable file mapping and its device: `start-end perms offset device inode path`.
fn parse_line(line: &str) -> Option<(&str, Mapping)> {
    let (device, executable, mapping) = parse_any(line)?;
    executable.then_some((device, mapping))
}

/// A file mapping, its device, and whether it is executable.
fn parse_any(line: &str) -> Option<(&str, bool, Mapping)> {
    parse_line_of_any(line).filter(|(_, _, mapping)| mapping.inode != 0)
}

/// Any mapping.
fn parse_line_of_any(line: &str) -> Option<(&str, bool, Mapping)> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let executable = fields.next()?.as_bytes().get(2) == Some(&b'x');
    let offset = fields.next()?;
    let device = fields.next()?;
    let inode = fields.next()?.parse().ok()?;
    let path = fields.next()?.trim_start();
    let mapping = Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset: u64::from_str_radix(offset, 16).ok()?,
        inode,
        path: path.to_owned(),
    };
    (mapping.start < mapping.end).then_some((device, executable, mapping))
}

impl Mapping {
    /// The mapped file itself: through the kernel's link to it, which needs CAP_SYS_ADMIN or
    /// CAP_CHECKPOINT_RESTORE, else by name under the process's own root if the inode agrees.
    pub(crate) fn file(&self, pid: u32) -> io::Result<(PathBuf, Metadata)> {
        let (start, end) = (self.start, self.end);
        let link = PathBuf::from(format!("/proc/{pid}/map_files/{start:x}-{end:x}"));
        let refused = match fs::metadata(&link) {
            Ok(metadata) => return Ok((link, metadata)),
            Err(refused) => refused,
        };
        let named = PathBuf::from(format!("/proc/{pid}/root{}", self.path));
        let metadata = fs::metadata(&named).map_err(|_| refused)?;
        if metadata.ino() != self.inode || !metadata.is_file() {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        Ok((named, metadata))
    }

    /// The mapped file itself, open.
    ///
    /// # Errors
    /// When the process, or the mapping, is gone, or is not ours to look at.
    pub fn open(&self, pid: u32) -> io::Result<File> {
        File::open(self.file(pid)?.0)
    }

    /// The path as a person knows it.
    pub(crate) fn name(&self) -> PathBuf {
        PathBuf::from(self.path.strip_suffix(" (deleted)").unwrap_or(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_with_code_comes_once_with_its_first_executable_mapping() {
        let files = parse(
            "00400000-00420000 r--p 00000000 fe:00 12  /usr/bin/python3.11\n\
             00420000-00700000 r-xp 00020000 fe:00 12  /usr/bin/python3.11\n\
             00700000-00800000 r-xp 00300000 fe:00 12  /usr/bin/python3.11\n\
             00a5b000-00b00000 rw-p 00000000 00:00 0   [heap]\n\
             7f0000000000-7f0000001000 r-xp 00000000 00:00 0 \n\
             7f0000002000-7f0000003000 r-xp 00001000 fe:01 12  /tmp/a b (deleted)\n\
             7f0000004000-7f0000005000 r--p 00001000 fe:01 13  /usr/share/data\n\
             7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0   [vdso]\n",
        );
        let seen: Vec<_> = files
            .iter()
            .map(|file| (file.start, file.offset, file.path.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (0x42_0000, 0x2_0000, "/usr/bin/python3.11"),
                (0x7f00_0000_2000, 0x1000, "/tmp/a b (deleted)"),
            ]
        );
        assert_eq!(files[1].name(), PathBuf::from("/tmp/a b"));
    }

    #[test]
    fn the_first_byte_of_a_file_lies_before_its_code() {
        let text = "00400000-00420000 r--p 00000000 fe:00 12  /usr/bin/python3.11\n\
             00420000-00700000 r-xp 00020000 fe:00 12  /usr/bin/python3.11\n\
             00800000-00801000 r--p 00000000 fe:00 13  /usr/lib/a.so (deleted)\n\
             00900000-00901000 r--p 00000000 fe:00 13  /usr/lib/a.so (deleted)\n\
             00901000-00902000 r-xp 00001000 fe:00 13  /usr/lib/a.so (deleted)\n\
             00a00000-00a01000 r--p 00000000 fe:00 13  /usr/lib/a.so (deleted)\n\
             00b01000-00b02000 r-xp 00001000 fe:00 14  /usr/lib/b.so\n";
        let found: Vec<_> = parse(text)
            .iter()
            .map(|mapping| first_byte_in(text, mapping))
            .collect();
        assert_eq!(found, [Some(0x40_0000), Some(0x90_0000), None]);
    }

    #[test]
    fn damaged_lines_are_passed_over() {
        for line in [
            "",
            "-",
            "x-y r-xp 0 0 1 /a",
            "2-1 r-xp 0 fe:00 1 /a",
            "1-2 r-xp 0 fe:00 -1 /a",
            "1-2 r-xp zz fe:00 1 /a",
            "1-2 r 0 fe:00 1 /a",
            "1-2 r-xp 0",
        ] {
            assert_eq!(parse(line), [], "{line:?}");
        }
    }
}
