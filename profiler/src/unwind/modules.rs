//! What a process runs code from: its executable mappings, and which of them a native address lies in.

use std::sync::Arc;

/// An executable mapping of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    pub pid: u32,
    pub start: u64,
    pub end: u64,
    /// Where in the file it begins, bytes.
    pub offset: u64,
    /// The file, as `/proc/PID/maps` has it; nothing and 0 where there is none.
    pub device: Arc<str>,
    pub inode: u64,
    /// As the process sees it, perhaps with ` (deleted)` at its end; `[vdso]`; or nothing.
    pub path: Arc<str>,
    /// Whether the interpreter's own code is in this file.
    pub interpreter: bool,
}

impl Module {
    /// The last part of the path.
    pub fn name(&self) -> &str {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(&self.path);
        match path.rsplit('/').next() {
            Some(name) if !name.is_empty() => name,
            _ => "[anon]",
        }
    }
}

/// The modules of a process, in the order of their addresses.
#[derive(Debug, Default)]
pub struct Modules(Vec<Module>);

impl Modules {
    /// Sorts them.
    pub fn new(mut modules: Vec<Module>) -> Modules {
        modules.sort_by_key(|module| module.start);
        Modules(modules)
    }

    /// The one that an address lies in.
    pub fn find(&self, address: u64) -> Option<&Module> {
        let after = self.0.partition_point(|module| module.start <= address);
        let module = self.0.get(after.checked_sub(1)?)?;
        (address < module.end).then_some(module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_module_that_covers_it() {
        let module = |start, end, path: &str| Module {
            start,
            end,
            path: path.into(),
            ..Module::default()
        };
        let modules = Modules::new(vec![
            module(0x3000, 0x4000, "/lib/b.so (deleted)"),
            module(0x1000, 0x2000, ""),
        ]);
        let name = |address| modules.find(address).map(Module::name);
        let names = [0xfff, 0x1000, 0x1fff, 0x2000, 0x3000, 0x4000].map(name);
        let (anon, b) = (Some("[anon]"), Some("b.so"));
        assert_eq!(names, [None, anon, anon, None, b, None]);
    }
}
