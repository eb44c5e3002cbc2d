//! What is known of one ELF file: is it a CPython, which version, and where in it lies what the
//! walk starts from. Addresses are the file's own; a process adds its load bias. Cached for as long
//! as the file stays what it was, because two hundred processes may share it.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use profiler_ebpf::Layout;

use super::accessors::{self, Function, ThreadLocal};
use super::debug_offsets;
use super::elf::{Image, Segment, Symbol, Table};
use super::rows::{self, FIRST_MINOR, LAST_MINOR, RuntimeRow};
use super::version::{Stated, Version};

/// Most files that are remembered; then all are forgotten and looked at again.
const CACHED_MAX: usize = 65_536;

/// Exported by debug builds alone, where objects have other layouts (`Include/object.h`,
/// `Py_REF_DEBUG`).
const DEBUG_BUILD: &str = "_Py_NegativeRefcount";

const SYMBOLS: [&str; 9] = [
    "_PyRuntime",
    "_PyThreadState_Current",
    "PyCode_Type",
    "Py_Version",
    "Py_GetVersion",
    "PyGILState_GetThisThreadState",
    "PyInterpreterState_Head",
    "_PyThreadState_UncheckedGet",
    DEBUG_BUILD,
];

/// A supported CPython.
#[derive(Debug)]
pub(super) struct Python {
    pub version: Version,
    pub layout: Layout,
    pub segments: Vec<Segment>,
    pub addresses: Addresses,
}

/// Where things lie in the file's own address space; 0 where the version has no such thing, except
/// for `interpreters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    pub interpreters: u64,
    pub current: u64,
    pub tss_key: u64,
    pub code_type: u64,
    pub thread_local: Option<ThreadLocal>,
}

/// What looking at a file gave.
#[derive(Clone, Debug)]
pub(super) enum Look {
    NotPython,
    Python(Arc<Python>),
    Unsupported { version: String, why: String },
}

/// Every file that was looked at, by device, inode, and when it was last written.
#[derive(Debug, Default)]
pub struct Binaries {
    looks: HashMap<(u64, u64), (i64, i64, u64, Look)>,
}

impl Binaries {
    /// Nothing known yet.
    pub fn new() -> Binaries {
        Binaries::default()
    }

    /// What the file with this `metadata` is; `open` is called only when it has to be read.
    pub(super) fn look(
        &mut self,
        metadata: &Metadata,
        open: impl FnOnce() -> std::io::Result<File>,
    ) -> std::io::Result<Look> {
        let key = (metadata.dev(), metadata.ino());
        let written = (metadata.mtime(), metadata.mtime_nsec(), metadata.size());
        if let Some((seconds, nanoseconds, size, look)) = self.looks.get(&key)
            && (*seconds, *nanoseconds, *size) == written
        {
            return Ok(look.clone());
        }
        let look = look(open()?);
        if self.looks.len() >= CACHED_MAX {
            self.looks.clear();
        }
        let (seconds, nanoseconds, size) = written;
        let entry = (seconds, nanoseconds, size, look.clone());
        self.looks.insert(key, entry);
        Ok(look)
    }
}

fn look(file: File) -> Look {
    let Some(image) = Image::open(file) else {
        return Look::NotPython;
    };
    let mut symbols = HashMap::new();
    image.symbols(Table::Dynamic, &SYMBOLS, &mut symbols);
    let section = image.section(".PyRuntime");
    let is_python = |symbols: &HashMap<&str, Symbol>| {
        symbols.contains_key("_PyRuntime") || symbols.contains_key("_PyThreadState_Current")
    };
    if section.is_some() || !is_python(&symbols) {
        image.symbols(Table::Full, &SYMBOLS, &mut symbols);
    }
    if section.is_none() && !is_python(&symbols) {
        return Look::NotPython;
    }
    let runtime = symbols.get("_PyRuntime").copied().or(section);
    let binary = Binary {
        image,
        symbols,
        runtime,
    };
    binary.look()
}

/// A file that is a CPython of some kind.
struct Binary<'n> {
    image: Image,
    symbols: HashMap<&'n str, Symbol>,
    runtime: Option<Symbol>,
}

impl Binary<'_> {
    fn look(self) -> Look {
        let unsupported = |version: &str, why: String| Look::Unsupported {
            version: version.to_owned(),
            why,
        };
        let runtime = self.runtime.map(|runtime| runtime.address);
        let table = runtime.and_then(|at| self.image.bytes(at, debug_offsets::LENGTH as u64));
        let table = table.unwrap_or_default();
        let stated = debug_offsets::version(&table)
            .or_else(|| self.version_word())
            .or_else(|| self.version_text());
        let Some(stated) = stated else {
            return unsupported(
                "unknown",
                "neither Py_Version nor Py_GetVersion tells its version".to_owned(),
            );
        };
        let Version { major, minor, .. } = stated.version;
        if major != 3 || !(FIRST_MINOR..=LAST_MINOR).contains(&minor) {
            return unsupported(
                &stated.text,
                format!("only CPython 3.{FIRST_MINOR} to 3.{LAST_MINOR} are supported"),
            );
        }
        if self.symbols.contains_key(DEBUG_BUILD) {
            return unsupported(&stated.text, "it is a debug build".to_owned());
        }
        let known = match minor {
            13.. => debug_offsets::parse(&table).map_err(|refusal| refusal.to_string()),
            _ if !stated.released => {
                Err("it is a pre-release, whose layout may be any; use the release".to_owned())
            }
            _ => rows::layout(minor)
                .zip(rows::runtime(minor))
                .ok_or_else(|| "its layout is not known".to_owned()),
        };
        let found = known.and_then(|(layout, row)| {
            let addresses = self.addresses(minor, row)?;
            Ok((layout, addresses))
        });
        match found {
            Ok((layout, addresses)) => Look::Python(Arc::new(Python {
                version: stated.version,
                layout,
                segments: self.image.segments,
                addresses,
            })),
            Err(why) => unsupported(&stated.text, why),
        }
    }

    /// `Py_Version`, a constant from 3.11 on (`Python/getversion.c`).
    fn version_word(&self) -> Option<Stated> {
        let symbol = self.symbols.get("Py_Version")?;
        let bytes = self.image.bytes(symbol.address, 4)?;
        let hex = u32::from_le_bytes(bytes.try_into().ok()?);
        Some(Stated::from_hex(hex))
    }

    /// The text that `Py_GetVersion` puts first into its answer.
    fn version_text(&self) -> Option<Stated> {
        let bytes = self.function("Py_GetVersion")?;
        let address = self.symbols.get("Py_GetVersion")?.address;
        let code = Function {
            code: &bytes,
            address,
        };
        accessors::taken_addresses(code).find_map(|address| {
            let bytes = self.image.bytes(address, 32)?;
            let end = bytes.iter().position(|byte| *byte == 0)?;
            Stated::from_text(&bytes[..end])
        })
    }

    fn function(&self, name: &str) -> Option<Vec<u8>> {
        let symbol = self.symbols.get(name)?;
        let size = match symbol.size {
            0 => accessors::LENGTH,
            size => size.min(accessors::LENGTH),
        };
        self.image.bytes(symbol.address, size)
    }

    fn addresses(&self, minor: u8, row: RuntimeRow) -> Result<Addresses, String> {
        let code_type = self.symbols.get("PyCode_Type");
        let code_type = code_type.ok_or("it has no symbol PyCode_Type")?.address;
        let gilstate = self.function("PyGILState_GetThisThreadState");
        let gilstate = gilstate
            .as_deref()
            .zip(self.symbols.get("PyGILState_GetThisThreadState"));
        let gilstate = gilstate.map(|(code, symbol)| Function {
            code,
            address: symbol.address,
        });
        if minor == 6 {
            return self.addresses_3_6(code_type, gilstate);
        }
        let runtime = self.runtime.ok_or("it has no symbol _PyRuntime")?.address;
        let at = |offset: u32| match offset {
            0 => 0,
            offset => runtime.wrapping_add(offset.into()),
        };
        let mut addresses = Addresses {
            interpreters: runtime.wrapping_add(row.interpreters_head.into()),
            current: at(row.current),
            tss_key: at(row.tss_key),
            code_type,
            thread_local: None,
        };
        // Micro releases add fields before these two, by some bytes.
        let near = |row: u64| move |found: &u64| row != 0 && found.abs_diff(row) <= 1024;
        let current = self.returned("_PyThreadState_UncheckedGet", Some(runtime));
        if let Some(current) = current.filter(near(addresses.current)) {
            addresses.current = current;
        }
        match gilstate {
            Some(function) if minor >= 15 => {
                addresses.thread_local = accessors::thread_local(function);
            }
            Some(function) => {
                let near = near(addresses.tss_key);
                let key = accessors::thread_key(function, Some(runtime), |key| near(&key));
                addresses.tss_key = key.unwrap_or(addresses.tss_key);
            }
            None => {}
        }
        Ok(addresses)
    }

    /// 3.6 keeps its state in variables, of which two are known to the file alone: their names are
    /// local symbols, gone in a stripped one, but two functions that are exported read them.
    fn addresses_3_6(
        &self,
        code_type: u64,
        gilstate: Option<Function<'_>>,
    ) -> Result<Addresses, String> {
        let mut local = HashMap::new();
        let wanted = ["interp_head", "autoTLSkey"];
        self.image.symbols(Table::Full, &wanted, &mut local);
        let interpreters = local
            .get("interp_head")
            .map(|symbol| symbol.address)
            .or_else(|| self.returned("PyInterpreterState_Head", None))
            .filter(|address| self.image.holds(*address))
            .ok_or("its list of interpreters was not found")?;
        let tss_key = local.get("autoTLSkey").map(|symbol| symbol.address);
        let tss_key = tss_key.or_else(|| {
            let plausible = |address| self.image.holds(address);
            accessors::thread_key(gilstate?, None, plausible)
        });
        let current = self.symbols.get("_PyThreadState_Current");
        Ok(Addresses {
            interpreters,
            current: current.map_or(0, |symbol| symbol.address),
            tss_key: tss_key.unwrap_or(0),
            code_type,
            thread_local: None,
        })
    }

    fn returned(&self, name: &str, runtime: Option<u64>) -> Option<u64> {
        let code = self.function(name)?;
        let address = self.symbols.get(name)?.address;
        let function = Function {
            code: &code,
            address,
        };
        accessors::returned(function, runtime)
    }
}

#[cfg(test)]
mod tests;
