//! Which mapped files are CPythons, so that a mapping of a file that is known to be none costs a
//! look-up and nothing else.

use std::{collections::hash_map::RandomState, hash::BuildHasher as _, io};

use rustc_hash::FxHashMap;

use crate::{
    bpf::{FileId, Mapping},
    cpython::{self, Binaries},
};

/// Most files that are remembered; then all are forgotten.
const KNOWN_MAX: usize = 1 << 16;
/// Ticks after which all are forgotten: a file may have been written over.
const TICKS_KEPT: u32 = 30;

/// Verdicts by file and path. The path belongs to it because two subvolumes of a btrfs have the
/// same device for mappings, and the same inodes.
#[derive(Default)]
pub(super) struct Files {
    verdicts: FxHashMap<(FileId, u64), bool>,
    hasher: RandomState,
    ticks: u32,
}

impl Files {
    /// Whether the mapped file is a CPython, whatever its version. It is read at the first sight.
    ///
    /// # Errors
    /// When it can't be read: the process may be gone.
    pub(super) fn is_python(
        &mut self,
        mapping: &Mapping,
        binaries: &mut Binaries,
    ) -> io::Result<bool> {
        let key = (mapping.file, self.hasher.hash_one(&mapping.path));
        if let Some(&known) = self.verdicts.get(&key) {
            return Ok(known);
        }
        let mapped = cpython::Mapping {
            start: mapping.start,
            end: mapping.end,
            offset: mapping.offset,
            inode: mapping.file.inode,
            path: mapping.path.clone(),
        };
        let found = cpython::is_python(mapping.pid, &mapped, binaries)?;
        if self.verdicts.len() >= KNOWN_MAX {
            self.verdicts.clear();
        }
        self.verdicts.insert(key, found);
        Ok(found)
    }

    /// Once a second.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        if self.ticks >= TICKS_KEPT {
            self.ticks = 0;
            self.verdicts.clear();
        }
    }
}
