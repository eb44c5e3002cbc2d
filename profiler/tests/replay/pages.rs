//! The memory of a recording: pages of which some lines of 64 bytes are known. What is not known
//! can't be read; tests write into it, make whole pages known, or forget them.

use std::collections::BTreeMap;

use profiler_ebpf::python::Memory;

const PAGE: u64 = 4096;
/// The grain of what is recorded: a cache line, so that a read a few bytes longer also works.
pub(crate) const LINE: u64 = 64;

/// Pages of memory of which only some lines are known.
#[derive(Clone, Default)]
pub(crate) struct Pages(BTreeMap<u64, Page>);

#[derive(Clone)]
struct Page {
    bytes: Box<[u8; PAGE as usize]>,
    /// One bit for each line.
    known: u64,
}

impl Pages {
    /// Sets bytes; the lines that they lie in are known from now on.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) {
        for (byte, at) in bytes.iter().zip(address..) {
            let page = self.0.entry(at & !(PAGE - 1)).or_insert_with(|| Page {
                bytes: Box::new([0; PAGE as usize]),
                known: 0,
            });
            page.bytes[(at % PAGE) as usize] = *byte;
            page.known |= 1 << (at % PAGE / LINE);
        }
    }

    pub(crate) fn write_word(&mut self, address: u64, word: u64) {
        self.write(address, &word.to_le_bytes());
    }

    pub(crate) fn write_half(&mut self, address: u64, half: u32) {
        self.write(address, &half.to_le_bytes());
    }

    /// Makes a page unreadable.
    pub(crate) fn forget_page(&mut self, address: u64) {
        self.0.remove(&(address & !(PAGE - 1)));
    }

    /// Makes whole pages readable, as they are in a process; what was not recorded reads as zeros.
    pub(crate) fn fill(&mut self) {
        for page in self.0.values_mut() {
            page.known = u64::MAX;
        }
    }

    /// The addresses of the lines that are known.
    pub(crate) fn lines(&self) -> Vec<u64> {
        let lines = self.0.iter().flat_map(|(&address, page)| {
            let known = (0..PAGE / LINE).filter(|line| page.known >> line & 1 == 1);
            known.map(move |line| address + line * LINE)
        });
        lines.collect()
    }

    pub(crate) fn known(&self, address: u64) -> Option<u8> {
        let page = self.0.get(&(address & !(PAGE - 1)))?;
        let at = address % PAGE;
        (page.known >> (at / LINE) & 1 == 1).then(|| page.bytes[at as usize])
    }

    pub(crate) fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        assert!(self.read(address, &mut bytes), "no word at {address:#x}");
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn half(&self, address: u64) -> u32 {
        self.word(address & !7).to_le_bytes()[(address & 4) as usize..][..4]
            .try_into()
            .map(u32::from_le_bytes)
            .unwrap()
    }
}

impl Memory for Pages {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let mut done = 0;
        while done < into.len() {
            let Some(address) = address.checked_add(done as u64) else {
                return false;
            };
            let Some(page) = self.0.get(&(address & !(PAGE - 1))) else {
                return false;
            };
            let start = (address % PAGE) as usize;
            let end = (PAGE as usize).min(start + into.len() - done);
            let mut lines = start / LINE as usize..=(end - 1) / LINE as usize;
            if lines.any(|line| page.known >> line & 1 == 0) {
                return false;
            }
            let length = end - start;
            into[done..done + length].copy_from_slice(&page.bytes[start..end]);
            done += length;
        }
        true
    }
}
