//! Names of code that a program made at run time, from the file that JITs write for `perf inject
//! --jit`: records of functions with their code, which is passed over (Linux,
//! `tools/perf/Documentation/jitdump-specification.txt`, version 1). A program tells where it is by
//! mapping it as executable, under the name `jit-PID.dump` with the pid of its own namespace; else
//! `/tmp/jit-PID.dump` is tried, where CPython's `-X perf_jit` has it (`Python/perf_jit_trampoline.c` of
//! 3.13). `told` says which files are believed. No lines, and no unwind information, are taken.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::demangle::NAME_MAX;
use super::functions::Functions;
use super::told::Teller;
use super::{Reason, in_root};
use crate::cpython;

/// `JiTD`, as a processor of the same byte order has written it.
const MAGIC: u32 = 0x4a69_5444;
const VERSION: u32 = 1;
/// Bytes of the file's header; of a record's; of what comes before the name in a `JIT_CODE_LOAD`.
const HEADER: u64 = 40;
const RECORD: u64 = 16;
const LOAD: usize = 40;
/// Most bytes of a record that are read.
const BODY_MAX: u64 = (LOAD + NAME_MAX + 1) as u64;
/// Most records that are read at a time.
const RECORDS_MAX: usize = 1 << 20;
/// How long a process without such a file is not asked for it again.
const AGAIN: Duration = Duration::from_secs(1);

/// The functions of one process by their addresses in it.
#[derive(Debug, Default)]
pub struct JitDump {
    functions: Functions,
    file: Option<File>,
    /// When it was last looked for.
    looked: Option<Instant>,
    /// Where in it the next record begins; 0 before the header is read.
    next: u64,
    /// Whether nothing more is taken: the program has closed it, or it is damaged.
    over: bool,
}

impl JitDump {
    /// Reads what process `pid` has written since the last call.
    ///
    /// # Errors
    /// When there is no such file, it is somebody else's or damaged, or the process is gone.
    pub fn update(&mut self, pid: u32) -> Result<(), Reason> {
        if self.file.is_none() {
            if self.looked.is_some_and(|looked| looked.elapsed() < AGAIN) {
                return Err(Reason::NoSymbol);
            }
            self.looked = Some(Instant::now());
            self.file = Some(open(pid)?);
        }
        let Some(file) = self.file.take() else {
            return Err(Reason::NoSymbol);
        };
        let size = file.metadata().map(|file| file.len());
        let read = size.and_then(|size| self.read(&mut BufReader::new(&file), size));
        self.file = Some(file);
        read.map_err(|error| Reason::unreadable(&error))?
    }

    /// The function at an address of the process, and how far from its start that is.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        self.functions.find(address)
    }

    /// Takes in the whole records of a file of `size` bytes that were not read yet.
    fn read(
        &mut self,
        file: &mut (impl Read + Seek),
        size: u64,
    ) -> std::io::Result<Result<(), Reason>> {
        if size < self.next {
            // It began anew.
            (self.functions, self.next, self.over) = (Functions::default(), 0, false);
        }
        if self.next == 0 {
            if size < HEADER {
                return Ok(Ok(()));
            }
            let mut header = [0; HEADER as usize];
            file.rewind()?;
            file.read_exact(&mut header)?;
            match records_of(&header) {
                Some(records) => self.next = records,
                None => return Ok(Err(Reason::Damaged("the header of a jit dump"))),
            }
        }
        file.seek(SeekFrom::Start(self.next))?;
        let mut body = Vec::new();
        for _ in 0..RECORDS_MAX {
            let left = size.saturating_sub(self.next);
            if self.over || left < RECORD {
                break;
            }
            let mut header = [0; RECORD as usize];
            file.read_exact(&mut header)?;
            let (kind, length) = (word(&header, 0), u64::from(word(&header, 4)));
            if length < RECORD {
                self.over = true;
                return Ok(Err(Reason::Damaged("a record of a jit dump")));
            }
            if length > left {
                // It is being written.
                break;
            }
            let wanted = (length - RECORD).min(BODY_MAX);
            body.resize(wanted as usize, 0);
            file.read_exact(&mut body)?;
            self.take(kind, &body);
            self.next += length;
            file.seek_relative((length - RECORD - wanted) as i64)?;
        }
        Ok(Ok(()))
    }

    fn take(&mut self, kind: u32, body: &[u8]) {
        match kind {
            // JIT_CODE_LOAD: pid, tid, vma, code_addr, code_size, code_index, name, code.
            0 => {
                let place = (number(body, 16), number(body, 24));
                let (Some(start), Some(size), Some(name)) = (place.0, place.1, body.get(LOAD..))
                else {
                    return;
                };
                let end = name.iter().position(|&byte| byte == 0);
                let name = &name[..end.unwrap_or(name.len()).min(NAME_MAX)];
                self.add(start, size, &String::from_utf8_lossy(name));
            }
            // JIT_CODE_MOVE: pid, tid, vma, old_code_addr, new_code_addr, code_size, code_index.
            1 => {
                let place = (number(body, 16), number(body, 24), number(body, 32));
                if let (Some(old), Some(start), Some(size)) = place
                    && let Some(name) = self.functions.remove(old)
                {
                    self.add(start, size, &name);
                }
            }
            // JIT_CODE_CLOSE.
            3 => self.over = true,
            // JIT_CODE_DEBUG_INFO, JIT_CODE_UNWINDING_INFO, and what comes later.
            _ => {}
        }
    }

    fn add(&mut self, start: u64, size: u64, name: &str) {
        let end = start.checked_add(size).filter(|&end| end > start);
        if let Some(end) = end.filter(|_| !name.is_empty()) {
            self.functions.insert(start, end, name);
        }
    }
}

/// Where the records begin, if this is the header of such a file: magic, version, size of the header,
/// machine, padding, pid, time, flags.
fn records_of(header: &[u8; HEADER as usize]) -> Option<u64> {
    let records = u64::from(word(header, 8));
    let right = word(header, 0) == MAGIC && word(header, 4) == VERSION && records >= HEADER;
    right.then_some(records)
}

fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte]))
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

/// Opens the file of a process.
fn open(pid: u32) -> Result<File, Reason> {
    let unreadable = |error: std::io::Error| Reason::unreadable(&error);
    let teller = Teller::new(pid)?;
    let name = format!("jit-{}.dump", teller.own_pid);
    let parts = cpython::mapped_files(pid).unwrap_or_default();
    let mapped = parts
        .into_iter()
        .find(|part| part.executable && part.mapping.name().ends_with(&name));
    let (path, file) = match mapped {
        Some(part) => {
            let (path, _) = part.mapping.file(pid).map_err(unreadable)?;
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(path)
                .and_then(in_root::regular);
            (part.mapping.name(), file)
        }
        None => {
            let path = PathBuf::from("/tmp").join(name);
            let file = in_root::open(Some(pid), &path);
            (path, file)
        }
    };
    let file = file.map_err(unreadable)?;
    teller.check(&path, &file.metadata().map_err(unreadable)?)?;
    Ok(file)
}

/// For `crate::fuzz`: a file of any content.
pub(super) fn fuzz(bytes: &[u8]) {
    let mut dump = JitDump::default();
    let read = dump.read(&mut std::io::Cursor::new(bytes), bytes.len() as u64);
    assert!(read.is_ok(), "no read reaches beyond the file's end");
    assert!(dump.next <= bytes.len() as u64 || dump.functions == Functions::default());
    dump.functions.check();
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A record of this kind.
    fn record(kind: u32, body: &[u8]) -> Vec<u8> {
        let length = RECORD as u32 + body.len() as u32;
        [
            &kind.to_le_bytes()[..],
            &length.to_le_bytes(),
            &[7; 8],
            body,
        ]
        .concat()
    }

    /// What stands before a function's name: its thread, and these numbers.
    fn numbers(numbers: &[u64]) -> Vec<u8> {
        let numbers = numbers.iter().flat_map(|number| number.to_le_bytes());
        [9; 8].into_iter().chain(numbers).collect()
    }

    fn load(start: u64, code: &[u8], name: &str) -> Vec<u8> {
        let head = numbers(&[start, start, code.len() as u64, 1]);
        record(0, &[&head, name.as_bytes(), &[0], code].concat())
    }

    fn moved(old: u64, new: u64, size: u64) -> Vec<u8> {
        record(1, &numbers(&[new, old, new, size, 1]))
    }

    fn file(records: &[Vec<u8>]) -> Vec<u8> {
        let words = [MAGIC, VERSION, HEADER as u32, 62, 0, 9];
        let mut file: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.resize(HEADER as usize, 0);
        file.extend(records.concat());
        file
    }

    fn read(dump: &mut JitDump, bytes: &[u8]) -> Result<(), Reason> {
        let read = dump.read(&mut Cursor::new(bytes), bytes.len() as u64);
        read.expect("it is in memory")
    }

    #[test]
    fn functions_are_loaded_moved_and_overridden() {
        let records = [
            load(0x1000, &[0x90; 0x20], "py::f:/a b.py"),
            record(2, &[1; 100]),
            load(0x2000, &[0x90; 0x20], "g"),
            record(4, &[]),
            moved(0x2000, 0x3000, 0x20),
            moved(0x9000, 0x1000, 0x20),
            load(0x1010, &[0x90; 0x20], &"long ".repeat(4096)),
            load(0x5000, &[], "nothing"),
            load(0x6000, &[0], ""),
            record(0, &[1; 39]),
            record(3, &[]),
            load(0x7000, &[0x90; 0x20], "after the end"),
        ];
        let mut dump = JitDump::default();
        assert_eq!(read(&mut dump, &file(&records[..2])), Ok(()));
        assert_eq!(dump.find(0x101f), Some(("py::f:/a b.py", 0x1f)));
        assert_eq!(read(&mut dump, &file(&records)), Ok(()));
        let found = [0x1000, 0x101f, 0x2000, 0x3001, 0x5000, 0x6000, 0x7000]
            .map(|at| dump.find(at).map(|(name, offset)| (name.len(), offset)));
        let long = Some((NAME_MAX, 0xf));
        assert_eq!(found, [None, long, None, Some((1, 1)), None, None, None]);
        assert_eq!(read(&mut dump, &file(&records[2..3])), Ok(()));
        let begun_anew = (dump.find(0x101f), dump.find(0x2000));
        assert_eq!(begun_anew, (None, Some(("g", 0))));
    }

    #[test]
    fn a_record_that_is_being_written_waits() {
        let whole = file(&[load(0x1000, &[0x90; 9], "f"), load(0x2000, &[0x90; 9], "g")]);
        let mut dump = JitDump::default();
        for length in 0..whole.len() {
            assert_eq!(read(&mut dump, &whole[..length]), Ok(()), "{length}");
            assert_eq!(dump.find(0x2000), None);
        }
        assert_eq!(read(&mut dump, &whole), Ok(()));
        assert_eq!(
            (dump.find(0x1000), dump.find(0x2000)),
            (Some(("f", 0)), Some(("g", 0)))
        );
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let mut dump = JitDump::default();
        let damaged = |what| Err(Reason::Damaged(what));
        let mut records = file(&[load(0x1000, &[0x90; 9], "f"), vec![0; 16]]);
        assert_eq!(read(&mut dump, &records), damaged("a record of a jit dump"));
        assert_eq!(dump.find(0x1000), Some(("f", 0)));
        for at in [0, 4, 8] {
            records[at] ^= 0x20;
            let header = read(&mut JitDump::default(), &records);
            assert_eq!(header, damaged("the header of a jit dump"), "{at}");
            records[at] ^= 0x20;
        }
    }

    #[test]
    fn the_file_of_a_process_is_found_by_its_mapping_and_read_as_it_grows() {
        let me = std::process::id();
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = folder.path().join(format!("jit-{me}.dump"));
        let records = [load(0x1000, &[0x90; 9], "f"), load(0x2000, &[0x90; 9], "g")];
        std::fs::write(&path, file(&records[..1])).expect("it can be written");
        let mut dump = JitDump::default();
        let why = dump.update(me).expect_err("nothing tells of it");
        assert!(matches!(why, Reason::Unreadable(_)), "{why}");
        let opened = File::open(&path).expect("it is there");
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: a new mapping of a page of a file that stays as it is but for growing; nobody reads it.
        let marker = unsafe {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&opened);
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                protection,
                libc::MAP_PRIVATE,
                fd,
                0,
            )
        };
        assert_ne!(marker, libc::MAP_FAILED);
        assert_eq!(
            dump.update(me),
            Err(Reason::NoSymbol),
            "it is not looked for again so soon"
        );
        dump.looked = None;
        assert_eq!(dump.update(me), Ok(()));
        assert_eq!(
            (dump.find(0x1000), dump.find(0x2000)),
            (Some(("f", 0)), None)
        );
        std::fs::write(&path, file(&records)).expect("it can be written");
        assert_eq!(dump.update(me), Ok(()));
        assert_eq!(dump.find(0x2000), Some(("g", 0)));
        // SAFETY: it is the mapping that was made above, and nobody has a reference into it.
        unsafe { libc::munmap(marker, 4096) };
    }
}
