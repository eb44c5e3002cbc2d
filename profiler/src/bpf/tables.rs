//! The maps from which the kernel program walks native frames: written, a part at a time. What they
//! mean is told where the program declares them.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use profiler_ebpf::{MAX_MAPPINGS, MAX_RULES, Mapping, PAGE_ROWS, Page, Rule};

use super::map;

/// Most rows of all files: 64 MiB, which the kernel takes at once.
const PAGES_MAX: u32 = (64 << 20) / size_of::<Page>() as u32;

/// The maps and how large they are.
pub struct Tables {
    mappings: Array<MapData, Mapping>,
    rows: Array<MapData, Page>,
    rules: Array<MapData, Rule>,
}

/// Names and sizes of the maps, for a program that is to walk native frames.
pub(super) const SIZES: [(&str, u32); 3] = [
    ("MAPPINGS", MAX_MAPPINGS),
    ("ROWS", PAGES_MAX),
    ("RULES", MAX_RULES),
];

/// How many rows there is room for.
pub const ROWS_MAX: u32 = PAGES_MAX * PAGE_ROWS;

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Tables> {
        Ok(Tables {
            mappings: Array::try_from(map(ebpf, "MAPPINGS")?)?,
            rows: Array::try_from(map(ebpf, "ROWS")?)?,
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

    /// Sets the rows from this index on: starts and numbers of rules.
    ///
    /// # Errors
    /// When an index is out of range.
    pub fn set_rows(
        &mut self,
        first: u32,
        rows: impl ExactSizeIterator<Item = (u32, u16)>,
    ) -> Result<()> {
        let mut rows = rows.peekable();
        let mut index = first;
        while rows.peek().is_some() {
            let number = index / PAGE_ROWS;
            let failed = || format!("cannot set rows of page {number}");
            let mut page = Box::new(self.rows.get(&number, 0).with_context(failed)?);
            let from = (index % PAGE_ROWS) as usize;
            let places = page.starts[from..].iter_mut().zip(&mut page.rules[from..]);
            // `zip` takes from its left side first: a row that finds no place would be lost.
            for ((start, rule), row) in places.zip(rows.by_ref()) {
                (*start, *rule) = row;
                index += 1;
            }
            self.rows.set(number, *page, 0).with_context(failed)?;
        }
        Ok(())
    }
}
