//! What is kept of files that were read, within bounds of memory: equal tables once, and of tables
//! and DWARF those that were used last.

use std::fs::File;
use std::sync::{Arc, Weak};

use super::lines::Lines;
use super::read::Contents;
use super::table::Table;
use super::{Module, ModuleId, Natives, OPEN_MAX, Source, State};

impl Natives {
    /// Bytes that symbols and lines take.
    pub fn bytes(&self) -> usize {
        self.table_bytes() + self.line_bytes()
    }

    /// How many files are known, and how many tables there are for them.
    pub fn count(&self) -> (usize, usize) {
        let tables = self.tables.values();
        let alive = tables.filter(|table| table.strong_count() > 0).count();
        (self.modules.len(), alive)
    }

    /// The state of a file that was read; `dwarf` is the file that has its DWARF.
    pub(super) fn keep(&mut self, mut contents: Contents, dwarf: Option<File>) -> State {
        contents.table = contents.table.map(|table| self.shared(table));
        let dwarf = dwarf.filter(|_| self.held < OPEN_MAX);
        self.held += usize::from(dwarf.is_some());
        State::Read(contents, dwarf.map_or(Source::None, Source::Unread))
    }

    /// The same table, if there was one.
    fn shared(&mut self, table: Arc<Table>) -> Arc<Table> {
        let known = self.tables.entry(table.hash(&self.key)).or_default();
        match known.upgrade() {
            // No other file can be made to have this hash; still no name comes from a wrong table.
            Some(same) if same == table => same,
            _ => {
                *known = Arc::downgrade(&table);
                table
            }
        }
    }

    /// Reads the DWARF of a file, if there is some and it was not.
    pub(super) fn read_lines(&mut self, module: ModuleId) {
        let Some(known) = self.modules.get_mut(module.0 as usize) else {
            return;
        };
        let State::Read(_, source) = &mut known.state else {
            return;
        };
        let Source::Unread(file) = source else {
            return;
        };
        match Lines::read(file) {
            Ok(lines) => {
                if let Source::Unread(file) = std::mem::replace(source, Source::None) {
                    *source = Source::Read(file, Box::new(lines));
                }
            }
            Err(reason) => {
                log::debug!("no lines: {reason}");
                *source = Source::None;
                self.held -= 1;
            }
        }
        self.forget_lines(module);
    }

    /// Forgets tables until they fit, not that of `last`.
    pub(super) fn forget_tables(&mut self, last: ModuleId) {
        while self.table_bytes() > self.limits.tables {
            let table = |module: &Module| match &module.state {
                State::Read(contents, _) => contents.table.is_ok() || contents.extents.bytes() > 0,
                _ => false,
            };
            let Some(oldest) = self.oldest(last, table) else {
                break;
            };
            let state = std::mem::replace(&mut oldest.state, State::Unread(None));
            if let State::Read(_, Source::Unread(_) | Source::Read(..)) = state {
                self.held -= 1;
            }
        }
        self.tables.retain(|_, table| table.strong_count() > 0);
    }

    fn forget_lines(&mut self, last: ModuleId) {
        while self.line_bytes() > self.limits.lines {
            let Some(oldest) = self.oldest(last, |module| module.line_bytes() > 0) else {
                break;
            };
            if let State::Read(_, source) = &mut oldest.state
                && let Source::Read(file, _) = std::mem::replace(source, Source::None)
            {
                *source = Source::Unread(file);
            }
        }
    }

    /// Of those that `has` the one that was not used for longest.
    fn oldest(&mut self, last: ModuleId, has: impl Fn(&Module) -> bool) -> Option<&mut Module> {
        let others = self.modules.iter_mut().enumerate();
        let others = others.filter(|(at, module)| *at != last.0 as usize && has(module));
        let oldest = others.min_by_key(|(_, module)| module.used);
        oldest.map(|(_, module)| module)
    }

    fn table_bytes(&self) -> usize {
        let tables = self.tables.values().filter_map(Weak::upgrade);
        let extents = self.modules.iter().map(|module| match &module.state {
            State::Read(contents, _) => contents.extents.bytes(),
            _ => 0,
        });
        tables.map(|table| table.bytes()).chain(extents).sum()
    }

    fn line_bytes(&self) -> usize {
        self.modules.iter().map(Module::line_bytes).sum()
    }
}

impl Module {
    fn line_bytes(&self) -> usize {
        match &self.state {
            State::Read(_, Source::Read(_, lines)) => lines.bytes(),
            _ => 0,
        }
    }
}
