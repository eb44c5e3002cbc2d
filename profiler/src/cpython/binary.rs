//! What is known of one ELF file: is it a CPython, which version, and where in it lies what the
//! walk starts from. Addresses are the file's own; a process adds its load bias. Cached for as long
//! as the file stays what it was, because two hundred processes may share it.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, OnceLock};

use profiler_ebpf::Layout;

use super::accessors::{self, Function, ThreadLocal};
use super::check::Learnt;
use super::debug_offsets;
use super::elf::{Image, Segment, Symbol, Table};
use super::embedder::{self, Embedder};
use super::eval_loop;
use super::others;
use super::rows::{self, Build, FIRST_MINOR, LAST_MINOR, RuntimeRow};
use super::version::{Stated, Version};

/// Most files that are remembered; then all are forgotten and looked at again.
const CACHED_MAX: usize = 65_536;

/// Exported by builds of their own alone, where objects have other layouts: with `Py_REF_DEBUG`
/// (`Include/object.h`) and with `Py_TRACE_REFS` (`Include/modsupport.h`).
const DEBUG_BUILD: &str = "_Py_NegativeRefcount";
const DEBUG_WHY: &str =
    "it is a debug build (pydebug), whose objects are laid out otherwise; use a normal build";
const TRACE_REFS: &str = "PyModule_Create2TraceRefs";
const TRACE_REFS_WHY: &str =
    "it is built with Py_TRACE_REFS, whose objects are laid out otherwise; use a normal build";

const SYMBOLS: [&str; 12] = [
    "_PyRuntime",
    "_PyThreadState_Current",
    "PyCode_Type",
    "Py_Version",
    "Py_GetVersion",
    "PyGILState_GetThisThreadState",
    "PyInterpreterState_Head",
    "_PyThreadState_UncheckedGet",
    "PyEval_EvalFrameEx",
    "_PyEval_EvalFrameDefault",
    DEBUG_BUILD,
    TRACE_REFS,
];

/// A supported CPython.
#[derive(Debug)]
pub(super) struct Python {
    pub version: Version,
    pub layout: Layout,
    pub segments: Vec<Segment>,
    pub addresses: Addresses,
    /// As [`Interpreter::eval_loop`](super::Interpreter::eval_loop), in the file's own addresses.
    pub eval_loop: Vec<Range<u64>>,
    /// What the first process told in which it was found right; addresses are the file's own.
    pub learnt: OnceLock<Learnt>,
    /// What told that it is a CPython, for a person.
    pub root: &'static str,
    /// Whether Nuitka has compiled a program into it.
    pub nuitka: bool,
}

/// Where things lie in the file's own address space; 0 where the version has no such thing, except
/// for `interpreters`. What lies in the `runtime`, where there is one, is counted from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    pub runtime: u64,
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
    /// A program that runs the CPython of a library.
    Embedder(Embedder),
    Unsupported {
        what: String,
        why: String,
    },
}

/// Every file that was looked at, by device, inode, and when it was last changed: an inode can be used
/// again for another file.
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
        let written = (metadata.ctime(), metadata.ctime_nsec(), metadata.size());
        if let Some((seconds, nanoseconds, size, look)) = self.looks.get(&key)
            && (*seconds, *nanoseconds, *size) == written
        {
            return Ok(look.clone());
        }
        let look = Image::open(open()?).map_or(Look::NotPython, look);
        if self.looks.len() >= CACHED_MAX {
            self.looks.clear();
        }
        let (seconds, nanoseconds, size) = written;
        let entry = (seconds, nanoseconds, size, look.clone());
        self.looks.insert(key, entry);
        Ok(look)
    }
}

/// What an image is.
pub(super) fn look(image: Image) -> Look {
    let mut symbols = HashMap::new();
    image.symbols(Table::Dynamic, &SYMBOLS, &mut symbols);
    let section = image.section(".PyRuntime");
    let is_python = |symbols: &HashMap<&str, Symbol>| {
        symbols.contains_key("_PyRuntime") || symbols.contains_key("_PyThreadState_Current")
    };
    if section.is_some() || !is_python(&symbols) {
        image.symbols(Table::Full, &SYMBOLS, &mut symbols);
    }
    let mut runtime = symbols.get("_PyRuntime").copied().or(section);
    if runtime.is_none() && !image.has_sections() {
        runtime = debug_offsets::find(&image);
    }
    let embedder = match symbols.contains_key("Py_GetVersion") || section.is_some() {
        true => None,
        false => embedder::look(&image),
    };
    if let Some(embedder) = embedder {
        return Look::Embedder(embedder);
    }
    if runtime.is_none() && !is_python(&symbols) {
        return others::look(&image);
    }
    let root = if symbols.contains_key("_PyRuntime") {
        "symbol _PyRuntime"
    } else if section.is_some() {
        "section .PyRuntime"
    } else if runtime.is_some() {
        "cookie of the debug offsets"
    } else {
        "symbol _PyThreadState_Current"
    };
    let binary = Binary {
        root,
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
    root: &'static str,
}

impl Binary<'_> {
    fn look(self) -> Look {
        let nuitka = self.image.is_program && embedder::is_of_nuitka(&self.image);
        let unsupported = |version: &str, why: String| Look::Unsupported {
            what: format!("CPython {version}"),
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
                "of unknown version",
                "neither Py_Version nor Py_GetVersion tells its version".to_owned(),
            );
        };
        let Version { major, minor, .. } = stated.version;
        let build = Build::new(major, minor, false);
        if rows::layout(build).is_none() {
            return unsupported(
                &stated.text,
                format!("only CPython 2.7 and 3.{FIRST_MINOR} to 3.{LAST_MINOR} are supported"),
            );
        }
        if self.symbols.contains_key(DEBUG_BUILD) {
            return unsupported(&stated.text, DEBUG_WHY.to_owned());
        }
        if self.symbols.contains_key(TRACE_REFS) {
            return unsupported(&stated.text, TRACE_REFS_WHY.to_owned());
        }
        let known = match minor {
            13.. => debug_offsets::parse(&table).map_err(|refusal| refusal.to_string()),
            _ if !stated.released => {
                Err("it is a pre-release, whose layout may be any; use the release".to_owned())
            }
            _ => rows::layout(build)
                .zip(rows::runtime(build).map(|row| row.of_release(stated.version)))
                .ok_or_else(|| "its layout is not known".to_owned()),
        };
        let found = known.and_then(|(layout, row)| {
            let addresses = self.addresses(build, row)?;
            Ok((layout, addresses))
        });
        match found {
            Ok((layout, addresses)) => Look::Python(Arc::new(Python {
                version: stated.version,
                layout,
                eval_loop: self.eval_loop(build),
                segments: self.image.segments,
                addresses,
                learnt: OnceLock::new(),
                root: self.root,
                nuitka,
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

    /// Since 3.6 `PyEval_EvalFrameEx` only calls it (PEP 523); since 3.11 a run of it may have many
    /// Python frames (`Python/ceval.c`).
    fn eval_loop(&self, build: Build) -> Vec<Range<u64>> {
        let name = match (build.major, build.minor) {
            (2, _) => "PyEval_EvalFrameEx",
            (_, ..=10) => "_PyEval_EvalFrameDefault",
            _ => return Vec::new(),
        };
        let function = self.symbols.get(name);
        function.map_or(Vec::new(), |&function| {
            eval_loop::parts(&self.image, function)
        })
    }

    fn addresses(&self, build: Build, row: RuntimeRow) -> Result<Addresses, String> {
        let minor = build.minor;
        let code_type = self.symbols.get("PyCode_Type");
        let code_type = match code_type {
            Some(symbol) => symbol.address,
            // Needed where frames can be garbage; elsewhere a live process tells it.
            None if minor >= 13 => 0,
            None => return Err("it has no symbol PyCode_Type".to_owned()),
        };
        let gilstate = self.function("PyGILState_GetThisThreadState");
        let gilstate = gilstate
            .as_deref()
            .zip(self.symbols.get("PyGILState_GetThisThreadState"));
        let gilstate = gilstate.map(|(code, symbol)| Function {
            code,
            address: symbol.address,
        });
        match (build.major, minor) {
            // Its thread-local storage is a list of its own, not the C library's.
            (2, _) => return self.addresses_in_variables(code_type, None),
            (_, 6) => return self.addresses_in_variables(code_type, gilstate),
            _ => {}
        }
        let runtime = self.runtime.ok_or("it has no symbol _PyRuntime")?.address;
        let at = |offset: u32| match offset {
            0 => 0,
            offset => runtime.wrapping_add(offset.into()),
        };
        let mut addresses = Addresses {
            runtime,
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

    /// 2.7 and 3.6 keep their state in variables, of which two are known to the file alone: their
    /// names are local symbols, gone in a stripped one, but two functions that are exported read
    /// them. `gilstate` is the one that reads a pthread key, where there is one.
    fn addresses_in_variables(
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
        let tss_key = gilstate.and_then(|function| {
            let plausible = |address| self.image.holds(address);
            let named = local.get("autoTLSkey").map(|symbol| symbol.address);
            named.or_else(|| accessors::thread_key(function, None, plausible))
        });
        let current = self.symbols.get("_PyThreadState_Current");
        Ok(Addresses {
            runtime: 0,
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
