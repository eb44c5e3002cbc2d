//! Reads a dictionary of the target: its entries in order, in every table shape that CPython 2.7 and
//! 3.6 to 3.15 use (`Include/dictobject.h`, `Objects/dict-common.h`, from 3.11
//! `Include/internal/pycore_dict.h`). Bounded.

use profiler_ebpf::Layout;
use profiler_ebpf::python::Memory;

use crate::memory::{read_bytes, read_u64};

/// Most entries that are looked at.
const ENTRIES_MAX: u64 = 65_536;

/// `PyDictObject.ma_keys` and `ma_values`, from the type's pointer on.
const KEYS: u64 = 24;
const VALUES: u64 = 32;
/// `PyDictObject.ma_mask` and `ma_table` of 2.7.
const OLD_MASK: u64 = 32;
const OLD_TABLE: u64 = 40;

/// Keys and values, the entries that are in use.
pub(super) type Entries = std::vec::IntoIter<(u64, u64)>;

/// The entries of the dictionary at `address`.
pub(super) fn entries(memory: &impl Memory, layout: &Layout, address: u64) -> Option<Entries> {
    if layout.version < 0x300 {
        let count = read_u64(memory, address.wrapping_add(OLD_MASK))?.checked_add(1)?;
        let start = read_u64(memory, address.wrapping_add(OLD_TABLE))?;
        return Some(in_use(pairs(memory, start, count, true)?));
    }
    let fields = address.wrapping_add(layout.object_type.into());
    let keys = read_u64(memory, fields.wrapping_add(KEYS))?;
    match read_u64(memory, fields.wrapping_add(VALUES))? {
        0 => {
            let entries = table(memory, layout, keys)?;
            Some(in_use(entries))
        }
        values => split(memory, layout, keys, values),
    }
}

/// The entries of a table of `keys` that instances share, with one instance's own `values`.
pub(super) fn split(
    memory: &impl Memory,
    layout: &Layout,
    keys: u64,
    values: u64,
) -> Option<Entries> {
    let entries = table(memory, layout, keys)?;
    // From 3.13 on the array has a header of four bytes, padded.
    let start = match layout.version {
        ..0x30d => values,
        _ => values.wrapping_add(8),
    };
    let size = 8 * entries.len();
    let values = read_bytes(memory, start, size as u64, size)?;
    let words = values.as_chunks().0.iter();
    let values = words.map(|word| u64::from_le_bytes(*word));
    Some(in_use(entries.into_iter().map(|(key, _)| key).zip(values)))
}

fn in_use(entries: impl IntoIterator<Item = (u64, u64)>) -> Entries {
    let entries = entries.into_iter();
    let used: Vec<_> = entries
        .filter(|(key, value)| *key != 0 && *value != 0)
        .collect();
    used.into_iter()
}

/// All entries of a table of keys; those of a shared one have no values.
fn table(memory: &impl Memory, layout: &Layout, keys: u64) -> Option<Vec<(u64, u64)>> {
    let (start, count, with_hash) = match layout.version {
        ..0x30b => {
            // dk_refcnt, dk_size, dk_lookup, dk_usable, dk_nentries, then the indices, of the
            // smallest width that fits.
            let size = read_u64(memory, keys.wrapping_add(8))?;
            let width = match size {
                ..0x100 => 1,
                0x100..0x1_0000 => 2,
                0x1_0000..0x1_0000_0000 => 4,
                _ => return None,
            };
            let count = read_u64(memory, keys.wrapping_add(32))?;
            (keys.wrapping_add(40 + size * width), count, true)
        }
        _ => {
            // dk_log2_size, dk_log2_index_bytes and dk_kind are bytes 8 to 10; dk_nentries; the
            // indices. Kind 0 has entries with a hash.
            let shape = read_u64(memory, keys.wrapping_add(8))?.to_le_bytes();
            let indices = 1_u64
                .checked_shl(shape[1].into())
                .filter(|n| *n < 1 << 32)?;
            let count = read_u64(memory, keys.wrapping_add(24))?;
            (keys.wrapping_add(32 + indices), count, shape[2] == 0)
        }
    };
    pairs(memory, start, count, with_hash)
}

/// Keys and values of `count` entries from `start` on.
fn pairs(memory: &impl Memory, start: u64, count: u64, with_hash: bool) -> Option<Vec<(u64, u64)>> {
    if count > ENTRIES_MAX {
        return None;
    }
    let width = if with_hash { 24 } else { 16 };
    let size = width * count;
    let bytes = read_bytes(memory, start, size, size as usize)?;
    let words: Vec<u64> = bytes
        .as_chunks()
        .0
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .collect();
    let entries = words.chunks_exact(width as usize / 8);
    let entries = entries.filter_map(|entry| match entry {
        [key, value] => Some((*key, *value)),
        [_hash, key, value] => Some((*key, *value)),
        _ => None,
    });
    Some(entries.collect())
}
