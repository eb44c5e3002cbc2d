//! What the loader goes by: the dynamic segment, from which the exported symbols are found where a
//! file has no section headers, or is gone and only its mapped parts are left.

use object::LittleEndian as LE;
use object::elf::{self, Dyn64, Sym64};
use object::pod::slice_from_all_bytes;

use super::Image;

/// Most entries of a dynamic segment; libraries have some thirty.
const ENTRIES_MAX: u64 = 512;
/// Most symbols of a table that states no end.
const SYMBOLS_MAX: u64 = 1 << 18;
/// Most symbols of one bucket, which has a few.
const CHAIN_MAX: u64 = 4096;
const SYMBOL: u64 = size_of::<Sym64<LE>>() as u64;

/// Where a table of symbols and their names lies: addresses and lengths in bytes.
pub(super) struct Symbols {
    pub table: (u64, u64),
    pub names: (u64, u64),
}

impl Image {
    /// The table of exported symbols as the dynamic segment has it.
    pub(super) fn dynamic_symbols(&self) -> Option<Symbols> {
        let (at, length) = self.dynamic?;
        let length = length.min(ENTRIES_MAX * size_of::<Dyn64<LE>>() as u64);
        let mut bytes = self.bytes(at, length)?;
        bytes.truncate(bytes.len() - bytes.len() % size_of::<Dyn64<LE>>());
        let entries = slice_from_all_bytes::<Dyn64<LE>>(&bytes).ok()?;
        let value = |tag: i64| {
            let entry = entries
                .iter()
                .take_while(|entry| entry.d_tag.get(LE) != elf::DT_NULL)
                .find(|entry| entry.d_tag.get(LE) == tag)?;
            Some(entry.d_val.get(LE))
        };
        // glibc's loader replaces addresses of the file by those in memory.
        let address = |tag: i64| {
            let value = value(tag)?;
            [value, value.wrapping_sub(self.bias())]
                .into_iter()
                .find(|address| self.holds(*address))
        };
        let table = address(elf::DT_SYMTAB)?;
        let names = address(elf::DT_STRTAB)?;
        let count = address(elf::DT_HASH)
            .and_then(|at| self.half(at.wrapping_add(4)))
            .map(u64::from)
            .or_else(|| self.hashed(address(elf::DT_GNU_HASH)?))
            // Linkers put the names right behind the symbols.
            .or_else(|| Some(names.checked_sub(table)? / SYMBOL))?;
        Some(Symbols {
            table: (table, count.min(SYMBOLS_MAX) * SYMBOL),
            names: (names, value(elf::DT_STRSZ)?),
        })
    }

    /// How many symbols a `DT_GNU_HASH` table covers: its last chain ends with the last symbol.
    fn hashed(&self, table: u64) -> Option<u64> {
        let header = |index: u64| self.half(table.wrapping_add(4 * index));
        let (buckets, first, filter) = (header(0)?, header(1)?, header(2)?);
        let at = table.wrapping_add(16 + 8 * u64::from(filter));
        let bytes = self.bytes(at, 4 * u64::from(buckets))?;
        let words = bytes.as_chunks().0.iter();
        let last = words.map(|word| u32::from_le_bytes(*word)).max()?;
        if last < first {
            return Some(first.into());
        }
        let chains = at.wrapping_add(4 * u64::from(buckets));
        let chain = chains.wrapping_add(4 * u64::from(last - first));
        let more = (0..CHAIN_MAX).find(|index| {
            let word = self.half(chain.wrapping_add(4 * index));
            word.is_none_or(|word| word & 1 != 0)
        })?;
        Some(u64::from(last) + more + 1)
    }

    fn half(&self, address: u64) -> Option<u32> {
        let bytes = self.bytes(address, 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }
}
