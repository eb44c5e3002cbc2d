//! The maps from which the kernel program walks native frames: written, a part at a time. What they
//! mean is told where the program declares them.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use profiler_ebpf::{MAX_MAPPINGS, MAX_RULES, Mapping, PAGE_WORDS, Page, Rule};

use super::map;

/// Most words of all files' tables: 64 MiB, which the kernel takes at once.
const PAGES_MAX: u32 = (64 << 20) / size_of::<Page>() as u32;

/// The maps and how large they are.
pub struct Tables {
    mappings: Array<MapData, Mapping>,
    files: Array<MapData, Page>,
    rules: Array<MapData, Rule>,
}

/// Names and sizes of the maps, for a program that is to walk native frames.
pub(super) const SIZES: [(&str, u32); 3] = [
    ("MAPPINGS", MAX_MAPPINGS),
    ("TABLES", PAGES_MAX),
    ("RULES", MAX_RULES),
];

/// How many words of tables there is room for.
pub const WORDS_MAX: u32 = PAGES_MAX * PAGE_WORDS;

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Tables> {
        Ok(Tables {
            mappings: Array::try_from(map(ebpf, "MAPPINGS")?)?,
            files: Array::try_from(map(ebpf, "TABLES")?)?,
            rules: Array::try_from(map(ebpf, "RULES")?)?,
        })
    }

    /// Sets the mappings from this slot on.
    ///
    /// # Errors
    /// When a slot is out of range.
    pub fn set_mappings(&mut self, first: u32, mappings: &[Mapping]) -> Result<()> {
        for (slot, mapping) in (first..).zip(mappings) {
            let set = self.mappings.set(slot, mapping, 0);
            set.with_context(|| format!("cannot set mapping {slot}"))?;
        }
        Ok(())
    }

    /// Sets the rule of this number.
    ///
    /// # Errors
    /// When the kernel refuses, which it has no reason to.
    pub fn set_rule(&mut self, number: u16, rule: &Rule) -> Result<()> {
        let set = self.rules.set(number.into(), rule, 0);
        set.with_context(|| format!("cannot set rule {number}"))
    }

    /// Sets the words of a file's table, from this index on.
    ///
    /// # Errors
    /// When an index is out of range.
    pub fn set_table(&mut self, first: u32, words: &[u32]) -> Result<()> {
        let mut index = first as usize;
        let mut left = words;
        while !left.is_empty() {
            let number = index as u32 / PAGE_WORDS;
            let failed = || format!("cannot set page {number} of tables");
            let mut page = Box::new(self.files.get(&number, 0).with_context(failed)?);
            let room = &mut page[index % PAGE_WORDS as usize..];
            let (now, later) = left.split_at(left.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.files.set(number, *page, 0).with_context(failed)?;
            index += now.len();
            left = later;
        }
        Ok(())
    }
}
