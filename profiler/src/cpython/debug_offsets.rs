//! Takes the `_Py_DebugOffsets` that CPython 3.13 and later carry at the start of `_PyRuntime`
//! (`Include/internal/pycore_runtime.h`, `pycore_debug_offsets.h` from 3.14) and puts them over the
//! layout row of that version. Refuses what is not exactly known: pre-releases reorder the fields.

use profiler_ebpf::Layout;
use profiler_ebpf::python::{CODE_SPAN_MAX, FRAME_SPAN_MAX, THREAD_SPAN_MAX};
use thiserror::Error;

use super::elf::{Image, Symbol};
use super::rows::{self, Build, RuntimeRow};
use super::version::Stated;

/// Bytes to read from the start of `_PyRuntime`: the longest table, 3.15's.
pub(super) const LENGTH: usize = 8 * 111;

/// How many bytes of variables are searched for a table that nothing names.
const SCANNED_MAX: u64 = 16 << 20;

const COOKIE: &[u8; 8] = b"xdebugpy";
/// Where the tables begin and end: minor version and length in words.
const WORDS: [(u8, usize); 3] = [(13, 73), (14, 95), (15, 111)];

/// The words of the table in order, each with the minor version that inserted it. The first three
/// (cookie, version, free_threaded) stand before these.
const FIELDS: &[(u8, &str, &[&str])] = &[
    (
        13,
        "runtime_state",
        &["size", "finalizing", "interpreters_head"],
    ),
    (
        13,
        "interpreter_state",
        &["size", "id", "next", "threads_head"],
    ),
    (14, "interpreter_state", &["threads_main"]),
    (
        13,
        "interpreter_state",
        &["gc", "imports_modules", "sysdict", "builtins", "ceval_gil"],
    ),
    (
        13,
        "interpreter_state",
        &["gil_state", "gil_enabled", "gil_locked", "gil_holder"],
    ),
    (
        14,
        "interpreter_state",
        &["code_object_generation", "tlbc_generation"],
    ),
    (
        13,
        "thread_state",
        &["size", "prev", "next", "interp", "current_frame"],
    ),
    (
        15,
        "thread_state",
        &[
            "base_frame",
            "last_profiled_frame",
            "last_profiled_frame_seq",
        ],
    ),
    (
        13,
        "thread_state",
        &["thread_id", "native_thread_id", "datastack_chunk", "status"],
    ),
    (
        15,
        "thread_state",
        &[
            "holds_gil",
            "gil_requested",
            "current_exception",
            "exc_state",
        ],
    ),
    (15, "err_stackitem", &["exc_value"]),
    (
        13,
        "interpreter_frame",
        &["size", "previous", "executable", "instr_ptr", "localsplus"],
    ),
    (13, "interpreter_frame", &["owner"]),
    (14, "interpreter_frame", &["stackpointer", "tlbc_index"]),
    (
        13,
        "code_object",
        &[
            "size",
            "filename",
            "name",
            "qualname",
            "linetable",
            "firstlineno",
        ],
    ),
    (
        13,
        "code_object",
        &["argcount", "localsplusnames", "localspluskinds"],
    ),
    (13, "code_object", &["co_code_adaptive"]),
    (14, "code_object", &["co_tlbc"]),
    (13, "pyobject", &["size", "ob_type"]),
    (
        13,
        "type_object",
        &["size", "tp_name", "tp_repr", "tp_flags"],
    ),
    (15, "type_object", &["tp_basicsize", "tp_dictoffset"]),
    (15, "heap_type_object", &["size", "ht_cached_keys"]),
    (13, "tuple_object", &["size", "ob_item", "ob_size"]),
    (13, "list_object", &["size", "ob_item", "ob_size"]),
    (14, "set_object", &["size", "used", "table", "mask"]),
    (13, "dict_object", &["size", "ma_keys", "ma_values"]),
    (13, "float_object", &["size", "ob_fval"]),
    (13, "long_object", &["size", "lv_tag", "ob_digit"]),
    (13, "bytes_object", &["size", "ob_size", "ob_sval"]),
    (
        13,
        "unicode_object",
        &["size", "state", "length", "asciiobject_size"],
    ),
    (15, "unicode_object", &["compactunicodeobject_size"]),
];

/// Why a table is not used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Refusal {
    /// The table ends too early, or does not begin as one.
    #[error("its _Py_DebugOffsets are damaged: {0}")]
    Damaged(String),
    /// An alpha, beta or release candidate.
    #[error("it is a pre-release ({0}), whose layout may be any; use the release")]
    PreRelease(String),
    /// A version without a row.
    #[error("only 3.13 to 3.15 have known _Py_DebugOffsets")]
    Version,
    /// A value that no CPython has.
    #[error("its _Py_DebugOffsets say that {field} is at {value}, which can't be")]
    Absurd {
        /// `structure.field` of the table.
        field: String,
        /// What the table says.
        value: u64,
    },
}

/// The version that the table at the start of `bytes` states, if it is such a table.
pub(super) fn version(bytes: &[u8]) -> Option<Stated> {
    let hex = u32::try_from(word(bytes, 1)?).ok()?;
    (bytes.starts_with(COOKIE)).then(|| Stated::from_hex(hex))
}

/// Where such a table is, in an image that has no symbol or section to name it: among its variables.
pub(super) fn find(image: &Image) -> Option<Symbol> {
    let segments = image.segments.iter().filter(|segment| segment.writable);
    let mut left = SCANNED_MAX;
    for segment in segments {
        let length = segment.file_size.min(left);
        left -= length;
        let Some(bytes) = image.bytes(segment.address, length) else {
            continue;
        };
        let skip = (8 - segment.address % 8) % 8;
        let words = bytes.get(skip as usize..).unwrap_or_default().chunks(8);
        let mut at = words.enumerate().filter(|(_, word)| word == COOKIE);
        let found = at.find_map(|(index, _)| {
            let at = skip + 8 * index as u64;
            let stated = version(bytes.get(at as usize..)?)?;
            let known = WORDS
                .iter()
                .any(|(minor, _)| *minor == stated.version.minor);
            (stated.version.major == 3 && known).then_some(at)
        });
        if let Some(at) = found {
            return Some(Symbol {
                address: segment.address.checked_add(at)?,
                size: segment.file_size - at,
            });
        }
    }
    None
}

/// The layout and the runtime's offsets as the table at the start of `bytes` has them; what it
/// does not say comes from the version's row.
///
/// # Errors
/// Says why the table is not to be trusted.
pub(super) fn parse(bytes: &[u8]) -> Result<(Layout, RuntimeRow), Refusal> {
    let Some(stated) = version(bytes) else {
        return Err(Refusal::Damaged("no cookie \"xdebugpy\"".to_owned()));
    };
    let minor = stated.version.minor;
    let known = WORDS.iter().find(|(known, _)| *known == minor);
    let (Some((_, words)), 3) = (known, stated.version.major) else {
        return Err(Refusal::Version);
    };
    if !stated.released {
        return Err(Refusal::PreRelease(stated.text));
    }
    if bytes.len() < 8 * words {
        let length = bytes.len();
        return Err(Refusal::Damaged(format!("{length} bytes of {}", 8 * words)));
    }
    let free_threaded = match word(bytes, 2) {
        Some(0) => false,
        Some(1) => true,
        odd => {
            return Err(absurd(
                "_Py_DebugOffsets",
                "free_threaded",
                odd.unwrap_or(0),
            ));
        }
    };
    let build = Build::new(3, minor, free_threaded);
    let (Some(mut layout), Some(mut runtime)) = (rows::layout(build), rows::runtime(build)) else {
        return Err(Refusal::Version);
    };

    let table = Table { bytes, minor };
    let state = table.structure("runtime_state", 16 << 20)?;
    runtime.interpreters_head = state.pointer("interpreters_head")?;
    let interpreter = table.structure("interpreter_state", 4 << 20)?;
    layout.interpreter_next = interpreter.pointer("next")?;
    layout.interpreter_threads = interpreter.pointer("threads_head")?;

    let thread = table.structure("thread_state", 1 << 20)?;
    let thread = thread.no_more_than(THREAD_SPAN_MAX - 8);
    layout.thread_next = thread.pointer("next")?;
    layout.thread_id = thread.pointer("thread_id")?;
    // The walk reads a thread state from `interp` to `thread_id`; the rest must lie between.
    let thread = thread.no_more_than(layout.thread_id as usize + 8);
    layout.thread_frame = thread.pointer("current_frame")?;
    layout.thread_interpreter = thread.pointer("interp")?;
    match minor {
        // `state`, of which the table says nothing.
        _ if free_threaded => {
            layout.gil_offset = thread.check("state", layout.gil_offset.into(), 4)?;
        }
        13 => layout.gil_offset = thread.at("status", 4)?,
        // 3.14 has `holds_gil` but does not say where.
        14 => layout.gil_offset = thread.check("holds_gil", layout.gil_offset.into(), 4)?,
        _ => layout.gil_offset = thread.at("holds_gil", 4)?,
    }

    for (field, offset) in [
        ("current_frame", layout.thread_frame),
        ("status", layout.gil_offset),
    ] {
        if offset < layout.thread_interpreter {
            return Err(Refusal::Absurd {
                field: format!("thread_state.{field}"),
                value: offset.into(),
            });
        }
    }

    let frame = table.structure("interpreter_frame", FRAME_SPAN_MAX as u64)?;
    let frame = frame.no_more_than(layout.frame_span as usize);
    layout.frame_code = frame.pointer("executable")?;
    layout.frame_previous = frame.pointer("previous")?;
    layout.frame_instruction = frame.pointer("instr_ptr")?;
    layout.frame_owner = frame.at("owner", 1)?;
    if layout.frame_tlbc != 0 {
        layout.frame_tlbc = frame.at("tlbc_index", 4)?;
    }

    let code = table.structure("code_object", 4096)?;
    layout.code_bytes = code.at("co_code_adaptive", 2)?;
    if layout.code_tlbc != 0 {
        layout.code_tlbc = code.pointer("co_tlbc")?;
    }
    let code = code.no_more_than(CODE_SPAN_MAX - 8);
    layout.code_filename = code.pointer("filename")?;
    layout.code_name = code.pointer("name")?;
    layout.code_qualname = code.pointer("qualname")?;
    layout.code_linetable = code.pointer("linetable")?;
    layout.code_first_line = code.at("firstlineno", 4)?;
    code.check("co_version", layout.code_version.into(), 4)?;

    layout.object_type = table.structure("pyobject", 64)?.pointer("ob_type")?;
    let bytes = table.structure("bytes_object", 128)?;
    layout.bytes_size = bytes.pointer("ob_size")?;
    layout.bytes_data = bytes.at("ob_sval", 1)?;
    let unicode = table.structure("unicode_object", 128)?;
    layout.str_length = unicode.pointer("length")?;
    layout.str_state = unicode.at("state", 4)?;
    // These two are sizes of the smaller structures that a string begins with.
    layout.str_ascii = unicode.pointer("asciiobject_size")?;
    if minor >= 15 {
        layout.str_compact = unicode.pointer("compactunicodeobject_size")?;
    }
    (layout.code_start, layout.code_span) = rows::code_bounds(&layout);
    Ok((layout, runtime))
}

/// A table whose length was checked.
struct Table<'a> {
    bytes: &'a [u8],
    minor: u8,
}

/// One structure of a table, and how much of it there is to point into.
struct Structure<'a> {
    table: &'a Table<'a>,
    name: &'static str,
    size: u64,
}

/// Which word of the table of this minor version is that field.
fn index(minor: u8, structure: &str, field: &str) -> Option<usize> {
    let mut fields = FIELDS
        .iter()
        .filter(|(since, ..)| *since <= minor)
        .flat_map(|(_, name, fields)| fields.iter().map(move |field| (*name, *field)));
    Some(3 + fields.position(|at| at == (structure, field))?)
}

impl Table<'_> {
    fn value(&self, structure: &str, field: &str) -> Option<u64> {
        word(self.bytes, index(self.minor, structure, field)?)
    }

    fn structure(&self, name: &'static str, limit: u64) -> Result<Structure<'_>, Refusal> {
        let size = self.value(name, "size").unwrap_or(0);
        if size == 0 || size > limit {
            return Err(absurd(name, "size", size));
        }
        Ok(Structure {
            table: self,
            name,
            size,
        })
    }
}

impl Structure<'_> {
    fn no_more_than(self, limit: usize) -> Self {
        let size = self.size.min(limit as u64);
        Structure { size, ..self }
    }

    /// The offset of a pointer or another field of 8 bytes, aligned to 8.
    fn pointer(&self, field: &str) -> Result<u32, Refusal> {
        // A size counts as an offset whose field may begin right behind it.
        let width = if field.ends_with("_size") { 0 } else { 8 };
        let offset = self.at(field, width)?;
        match offset % 8 {
            0 => Ok(offset),
            _ => Err(absurd(self.name, field, offset.into())),
        }
    }

    /// The offset of a field of `width` bytes.
    fn at(&self, field: &str, width: u64) -> Result<u32, Refusal> {
        let value = self.table.value(self.name, field).unwrap_or(u64::MAX);
        self.check(field, value, width)
    }

    fn check(&self, field: &str, offset: u64, width: u64) -> Result<u32, Refusal> {
        let aligned = width == 0 || offset.is_multiple_of(width);
        let inside = offset
            .checked_add(width)
            .is_some_and(|end| end <= self.size);
        match u32::try_from(offset) {
            Ok(offset) if aligned && inside => Ok(offset),
            _ => Err(absurd(self.name, field, offset)),
        }
    }
}

fn absurd(structure: &str, field: &str, value: u64) -> Refusal {
    Refusal::Absurd {
        field: format!("{structure}.{field}"),
        value,
    }
}

fn word(bytes: &[u8], index: usize) -> Option<u64> {
    let bytes = bytes.get(8 * index..8 * index + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests;
