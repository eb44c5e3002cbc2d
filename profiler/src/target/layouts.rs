//! The kernel's slots for layouts: one per CPython build in use, given back with its last process.

use anyhow::{Result, bail};
use profiler_ebpf::{Layout, MAX_LAYOUTS};

use crate::bpf::Kernel;

/// Which layout each slot holds, and how many processes use it.
#[derive(Default)]
pub(super) struct Layouts {
    slots: Vec<(Layout, usize)>,
}

impl Layouts {
    /// The slot of `layout`, for one more process.
    ///
    /// # Errors
    /// When all slots are in use by other layouts.
    pub(super) fn take(&mut self, kernel: &mut Kernel, layout: &Layout) -> Result<u32> {
        let slot = self.choose(layout)?;
        kernel.set_layout(slot, layout)?;
        Ok(slot)
    }

    fn choose(&mut self, layout: &Layout) -> Result<u32> {
        let same = self.slots.iter().position(|(known, _)| known == layout);
        let free = || self.slots.iter().position(|&(_, users)| users == 0);
        let slot = match same.or_else(free) {
            Some(slot) => slot,
            None if self.slots.len() < MAX_LAYOUTS as usize => {
                self.slots.push((*layout, 0));
                self.slots.len() - 1
            }
            None => bail!("{MAX_LAYOUTS} other builds of Python are being profiled already"),
        };
        self.slots[slot] = (*layout, self.slots[slot].1 + 1);
        Ok(slot as u32)
    }

    /// One process more uses the slot, which is in use.
    pub(super) fn share(&mut self, slot: u32) {
        if let Some((_, users)) = self.slots.get_mut(slot as usize) {
            *users += 1;
        }
    }

    /// One process less uses the slot.
    pub(super) fn give_back(&mut self, slot: u32) {
        if let Some((_, users)) = self.slots.get_mut(slot as usize) {
            *users = users.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(version: u32) -> Layout {
        Layout {
            version,
            ..Layout::default()
        }
    }

    #[test]
    fn slots_are_shared_and_used_again() {
        let mut layouts = Layouts::default();
        for version in 0..MAX_LAYOUTS {
            assert_eq!(layouts.choose(&layout(version)).unwrap(), version);
        }
        assert_eq!(layouts.choose(&layout(7)).unwrap(), 7);
        let error = layouts.choose(&layout(1000)).unwrap_err().to_string();
        assert!(error.contains("64 other builds"), "{error}");
        layouts.share(7);
        for _ in 0..2 {
            layouts.give_back(7);
            assert!(layouts.choose(&layout(1000)).is_err(), "7 has another user");
        }
        layouts.give_back(7);
        assert_eq!(layouts.choose(&layout(1000)).unwrap(), 7);
        layouts.give_back(u32::MAX);
    }
}
