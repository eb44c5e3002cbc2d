//! A process's memory as tests make it up: pieces at addresses, nothing in between.

use std::collections::BTreeMap;

use profiler_ebpf::python::Memory;

/// Pieces of memory, by address. Reads do not cross from one to the next.
#[derive(Default)]
pub(super) struct Recorded(BTreeMap<u64, Vec<u8>>);

impl Recorded {
    pub(super) fn put(&mut self, address: u64, bytes: &[u8]) {
        self.0.insert(address, bytes.to_vec());
    }
}

/// Memory in which every word has this one value: a pointer leads back to where it stands.
pub(super) struct Same(pub(super) u64);

impl Memory for Same {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let bytes = self.0.to_le_bytes();
        for (at, byte) in into.iter_mut().enumerate() {
            *byte = bytes[(address as usize).wrapping_add(at) % 8];
        }
        true
    }
}

impl Memory for Recorded {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let Some((start, bytes)) = self.0.range(..=address).next_back() else {
            return false;
        };
        let skip = (address - start) as usize;
        let Some(found) = bytes.get(skip..).and_then(|rest| rest.get(..into.len())) else {
            return false;
        };
        into.copy_from_slice(found);
        true
    }
}
