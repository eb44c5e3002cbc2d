//! Names of code that a program made at run time, from the file that JITs write for perf:
//! `/tmp/perf-PID.map` with the pid that the process has in its own namespace (Linux,
//! `tools/perf/Documentation/jit-interface.txt`). Each line is `START SIZE name` in hexadecimal; a
//! later line overrides what it overlaps. `told` says which files are believed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use super::demangle::NAME_MAX;
use super::functions::Functions;
use super::told::Teller;
use super::{Reason, in_root};

/// Most bytes that are read of the file at a time, and in all.
const READ_MAX: u64 = 64 << 20;
const FILE_MAX: u64 = 256 << 20;

/// The functions of one process by their addresses in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PerfMap {
    functions: Functions,
    /// How much of the file has been read: whole lines.
    read: u64,
}

impl PerfMap {
    /// Reads what process `pid` has written since the last call.
    ///
    /// # Errors
    /// When there is no such file, it is somebody else's, or the process is gone.
    pub fn update(&mut self, pid: u32) -> Result<(), Reason> {
        let (mut file, size) = open(pid)?;
        if size < self.read {
            // Another program of the same pid, or it began anew.
            *self = PerfMap::default();
        }
        if size > FILE_MAX {
            return Err(Reason::TooLarge("bytes of a perf map", size));
        }
        let unreadable = |error| Reason::unreadable(&error);
        file.seek(SeekFrom::Start(self.read)).map_err(unreadable)?;
        let mut text = Vec::new();
        file.take(READ_MAX)
            .read_to_end(&mut text)
            .map_err(unreadable)?;
        self.read += self.take(&text) as u64;
        Ok(())
    }

    /// Takes in the whole lines of `text`; how many bytes those are.
    fn take(&mut self, text: &[u8]) -> usize {
        let whole = text
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        for line in text[..whole].split(|&byte| byte == b'\n') {
            if let Some((start, end, name)) = parse_line(line) {
                self.functions.insert(start, end, &name);
            }
        }
        whole
    }

    /// The function at an address of the process, and how far from its start that is.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        self.functions.find(address)
    }
}

/// `START SIZE name`, the numbers with or without `0x`, the name to the end of the line.
fn parse_line(line: &[u8]) -> Option<(u64, u64, String)> {
    let mut fields = line.splitn(3, |&byte| byte == b' ');
    let mut number = || {
        let digits = std::str::from_utf8(fields.next()?).ok()?;
        u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let name = fields.next()?.trim_ascii();
    let name = String::from_utf8_lossy(&name[..name.len().min(NAME_MAX)]).into_owned();
    let end = start.checked_add(size).filter(|&end| end > start)?;
    (!name.is_empty()).then_some((start, end, name))
}

/// Opens the file of a process; and its length.
fn open(pid: u32) -> Result<(File, u64), Reason> {
    let teller = Teller::new(pid)?;
    let path = PathBuf::from(format!("/tmp/perf-{}.map", teller.own_pid));
    let unreadable = |error| Reason::unreadable(&error);
    let file = in_root::open(Some(pid), &path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    teller.check(&path, &metadata)?;
    Ok((file, metadata.len()))
}

/// For `crate::fuzz`: a file of any content, asked for addresses that it names and others.
pub(super) fn fuzz(bytes: &[u8]) {
    let mut map = PerfMap::default();
    let taken = map.take(bytes);
    assert!(taken <= bytes.len());
    map.functions.check();
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn of(text: &str) -> PerfMap {
        let mut map = PerfMap::default();
        map.take(text.as_bytes());
        map
    }

    #[test]
    fn functions_are_found_within_their_sizes() {
        let map = of("7f00 10 LazyCompile:~add /app/a.js:1\n0x7f20 0x8 py::f:/a b.py\n");
        assert_eq!(map.find(0x7f00), Some(("LazyCompile:~add /app/a.js:1", 0)));
        assert_eq!(map.find(0x7f0f), Some(("LazyCompile:~add /app/a.js:1", 15)));
        assert_eq!(map.find(0x7f10), None);
        assert_eq!(map.find(0x7f27), Some(("py::f:/a b.py", 7)));
        assert_eq!((map.find(0x7eff), map.find(0x7f28)), (None, None));
    }

    #[test]
    fn a_later_line_overrides_what_it_overlaps() {
        let map = of("100 10 a\n110 10 b\n120 10 c\n108 10 d\n");
        let names = [0x100, 0x108, 0x117, 0x118, 0x120].map(|at| map.find(at));
        assert_eq!(
            names,
            [None, Some(("d", 0)), Some(("d", 15)), None, Some(("c", 0))]
        );
        let all = of("100 10 a\n0 1000 b\n");
        assert_eq!(all.find(0x105), Some(("b", 0x105)));
    }

    #[test]
    fn a_line_that_is_being_written_waits() {
        let mut map = PerfMap::default();
        assert_eq!(map.take(b"100 10 a\n110 1"), 9);
        assert_eq!(map.find(0x110), None);
        assert_eq!(map.take(b"110 10 b\n"), 9);
        assert_eq!(map.find(0x110), Some(("b", 0)));
    }

    #[test]
    fn damaged_lines_are_passed_over() {
        for line in [
            "",
            " ",
            "1",
            "1 2",
            "1 2 ",
            "x 2 a",
            "1 0 a",
            "ffffffffffffffff 1 a",
            "-1 2 a",
        ] {
            let none = of(&format!("{line}\n")).functions;
            assert_eq!(none, Functions::default(), "{line:?}");
        }
    }

    #[test]
    fn the_file_of_a_process_is_read_as_it_grows() {
        let me = std::process::id();
        let path = format!("/tmp/perf-{me}.map");
        fs::write(&path, "1000 10 one\n").expect("it can be written");
        let mut map = PerfMap::default();
        let first = map.update(me);
        fs::write(&path, "1000 10 one\n2000 10 two\n").expect("it can be written");
        let second = map.update(me);
        fs::write(&path, "1 1 a\n").expect("it can be written");
        assert_eq!((first, second), (Ok(()), Ok(())));
        assert_eq!(
            (map.find(0x1000), map.find(0x2000)),
            (Some(("one", 0)), Some(("two", 0)))
        );
        let third = map.update(me);
        let file = File::options()
            .write(true)
            .open(&path)
            .expect("it is there");
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1 << 30);
        file.set_modified(long_ago).expect("it is ours");
        let stale = map.update(me).expect_err("it is another's").to_string();
        assert!(stale.contains("older than the process"), "{stale}");
        fs::remove_file(&path).expect("it is there");
        assert_eq!(
            (third, map.find(0x1000), map.find(1)),
            (Ok(()), None, Some(("a", 0)))
        );
        assert!(matches!(map.update(me), Err(Reason::Unreadable(_))));
    }
}
