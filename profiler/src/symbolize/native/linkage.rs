//! Entries of procedure linkage tables, which have no symbols: `malloc@plt`. Each jumps through a
//! slot of the global offset table, and the relocation of that slot names the function (System V ABI
//! for x86-64, "Procedure Linkage Table"). The jump itself is read, so that it does not matter which
//! of its tables (`.plt`, `.plt.sec`, `.plt.got`) the linker has made, or how long their entries are.

use object::LittleEndian as LE;
use object::elf::{self, Rela64};
use object::pod::slice_from_all_bytes;
use object::read::ReadRef;
use object::read::elf::{SectionHeader as _, Sym as _};
use rustc_hash::FxHashMap;

use super::elf::Elf;

/// Most entries of one file, and relocations that are looked at for their names.
const ENTRIES_MAX: usize = 1 << 16;
const RELOCATIONS_MAX: usize = 1 << 22;
/// Bytes that entries are aligned to, at least; the jump begins within the first of them.
const STEP: usize = 8;
/// Longest name that is kept.
const NAME_MAX: usize = 4096;
/// Bytes of the longest entry.
const LENGTH: u64 = 16;

/// The entries of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct Linkage {
    /// By address: where an entry begins, and what it leads to.
    entries: Box<[(u64, Box<str>)]>,
}

impl Linkage {
    /// Reads them, as far as there are any.
    pub(super) fn read<'d, R: ReadRef<'d>>(elf: &Elf<'d, R>) -> Linkage {
        let slots = slots(elf);
        let mut entries = Vec::new();
        for name in [".plt", ".plt.sec", ".plt.got"] {
            let Some(section) = elf.section(name) else {
                continue;
            };
            let Some(code) = elf.bytes(section) else {
                continue;
            };
            let address = section.sh_addr(LE);
            for (index, bytes) in code.chunks(STEP).enumerate() {
                if entries.len() >= ENTRIES_MAX {
                    break;
                }
                let at = address.wrapping_add((index * STEP) as u64);
                let rest = &code[index * STEP..];
                if let Some(slot) = slot_of(rest, at)
                    && bytes.len() == STEP
                    && let Some(name) = slots.get(&slot)
                {
                    entries.push((at, Box::from(*name)));
                }
            }
        }
        entries.sort();
        Linkage {
            entries: entries.into(),
        }
    }

    /// The entry that has code at `address`, and how far into it that is.
    pub(super) fn find(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.entries.partition_point(|(at, _)| *at <= address);
        let (at, name) = self.entries.get(after.checked_sub(1)?)?;
        (address - at < LENGTH).then(|| (&**name, address - at))
    }
}

/// The slot through which the code at address `at` jumps at once: `jmp *slot(%rip)`, perhaps behind
/// `endbr64`, and with a prefix.
fn slot_of(code: &[u8], at: u64) -> Option<u64> {
    const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
    let jump = code.strip_prefix(ENDBR64).unwrap_or(code);
    // `bnd`, of the protection of bounds that processors no longer have.
    let jump = jump.strip_prefix(&[0xf2]).unwrap_or(jump);
    let distance = jump.strip_prefix(&[0xff, 0x25])?.first_chunk()?;
    let behind = (code.len() - jump.len() + 6) as u64;
    let distance = i64::from(i32::from_le_bytes(*distance));
    Some(at.wrapping_add(behind).wrapping_add_signed(distance))
}

/// The names of functions by the slot that leads to them.
fn slots<'d, R: ReadRef<'d>>(elf: &Elf<'d, R>) -> FxHashMap<u64, &'d str> {
    let mut slots = FxHashMap::default();
    let mut left = RELOCATIONS_MAX;
    let tables = elf.sections.iter();
    for table in tables.filter(|table| table.sh_type(LE) == elf::SHT_RELA) {
        let symbols = elf.linked(table).and_then(|symbols| elf.symbols(symbols));
        let (Some((symbols, names)), Some(bytes)) = (symbols, elf.bytes(table)) else {
            continue;
        };
        let whole = bytes.len() - bytes.len() % size_of::<Rela64<LE>>();
        let relocations = slice_from_all_bytes::<Rela64<LE>>(&bytes[..whole]).unwrap_or_default();
        for relocation in relocations.iter().take(left) {
            let kind = relocation.r_type(LE, false);
            if [elf::R_X86_64_JUMP_SLOT, elf::R_X86_64_GLOB_DAT].contains(&kind)
                && slots.len() < ENTRIES_MAX
                && let Some(symbol) = symbols.get(relocation.r_sym(LE, false) as usize)
                && let Some(name) = name(names, symbol.st_name(LE))
            {
                slots.insert(relocation.r_offset.get(LE), name);
            }
        }
        left = left.saturating_sub(relocations.len());
    }
    slots
}

/// The name that begins at a place in a table of names.
fn name(names: &[u8], at: u32) -> Option<&str> {
    let names = names.get(at as usize..)?;
    let length = names.iter().take(NAME_MAX).position(|&byte| byte == 0)?;
    let name = std::str::from_utf8(&names[..length]).ok()?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_is_that_of_the_first_jump() {
        let jump = [0xff, 0x25, 0x10, 0, 0, 0];
        assert_eq!(slot_of(&jump, 0x1000), Some(0x1016));
        let branch = [&[0xf3, 0x0f, 0x1e, 0xfa, 0xf2][..], &jump].concat();
        assert_eq!(slot_of(&branch, 0x1000), Some(0x101b));
        let back = [0xff, 0x25, 0xfa, 0xff, 0xff, 0xff];
        assert_eq!(slot_of(&back, 0x1000), Some(0x1000));
        for other in [&jump[..5], &[0x68, 0, 0, 0, 0, 0], &[]] {
            assert_eq!(slot_of(other, 0x1000), None);
        }
    }
}
