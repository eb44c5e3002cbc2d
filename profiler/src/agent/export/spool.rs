//! Profiles that wait for one place on disk: a folder with a file for each, bounded by their bytes;
//! beyond it the oldest goes. A file is there whole or not at all, and says itself whether it is
//! whole: the next start finds what this one left. Everything here may wait for the disk.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use prost::bytes::Bytes;

use super::item::{Head, Item};

/// How a file begins; then the length of its head and the checksum of what follows, little-endian,
/// the head as JSON, and the profile's bytes.
const MAGIC: &[u8; 8] = b"pyebpf1\n";
const PREFIX: usize = MAGIC.len() + 4 + 4;
const SUFFIX: &str = ".profile";

/// Most bytes of a file that is read.
const FILE_MAX: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    /// Most bytes of those that wait.
    most: u64,
    bytes: u64,
    /// Sizes by number.
    waiting: BTreeMap<u64, u64>,
    /// Those that are being sent: they stay until they are.
    taken: BTreeMap<u64, u64>,
}

impl Spool {
    /// Makes the folder where there is none and looks for what is in it.
    ///
    /// # Errors
    /// When it can't be made, read or written.
    pub(super) fn open(folder: &Path, most: u64) -> Result<Spool> {
        let said = || {
            format!(
                "cannot use {} as a spool: name another folder with `--spool`",
                folder.display()
            )
        };
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(folder);
        made.with_context(said)?;
        let mut waiting = BTreeMap::new();
        for entry in fs::read_dir(folder).with_context(said)? {
            let entry = entry.with_context(said)?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            if name.starts_with('.') && name.ends_with(SUFFIX) {
                // Was being written when the agent died.
                let _ = fs::remove_file(entry.path());
            } else if let Some(number) = name.strip_suffix(SUFFIX)
                && let Ok(number) = number.parse()
                && let Ok(file) = entry.metadata()
                && file.is_file()
            {
                waiting.insert(number, file.len());
            }
        }
        Ok(Spool {
            folder: folder.to_owned(),
            most,
            bytes: waiting.values().sum(),
            waiting,
            taken: BTreeMap::new(),
        })
    }

    /// How many wait, and their bytes.
    pub(super) fn content(&self) -> (u64, u64) {
        (self.waiting.len() as u64, self.waiting.values().sum())
    }

    /// The greatest number in it.
    pub(super) fn last(&self) -> Option<u64> {
        self.waiting.keys().next_back().copied()
    }

    /// Writes a profile. Gives the sizes of those that had to go for it: itself, where it is larger
    /// than all there may be.
    ///
    /// # Errors
    /// When it can't be written; those that had to go are gone all the same, and are in the error.
    pub(super) fn add(&mut self, item: &Item) -> (Vec<u64>, io::Result<()>) {
        let mut gone = Vec::new();
        if item.size > self.most {
            return (vec![item.size], Ok(()));
        }
        while self.bytes + item.size > self.most
            && let Some(number) = self.waiting.keys().next().copied()
        {
            if number > item.number {
                gone.push(item.size);
                return (gone, Ok(()));
            }
            gone.extend(self.remove(number));
        }
        let written = self.write(item);
        if written.is_ok() {
            self.waiting.insert(item.number, item.size);
            self.bytes += item.size;
        }
        (gone, written)
    }

    fn write(&self, item: &Item) -> io::Result<()> {
        let temporary = self.folder.join(format!(".{:020}{SUFFIX}", item.number));
        let write = || {
            let mut options = File::options();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&temporary)?;
            let head = head(&item.head);
            let mut crc = flate2::Crc::new();
            crc.update(&head);
            crc.update(&item.body);
            let mut start = MAGIC.to_vec();
            start.extend((head.len() as u32).to_le_bytes());
            start.extend(crc.sum().to_le_bytes());
            start.extend(head);
            file.write_all(&start)?;
            file.write_all(&item.body)?;
            fs::rename(&temporary, self.path(item.number))
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
    }

    /// The oldest, which stays until [`remove`](Self::remove) or [`give_back`](Self::give_back). An
    /// error comes with the size of what is lost.
    pub(super) fn take(&mut self) -> Option<Result<Item, (u64, anyhow::Error)>> {
        let (number, size) = self.waiting.pop_first()?;
        self.bytes -= size;
        self.taken.insert(number, size);
        let read = self.read(number, size).map_err(|error| {
            self.remove(number);
            (size, error)
        });
        Some(read)
    }

    fn read(&self, number: u64, size: u64) -> Result<Item> {
        let path = self.path(number);
        let said = || format!("cannot read {}", path.display());
        ensure!(size <= FILE_MAX, "{} has {size} bytes", path.display());
        let mut bytes = Vec::new();
        let file = File::open(&path).with_context(said)?;
        file.take(FILE_MAX)
            .read_to_end(&mut bytes)
            .with_context(said)?;
        let parsed = parse(number, size, bytes.into());
        parsed.with_context(|| format!("{} is broken", path.display()))
    }

    /// A profile that was taken waits again. Gives the sizes of those that have to go, the oldest ones:
    /// others may have come meanwhile.
    pub(super) fn give_back(&mut self, number: u64) -> Vec<u64> {
        if let Some(size) = self.taken.remove(&number) {
            self.bytes += size;
            self.waiting.insert(number, size);
        }
        let mut gone = Vec::new();
        while self.bytes > self.most
            && let Some(number) = self.waiting.keys().next().copied()
        {
            gone.extend(self.remove(number));
        }
        gone
    }

    /// Removes one; gives its size if there was one.
    pub(super) fn remove(&mut self, number: u64) -> Option<u64> {
        let size = match self.taken.remove(&number) {
            Some(size) => size,
            None => {
                let size = self.waiting.remove(&number)?;
                self.bytes -= size;
                size
            }
        };
        // One that can't be removed would be sent again by the next start, which does no harm.
        let _ = fs::remove_file(self.path(number));
        Some(size)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:020}{SUFFIX}"))
    }
}

impl Item {
    pub(super) fn new(number: u64, about: Head, body: Bytes) -> Item {
        let size = (PREFIX + head(&about).len() + body.len()) as u64;
        Item {
            number,
            head: about,
            body,
            size,
        }
    }
}

fn head(head: &Head) -> Vec<u8> {
    serde_json::to_vec(head).expect("texts and numbers are JSON")
}

fn parse(number: u64, size: u64, bytes: Bytes) -> Result<Item> {
    ensure!(bytes.len() as u64 == size, "it changed its size");
    ensure!(
        bytes.len() >= PREFIX && bytes.starts_with(MAGIC),
        "it is no profile of a spool"
    );
    let number_at = |at: usize| {
        let mut four = [0; 4];
        four.copy_from_slice(&bytes[at..at + 4]);
        u32::from_le_bytes(four)
    };
    let length = number_at(MAGIC.len()) as usize;
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[PREFIX..]);
    ensure!(
        crc.sum() == number_at(MAGIC.len() + 4),
        "its checksum is wrong"
    );
    ensure!(length <= bytes.len() - PREFIX, "its head is cut short");
    Ok(Item {
        number,
        head: serde_json::from_slice(&bytes[PREFIX..PREFIX + length])?,
        body: bytes.slice(PREFIX + length..),
        size,
    })
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    fn item(number: u64, bytes: usize) -> Item {
        let head = Head {
            labels: Arc::new([("pod".to_owned(), "größe".to_owned())].into()),
            started: Duration::from_secs(number),
            duration: Duration::from_secs(15),
        };
        Item::new(number, head, vec![number as u8; bytes].into())
    }

    fn numbers(spool: &mut Spool) -> Vec<u64> {
        std::iter::from_fn(|| spool.take().map(|item| item.unwrap().number)).collect()
    }

    #[test]
    fn the_next_start_finds_what_was_left_and_the_oldest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let size = item(1, 1000).size;
        let mut spool = Spool::open(&path, 3 * size).unwrap();
        for number in 1..=4 {
            let (gone, written) = spool.add(&item(number, 1000));
            written.unwrap();
            assert_eq!(gone.len(), usize::from(number == 4));
        }
        assert_eq!(fs::metadata(spool.path(4)).unwrap().len(), size);
        fs::write(path.join(format!(".5{SUFFIX}")), "half").unwrap();
        fs::write(path.join("not ours"), "x").unwrap();

        let mut spool = Spool::open(&path, 3 * size).unwrap();
        assert_eq!((spool.content(), spool.last()), ((3, 3 * size), Some(4)));
        let first = spool.take().unwrap().unwrap();
        assert_eq!(
            (first.head, first.body),
            (item(2, 1000).head, item(2, 1000).body)
        );
        // What is being sent does not wait, and is the first to go when it waits again.
        assert!(spool.add(&item(5, 1000)).0.is_empty());
        assert_eq!(spool.take().unwrap().unwrap().number, 3);
        assert!(spool.give_back(3).is_empty());
        assert_eq!(spool.give_back(2), [size]);
        // An older one than all that wait does not displace them.
        assert_eq!(spool.add(&item(1, 1000)).0, [size]);
        assert_eq!(numbers(&mut spool), [3, 4, 5]);
        for number in [3, 4, 5] {
            spool.remove(number);
        }
        assert_eq!(spool.bytes, 0);
        let left = fs::read_dir(&path).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["not ours"]);
    }

    #[test]
    fn what_is_broken_is_said_and_gone() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
        let broken = |spool: &mut Spool, change: &dyn Fn(&mut Vec<u8>)| {
            spool.add(&item(1, 100)).1.unwrap();
            let mut bytes = fs::read(spool.path(1)).unwrap();
            change(&mut bytes);
            fs::write(spool.path(1), bytes).unwrap();
            // As found by the next start.
            *spool = Spool::open(folder.path(), 1 << 20).unwrap();
            let (_, error) = spool.take().unwrap().unwrap_err();
            assert_eq!((spool.bytes, spool.path(1).exists()), (0, false));
            format!("{error:#}")
        };
        let mut error = |change| broken(&mut spool, change);
        assert!(error(&|bytes| bytes.truncate(10)).ends_with("no profile of a spool"));
        assert!(error(&|bytes| bytes[0] = b'x').ends_with("no profile of a spool"));
        assert!(error(&|bytes| bytes[50] ^= 1).ends_with("its checksum is wrong"));
        let long = u32::MAX.to_le_bytes();
        assert!(error(&|bytes| bytes[8..12].copy_from_slice(&long)).ends_with("cut short"));
    }

    #[test]
    fn one_that_is_larger_than_the_spool_does_not_empty_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path(), 1000).unwrap();
        spool.add(&item(1, 100)).1.unwrap();
        let large = item(2, 2000);
        assert_eq!(spool.add(&large).0, [large.size]);
        assert_eq!(numbers(&mut spool), [1]);
    }
}
