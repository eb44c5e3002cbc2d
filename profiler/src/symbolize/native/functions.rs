//! Functions that a program made at run time, by their addresses in it, within bounds. What is told
//! later overrides what it overlaps, since memory is used again.

use std::collections::BTreeMap;

/// Most functions of one process, and bytes of their names; then no more are taken.
const FUNCTIONS_MAX: usize = 1 << 20;
const NAMES_MAX: usize = 32 << 20;

/// The functions of one process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Functions {
    /// By start: end and name. None overlaps another.
    functions: BTreeMap<u64, (u64, Box<str>)>,
    names: usize,
}

impl Functions {
    /// Takes in what lies from `start` to before `end`; what it overlaps was there before, and has gone.
    pub(super) fn insert(&mut self, start: u64, end: u64, name: &str) {
        // None reaches over another.
        while let Some((&at, (reach, _))) = self.functions.range(..end).next_back() {
            if *reach <= start {
                break;
            }
            self.remove(at);
        }
        let names = self.names + name.len();
        if self.functions.len() < FUNCTIONS_MAX && names <= NAMES_MAX {
            self.functions.insert(start, (end, name.into()));
            self.names = names;
        }
    }

    /// Forgets the function that starts there, and gives its name.
    pub(super) fn remove(&mut self, start: u64) -> Option<Box<str>> {
        let (_, name) = self.functions.remove(&start)?;
        self.names -= name.len();
        Some(name)
    }

    /// The function at an address of the process, and how far from its start that is.
    pub(super) fn find(&self, address: u64) -> Option<(&str, u64)> {
        let (start, (end, name)) = self.functions.range(..=address).next_back()?;
        (address < *end).then(|| (&**name, address - start))
    }

    /// For `crate::fuzz`: what must hold whatever was told.
    pub(super) fn check(&self) {
        let mut before = 0;
        for (&start, (end, name)) in &self.functions {
            assert!(before <= start && start < *end && !name.is_empty());
            assert_eq!(self.find(*end - 1), Some((&**name, end - 1 - start)));
            before = *end;
        }
        let names = self.functions.values().map(|(_, name)| name.len());
        assert_eq!(names.sum::<usize>(), self.names);
    }
}
