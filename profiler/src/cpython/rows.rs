//! Offsets in the structures of CPython 2.7 and 3.6 to 3.15 (x86-64), one column per [`Build`], and
//! the [`Layout`] that each column makes.
//!
//! `cargo xtask layouts --check` compiles against the headers of the installed Pythons and compares.
//! From 3.13 on, what the binary's own `_Py_DebugOffsets` says goes over these values.

use std::fmt;

use profiler_ebpf::{Chain, Gil, Layout, layout_flags};

use super::version::Version;

/// The first supported minor version of Python 3.
pub(super) const FIRST_MINOR: u8 = 6;
/// The last supported minor version of Python 3.
pub(super) const LAST_MINOR: u8 = 15;
/// The first minor version that can be built without a GIL.
const FIRST_FREE_THREADED: u8 = 13;
const COLUMNS: usize = Build::ALL.len();

/// What decides how CPython lays out its structures: the minor version, and whether it was built to
/// run without a GIL (`--disable-gil`, the `t` of `python3.13t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    pub major: u8,
    pub minor: u8,
    pub free_threaded: bool,
}

impl Build {
    /// Every build that has a column, in the order of the columns.
    pub const ALL: [Build; 14] = [
        Build::new(2, 7, false),
        Build::new(3, 6, false),
        Build::new(3, 7, false),
        Build::new(3, 8, false),
        Build::new(3, 9, false),
        Build::new(3, 10, false),
        Build::new(3, 11, false),
        Build::new(3, 12, false),
        Build::new(3, 13, false),
        Build::new(3, 14, false),
        Build::new(3, 15, false),
        Build::new(3, FIRST_FREE_THREADED, true),
        Build::new(3, 14, true),
        Build::new(3, 15, true),
    ];

    /// The build of this version with these properties.
    pub const fn new(major: u8, minor: u8, free_threaded: bool) -> Build {
        Build {
            major,
            minor,
            free_threaded,
        }
    }

    /// As `Layout::version` has it.
    fn version(self) -> u32 {
        u32::from(self.major) << 8 | u32::from(self.minor)
    }

    fn column(self) -> Option<usize> {
        Build::ALL.iter().position(|build| *build == self)
    }
}

/// Python 3.`minor` with a GIL.
impl From<u8> for Build {
    fn from(minor: u8) -> Build {
        Build::new(3, minor, false)
    }
}

impl fmt::Display for Build {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.free_threaded { "t" } else { "" };
        write!(formatter, "{}.{}{suffix}", self.major, self.minor)
    }
}

/// One value per build, in the order of [`Build::ALL`]; 0 where it has no such field.
type Row = [u32; COLUMNS];

struct Rows {
    interpreters_head: Row,
    current: Row,
    tss_key: Row,
    interpreter_next: Row,
    interpreter_threads: Row,
    thread_next: Row,
    thread_interpreter: Row,
    thread_frame: Row,
    thread_id: Row,
    cframe_frame: Row,
    cframe_previous: Row,
    thread_exceptions: Row,
    thread_stack_top: Row,
    gil_offset: Row,
    frame_code: Row,
    frame_previous: Row,
    frame_instruction: Row,
    frame_owner: Row,
    frame_is_entry: Row,
    frame_tlbc: Row,
    code_first_line: Row,
    code_filename: Row,
    code_name: Row,
    code_qualname: Row,
    code_linetable: Row,
    code_bytes: Row,
    code_version: Row,
    code_frame_size: Row,
    code_tlbc: Row,
    object_type: Row,
    bytes_size: Row,
    bytes_data: Row,
    str_length: Row,
    str_hash: Row,
    str_state: Row,
    str_ascii: Row,
    str_compact: Row,
    modules: Row,
    type_keys: Row,
}

/// Columns: 2.7, 3.6, 3.7, 3.8, 3.9, 3.10, 3.11, 3.12, 3.13, 3.14, 3.15, 3.13t, 3.14t, 3.15t; those
/// of 3.14t and 3.15t were measured with headers alone. The first group is in `_PyRuntime` (2.7 and
/// 3.6 keep these in variables of their own); `gil_offset` is what [`Gil`] says.
#[rustfmt::skip] // `cargo xtask layouts` reads and writes a line for each row.
static ROWS: Rows = Rows {
    interpreters_head: [0, 0, 24, 32, 32, 32, 40, 40, 632, 808, 936, 632, 808, 936],
    current: [0, 0, 1480, 1368, 568, 568, 576, 0, 0, 0, 0, 0, 0, 0],
    tss_key: [0, 0, 1508, 1396, 588, 588, 596, 1548, 2164, 2340, 0, 2164, 2340, 0],
    interpreter_next: [0, 0, 0, 0, 0, 0, 0, 0, 7264, 7272, 7264, 7264, 7272, 7264],
    interpreter_threads: [8, 8, 8, 8, 8, 8, 16, 72, 7344, 7344, 7336, 7344, 7344, 7336],
    thread_next: [0, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8],
    thread_interpreter: [8, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16],
    thread_frame: [16, 24, 24, 24, 24, 24, 56, 56, 72, 72, 72, 72, 72, 72],
    thread_id: [144, 152, 176, 176, 176, 176, 152, 136, 152, 152, 176, 152, 152, 176],
    cframe_frame: [0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
    cframe_previous: [0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0],
    thread_exceptions: [0, 0, 0, 0, 0, 0, 0, 104, 0, 0, 0, 0, 0, 0],
    thread_stack_top: [0, 0, 0, 0, 0, 0, 0, 240, 0, 0, 0, 0, 0, 0],
    gil_offset: [0, 0, 0, 0, 0, 0, 0, 384, 32, 36, 36, 40, 44, 48],
    frame_code: [32, 32, 32, 32, 32, 32, 32, 0, 0, 0, 0, 0, 0, 0],
    frame_previous: [24, 24, 24, 24, 24, 24, 48, 8, 8, 8, 8, 8, 8, 8],
    frame_instruction: [120, 120, 104, 104, 104, 96, 56, 56, 56, 56, 56, 56, 56, 56],
    frame_owner: [0, 0, 0, 0, 0, 0, 69, 70, 70, 74, 74, 70, 78, 78],
    frame_is_entry: [0, 0, 0, 0, 0, 0, 68, 0, 0, 0, 0, 0, 0, 0],
    frame_tlbc: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 72, 72],
    code_first_line: [96, 36, 36, 40, 40, 40, 72, 68, 68, 68, 68, 84, 84, 84],
    code_filename: [80, 96, 96, 104, 104, 104, 112, 112, 112, 112, 112, 128, 128, 128],
    code_name: [88, 104, 104, 112, 112, 112, 120, 120, 120, 120, 120, 136, 136, 136],
    code_qualname: [0, 0, 0, 0, 0, 0, 128, 128, 128, 128, 128, 144, 144, 144],
    code_linetable: [104, 112, 112, 120, 120, 120, 136, 136, 136, 136, 136, 152, 152, 152],
    code_bytes: [32, 40, 40, 48, 48, 48, 184, 192, 200, 208, 208, 216, 232, 232],
    code_version: [0, 0, 0, 0, 0, 0, 0, 92, 92, 92, 92, 108, 108, 108],
    code_frame_size: [0, 0, 0, 0, 0, 0, 0, 76, 0, 0, 0, 0, 0, 0],
    code_tlbc: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 224, 224],
    object_type: [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 24, 24, 24],
    bytes_size: [16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 32, 32, 32],
    bytes_data: [36, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 48, 48, 48],
    str_length: [16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 32, 32, 32],
    str_hash: [24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 40, 40, 40],
    str_state: [0, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 48, 48, 48],
    str_ascii: [36, 48, 48, 48, 48, 48, 48, 40, 40, 40, 40, 56, 56, 56],
    str_compact: [36, 72, 72, 72, 72, 72, 72, 56, 56, 56, 56, 72, 72, 72],
    modules: [16, 16, 40, 56, 856, 856, 888, 944, 7656, 7688, 7592, 7664, 7712, 7592],
    type_keys: [0, 856, 856, 872, 864, 872, 872, 880, 880, 880, 888, 896, 896, 904],
};

/// Bit of `PyThreadState._status` that is set while the thread holds the GIL (3.13,
/// `Include/cpython/pystate.h`).
const STATUS_HOLDS_GIL: u32 = 0x20;

/// How far down a `PyFrameObject` the first field that is used lies, and how much is read from
/// there: enough for `f_lasti` wherever 3.6 to 3.10 keep it.
const FRAME_OBJECT: (u32, u32) = (24, 104);
/// The same for a `_PyInterpreterFrame`: all of its fixed part.
const INTERPRETER_FRAME: (u32, u32) = (0, 80);

/// Where `_PyRuntime` keeps what leads to the threads, in bytes from its start; 0: not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RuntimeRow {
    /// `interpreters.head`.
    pub interpreters_head: u32,
    /// `gilstate.tstate_current` (3.7–3.11; 3.7.0–3.7.3 have it elsewhere).
    pub current: u32,
    /// `autoTSSkey._key` (3.7–3.14).
    pub tss_key: u32,
}

impl RuntimeRow {
    /// As this release has it. 3.7.4 aligned `PyGC_Head` to 16 bytes (`Include/objimpl.h`,
    /// bpo-27987), and what lies behind the garbage collector's state moved.
    pub(super) fn of_release(self, version: Version) -> RuntimeRow {
        match (version.major, version.minor, version.micro) {
            (3, 7, ..=3) => RuntimeRow {
                current: self.current - 88,
                tss_key: self.tss_key - 88,
                ..self
            },
            _ => self,
        }
    }
}

/// What leads to the names of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamesRow {
    /// `PyInterpreterState.modules`, from 3.12 on `imports.modules`: the dictionary of modules.
    pub modules: u32,
    /// `PyHeapTypeObject.ht_cached_keys`: the keys that instances of a class share.
    pub type_keys: u32,
}

/// The offsets within `_PyRuntime` of a build, where that is supported.
pub(super) fn runtime(build: impl Into<Build>) -> Option<RuntimeRow> {
    let column = build.into().column()?;
    Some(RuntimeRow {
        interpreters_head: ROWS.interpreters_head[column],
        current: ROWS.current[column],
        tss_key: ROWS.tss_key[column],
    })
}

/// What leads to the names of threads, where the build is supported.
pub(super) fn names(build: impl Into<Build>) -> Option<NamesRow> {
    let column = build.into().column()?;
    Some(NamesRow {
        modules: ROWS.modules[column],
        type_keys: ROWS.type_keys[column],
    })
}

/// The layout of a build, where that is supported; `u8` stands for Python 3 with a GIL.
pub fn layout(build: impl Into<Build>) -> Option<Layout> {
    let build = build.into();
    let column = build.column()?;
    let at = |row: &Row| row[column];
    let (chain, gil, gil_mask) = match (build.major, build.minor) {
        (_, 13..) if build.free_threaded => (Chain::CurrentFrame, Gil::Attached, 0),
        (2, _) | (_, ..=10) => (Chain::FrameObject, Gil::Current, 0),
        (_, 11) => (Chain::CFrame, Gil::Current, 0),
        (_, 12) => (Chain::CFrame, Gil::Holder, 0),
        (_, 13) => (Chain::CurrentFrame, Gil::Status, STATUS_HOLDS_GIL),
        _ => (Chain::CurrentFrame, Gil::Status, u32::MAX),
    };
    let mut flags = 0;
    if build.version() >= 0x30c {
        flags |= layout_flags::ENDS_AT_ENTRY | layout_flags::ENTRY_FRAMES;
    }
    if matches!(build.version(), 0x30b | 0x30c) {
        flags |= layout_flags::TORN_CALLS;
    }
    if build.major == 2 {
        flags |= layout_flags::BYTE_STRINGS;
    }
    if build.free_threaded {
        flags |= layout_flags::FREE_THREADED;
    }
    let (frame_start, frame_span) = match chain {
        Chain::FrameObject => FRAME_OBJECT,
        Chain::CFrame | Chain::CurrentFrame => INTERPRETER_FRAME,
    };
    let mut layout = Layout {
        version: build.version(),
        chain: chain as u32,
        flags,
        gil: gil as u32,
        gil_mask,
        frame_start,
        frame_span,
        code_start: 0,
        code_span: 0,
        // A whole byte says how the string is interned.
        str_kind_shift: if build.free_threaded && build.minor >= 14 {
            8
        } else {
            2
        },
        interpreter_next: at(&ROWS.interpreter_next),
        interpreter_threads: at(&ROWS.interpreter_threads),
        thread_next: at(&ROWS.thread_next),
        thread_interpreter: at(&ROWS.thread_interpreter),
        thread_frame: at(&ROWS.thread_frame),
        thread_id: at(&ROWS.thread_id),
        cframe_frame: at(&ROWS.cframe_frame),
        cframe_previous: at(&ROWS.cframe_previous),
        thread_exceptions: at(&ROWS.thread_exceptions),
        thread_stack_top: at(&ROWS.thread_stack_top),
        gil_offset: at(&ROWS.gil_offset),
        frame_code: at(&ROWS.frame_code),
        frame_previous: at(&ROWS.frame_previous),
        frame_instruction: at(&ROWS.frame_instruction),
        frame_owner: at(&ROWS.frame_owner),
        frame_is_entry: at(&ROWS.frame_is_entry),
        frame_tlbc: at(&ROWS.frame_tlbc),
        code_first_line: at(&ROWS.code_first_line),
        code_filename: at(&ROWS.code_filename),
        code_name: at(&ROWS.code_name),
        code_qualname: at(&ROWS.code_qualname),
        code_linetable: at(&ROWS.code_linetable),
        code_bytes: at(&ROWS.code_bytes),
        code_version: at(&ROWS.code_version),
        code_frame_size: at(&ROWS.code_frame_size),
        code_tlbc: at(&ROWS.code_tlbc),
        object_type: at(&ROWS.object_type),
        bytes_size: at(&ROWS.bytes_size),
        bytes_data: at(&ROWS.bytes_data),
        str_length: at(&ROWS.str_length),
        str_hash: at(&ROWS.str_hash),
        str_state: at(&ROWS.str_state),
        str_ascii: at(&ROWS.str_ascii),
        str_compact: at(&ROWS.str_compact),
    };
    (layout.code_start, layout.code_span) = code_bounds(&layout);
    Some(layout)
}

/// Where in a code object that lies which is read of it, in whole words: its first byte but for
/// the type, which is not always read, and how many bytes from the object's start hold everything.
/// The code itself (from 3.11) is not among them.
pub(super) fn code_bounds(layout: &Layout) -> (u32, u32) {
    let mut fields = vec![
        layout.code_first_line,
        layout.code_filename,
        layout.code_name,
        layout.code_linetable,
    ];
    if layout.chain == Chain::FrameObject as u32 {
        fields.push(layout.code_bytes);
    }
    let optional = [layout.code_qualname, layout.code_version];
    fields.extend(optional.into_iter().filter(|offset| *offset != 0));
    let start = fields
        .iter()
        .fold(u32::MAX, |start, offset| start.min(*offset));
    let end = fields
        .iter()
        .chain([&layout.object_type])
        .fold(0, |end, offset| end.max(offset.saturating_add(8)));
    (start & !7, end.next_multiple_of(8))
}

#[cfg(test)]
mod tests;
