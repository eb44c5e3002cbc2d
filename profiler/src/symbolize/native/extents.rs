//! Where the functions of a stripped file begin and end, as its unwind information has it: an address
//! without a name is at least in the same function as another one. Takes `.eh_frame`; it names nothing.

use gimli::{BaseAddresses, CieOrFde, EhFrame, EndianSlice, LittleEndian, UnwindSection as _};
use object::LittleEndian as LE;
use object::read::ReadRef;
use object::read::elf::SectionHeader as _;

use super::elf::Elf;

/// Most functions of one file: some four times what libtorch has.
const FUNCTIONS_MAX: usize = 2 << 20;

/// The functions of one file, in the order of their addresses, which are counted from the base.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extents {
    base: u64,
    /// Start and size.
    functions: Box<[(u32, u32)]>,
}

impl Extents {
    /// Reads them, as far as there are any.
    pub(super) fn read<'d, R: ReadRef<'d>>(elf: &Elf<'d, R>) -> Extents {
        let Some(section) = elf.section(".eh_frame") else {
            return Extents::default();
        };
        let bytes = elf.bytes(section).unwrap_or_default();
        let address = |name| elf.section(name).map_or(0, |it| it.sh_addr(LE));
        let bases = BaseAddresses::default()
            .set_eh_frame(section.sh_addr(LE))
            .set_text(address(".text"))
            .set_got(address(".got"));
        let section = EhFrame::from(EndianSlice::new(&bytes, LittleEndian));
        let mut functions = Vec::new();
        let mut entries = section.entries(&bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            if let Ok(entry) = partial.parse(EhFrame::cie_from_offset)
                && functions.len() < FUNCTIONS_MAX
            {
                functions.push((entry.initial_address(), entry.len()));
            }
        }
        Extents::of(functions)
    }

    /// Those with these starts and sizes.
    fn of(mut functions: Vec<(u64, u64)>) -> Extents {
        functions.sort_unstable();
        let base = functions.first().map_or(0, |&(start, _)| start);
        let functions = functions.into_iter().filter_map(|(start, size)| {
            let start = u32::try_from(start - base).ok()?;
            Some((start, u32::try_from(size).ok()?))
        });
        let functions = functions.collect();
        Extents { base, functions }
    }

    /// How far into its function an address is, bytes.
    pub(super) fn find(&self, address: u64) -> Option<u64> {
        let address = u32::try_from(address.checked_sub(self.base)?).ok()?;
        let after = self
            .functions
            .partition_point(|&(start, _)| start <= address);
        let &(start, size) = self.functions.get(after.checked_sub(1)?)?;
        let into = address - start;
        (into < size).then_some(into.into())
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.functions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_function_that_covers_it() {
        let functions = vec![(0x2000, 0x10), (0x1000, 0x20), (1 << 40, 8), (0x2010, 4)];
        let extents = Extents::of(functions);
        let into = [
            0xfff,
            0x1000,
            0x101f,
            0x1020,
            0x200f,
            0x2013,
            0x2014,
            1 << 40,
        ]
        .map(|address| extents.find(address));
        let expected = [None, Some(0), Some(31), None, Some(15), Some(3), None, None];
        assert_eq!(into, expected);
        assert_eq!(Extents::of(Vec::new()).find(0), None);
    }
}
