//! One record of a perf event's ring, from bytes: include/uapi/linux/perf_event.h, the comments of
//! `enum perf_event_type`. Every length is checked; what is broken gives nothing.

/// `PERF_RECORD_LOST` and `PERF_RECORD_MMAP2`.
const LOST: u32 = 2;
const MMAP2: u32 = 10;
/// `PERF_RECORD_MISC_CPUMODE_MASK`, `PERF_RECORD_MISC_USER`.
const MODE_MASK: u16 = 7;
const MODE_USER: u16 = 2;
/// `PERF_RECORD_MISC_MMAP_BUILD_ID`: a build id in the place of the file's numbers, if asked for.
const HAS_BUILD_ID: u16 = 1 << 14;
/// Most bytes of a path that are kept (`PATH_MAX`).
pub(in super::super) const PATH_MAX: usize = 4096;

/// Which file was mapped, as its file system knows it. Not what `stat` says of it everywhere: on
/// btrfs and overlayfs the device differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    pub major: u32,
    pub minor: u32,
    pub inode: u64,
    /// Tells files apart that had the same inode one after another; 0 where there is none.
    pub generation: u64,
}

/// A process has mapped a part of a file as executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// In our own PID namespace.
    pub pid: u32,
    pub start: u64,
    pub end: u64,
    /// Where in the file it begins, bytes.
    pub offset: u64,
    pub file: FileId,
    /// As the process sees it.
    pub path: String,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Record {
    Mapped(Mapping),
    /// So many records found no room.
    Lost(u64),
    /// Nothing that was asked for: memory without a file, or mapped by the kernel.
    Other,
}

/// Reads one record; `None` when it is broken.
pub(in super::super) fn parse(bytes: &[u8]) -> Option<Record> {
    let mut rest = bytes;
    let kind = u32::from_ne_bytes(take(&mut rest)?);
    let misc = u16::from_ne_bytes(take(&mut rest)?);
    let size = u16::from_ne_bytes(take(&mut rest)?);
    if usize::from(size) != bytes.len() {
        return None;
    }
    match kind {
        LOST => {
            let _id: [u8; 8] = take(&mut rest)?;
            Some(Record::Lost(u64::from_ne_bytes(take(&mut rest)?)))
        }
        MMAP2 => mapped(misc, rest),
        _ => Some(Record::Other),
    }
}

fn mapped(misc: u16, mut rest: &[u8]) -> Option<Record> {
    let rest = &mut rest;
    let pid = u32::from_ne_bytes(take(rest)?);
    let _tid: [u8; 4] = take(rest)?;
    let start = u64::from_ne_bytes(take(rest)?);
    let length = u64::from_ne_bytes(take(rest)?);
    let offset = u64::from_ne_bytes(take(rest)?);
    let file = FileId {
        major: u32::from_ne_bytes(take(rest)?),
        minor: u32::from_ne_bytes(take(rest)?),
        inode: u64::from_ne_bytes(take(rest)?),
        generation: u64::from_ne_bytes(take(rest)?),
    };
    let _protection_and_flags: [u8; 8] = take(rest)?;
    let name = rest.split(|&byte| byte == 0).next()?;
    let end = start.checked_add(length).filter(|&end| end > start)?;
    if misc & MODE_MASK != MODE_USER || misc & HAS_BUILD_ID != 0 || file.inode == 0 {
        return Some(Record::Other);
    }
    let name = &name[..name.len().min(PATH_MAX)];
    Some(Record::Mapped(Mapping {
        pid,
        start,
        end,
        offset,
        file,
        path: String::from_utf8_lossy(name).into_owned(),
    }))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record of this kind with this body.
    pub(in super::super) fn record(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(misc.to_ne_bytes());
        let size = u16::try_from(8 + body.len()).unwrap();
        bytes.extend(size.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    fn mmap2(start: u64, length: u64, inode: u64, path: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        for word in [7_u32, 8] {
            body.extend(word.to_ne_bytes());
        }
        for word in [start, length, 0x2000] {
            body.extend(word.to_ne_bytes());
        }
        for word in [254_u32, 1] {
            body.extend(word.to_ne_bytes());
        }
        for word in [inode, 99] {
            body.extend(word.to_ne_bytes());
        }
        body.extend([0; 8]);
        body.extend(path);
        body
    }

    #[test]
    fn an_executable_mapping_is_read_whole() {
        let body = mmap2(0x40_0000, 0x1000, 12, b"/usr/bin/python3\0\0\0\0\0\0\0\0");
        let expected = Mapping {
            pid: 7,
            start: 0x40_0000,
            end: 0x40_1000,
            offset: 0x2000,
            file: FileId {
                major: 254,
                minor: 1,
                inode: 12,
                generation: 99,
            },
            path: "/usr/bin/python3".to_owned(),
        };
        assert_eq!(
            parse(&record(MMAP2, MODE_USER, &body)),
            Some(Record::Mapped(expected))
        );
    }

    #[test]
    fn losses_are_counted_and_the_rest_passed_over() {
        let mut body = 5_u64.to_ne_bytes().to_vec();
        body.extend(17_u64.to_ne_bytes());
        assert_eq!(parse(&record(LOST, 0, &body)), Some(Record::Lost(17)));
        assert_eq!(parse(&record(3, 0, &[0; 16])), Some(Record::Other));
        let anonymous = mmap2(0x1000, 0x1000, 0, b"//anon\0\0");
        assert_eq!(
            parse(&record(MMAP2, MODE_USER, &anonymous)),
            Some(Record::Other)
        );
        let module = mmap2(0x1000, 0x1000, 3, b"x\0\0\0\0\0\0\0");
        assert_eq!(parse(&record(MMAP2, 1, &module)), Some(Record::Other));
        let build_id = MODE_USER | HAS_BUILD_ID;
        assert_eq!(
            parse(&record(MMAP2, build_id, &module)),
            Some(Record::Other)
        );
    }

    #[test]
    fn what_is_cut_or_absurd_is_refused() {
        let whole = record(
            MMAP2,
            MODE_USER,
            &mmap2(0x1000, 0x1000, 3, b"/a\0\0\0\0\0\0"),
        );
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "cut at {length}");
            // Cut, and honest about it: the path may be short, the numbers may not.
            let mut cut = whole[..length].to_vec();
            if let Some(size) = cut.get_mut(6..8) {
                size.copy_from_slice(&(length as u16).to_ne_bytes());
                assert_eq!(parse(&cut).is_some(), length >= 72, "cut to {length}");
            }
        }
        for (start, length) in [(u64::MAX, 2), (0x1000, u64::MAX), (0x1000, 0)] {
            let body = mmap2(start, length, 3, b"/a\0\0\0\0\0\0");
            assert_eq!(parse(&record(MMAP2, MODE_USER, &body)), None);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = parse(&bytes);
            }
        }
    }
}
