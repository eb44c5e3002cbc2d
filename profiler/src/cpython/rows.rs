//! Offsets in the structures of CPython 3.6 to 3.15 (x86-64, with a GIL), one column per minor
//! version, and the [`Layout`] that each column makes.
//!
//! `cargo xtask layouts --check` compiles against the headers of the installed Pythons and compares.
//! From 3.13 on, what the binary's own `_Py_DebugOffsets` says goes over these values.

use profiler_ebpf::{Chain, Gil, Layout, layout_flags};

/// The first supported minor version of Python 3: the first column.
pub(super) const FIRST_MINOR: u8 = 6;
/// The last supported minor version of Python 3: the last column.
pub(super) const LAST_MINOR: u8 = 15;
const COLUMNS: usize = (LAST_MINOR - FIRST_MINOR + 1) as usize;

/// One value per minor version, 3.6 first; 0 where the version has no such field.
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
    gil_offset: Row,
    frame_code: Row,
    frame_previous: Row,
    frame_instruction: Row,
    frame_owner: Row,
    code_first_line: Row,
    code_filename: Row,
    code_name: Row,
    code_qualname: Row,
    code_linetable: Row,
    code_bytes: Row,
    code_version: Row,
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

/// Columns: 3.6, 3.7, 3.8, 3.9, 3.10, 3.11, 3.12, 3.13, 3.14, 3.15. The first group is in
/// `_PyRuntime` (3.6 keeps these in variables of their own); `gil_offset` is what [`Gil`] says.
static ROWS: Rows = Rows {
    interpreters_head: [0, 24, 32, 32, 32, 40, 40, 632, 808, 936],
    current: [0, 1480, 1368, 568, 568, 576, 0, 0, 0, 0],
    tss_key: [0, 1508, 1396, 588, 588, 596, 1548, 2164, 2340, 0],
    interpreter_next: [0, 0, 0, 0, 0, 0, 0, 7264, 7272, 7264],
    interpreter_threads: [8, 8, 8, 8, 8, 16, 72, 7344, 7344, 7336],
    thread_next: [8, 8, 8, 8, 8, 8, 8, 8, 8, 8],
    thread_interpreter: [16, 16, 16, 16, 16, 16, 16, 16, 16, 16],
    thread_frame: [24, 24, 24, 24, 24, 56, 56, 72, 72, 72],
    thread_id: [152, 176, 176, 176, 176, 152, 136, 152, 152, 176],
    cframe_frame: [0, 0, 0, 0, 0, 8, 0, 0, 0, 0],
    gil_offset: [0, 0, 0, 0, 0, 0, 384, 32, 36, 36],
    frame_code: [32, 32, 32, 32, 32, 32, 0, 0, 0, 0],
    frame_previous: [24, 24, 24, 24, 24, 48, 8, 8, 8, 8],
    frame_instruction: [120, 104, 104, 104, 96, 56, 56, 56, 56, 56],
    frame_owner: [0, 0, 0, 0, 0, 69, 70, 70, 74, 74],
    code_first_line: [36, 36, 40, 40, 40, 72, 68, 68, 68, 68],
    code_filename: [96, 96, 104, 104, 104, 112, 112, 112, 112, 112],
    code_name: [104, 104, 112, 112, 112, 120, 120, 120, 120, 120],
    code_qualname: [0, 0, 0, 0, 0, 128, 128, 128, 128, 128],
    code_linetable: [112, 112, 120, 120, 120, 136, 136, 136, 136, 136],
    code_bytes: [40, 40, 48, 48, 48, 184, 192, 200, 208, 208],
    code_version: [0, 0, 0, 0, 0, 0, 92, 92, 92, 92],
    object_type: [8, 8, 8, 8, 8, 8, 8, 8, 8, 8],
    bytes_size: [16, 16, 16, 16, 16, 16, 16, 16, 16, 16],
    bytes_data: [32, 32, 32, 32, 32, 32, 32, 32, 32, 32],
    str_length: [16, 16, 16, 16, 16, 16, 16, 16, 16, 16],
    str_hash: [24, 24, 24, 24, 24, 24, 24, 24, 24, 24],
    str_state: [32, 32, 32, 32, 32, 32, 32, 32, 32, 32],
    str_ascii: [48, 48, 48, 48, 48, 48, 40, 40, 40, 40],
    str_compact: [72, 72, 72, 72, 72, 72, 56, 56, 56, 56],
    modules: [16, 40, 56, 856, 856, 888, 944, 7656, 7688, 7592],
    type_keys: [856, 856, 872, 864, 872, 872, 880, 880, 880, 888],
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

/// What leads to the names of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamesRow {
    /// `PyInterpreterState.modules`, from 3.12 on `imports.modules`: the dictionary of modules.
    pub modules: u32,
    /// `PyHeapTypeObject.ht_cached_keys`: the keys that instances of a class share.
    pub type_keys: u32,
}

fn column(minor: u8) -> Option<usize> {
    (FIRST_MINOR..=LAST_MINOR)
        .contains(&minor)
        .then(|| usize::from(minor - FIRST_MINOR))
}

/// The offsets within `_PyRuntime` of Python 3.`minor`, where that is supported.
pub(super) fn runtime(minor: u8) -> Option<RuntimeRow> {
    let column = column(minor)?;
    Some(RuntimeRow {
        interpreters_head: ROWS.interpreters_head[column],
        current: ROWS.current[column],
        tss_key: ROWS.tss_key[column],
    })
}

/// What leads to the names of threads of Python 3.`minor`, where that is supported.
pub(super) fn names(minor: u8) -> Option<NamesRow> {
    let column = column(minor)?;
    Some(NamesRow {
        modules: ROWS.modules[column],
        type_keys: ROWS.type_keys[column],
    })
}

/// The layout of Python 3.`minor` with a GIL, where that is supported.
pub fn layout(minor: u8) -> Option<Layout> {
    let column = column(minor)?;
    let at = |row: &Row| row[column];
    let (chain, gil, gil_mask) = match minor {
        ..=10 => (Chain::FrameObject, Gil::Current, 0),
        11 => (Chain::CFrame, Gil::Current, 0),
        12 => (Chain::CFrame, Gil::Holder, 0),
        13 => (Chain::CurrentFrame, Gil::Status, STATUS_HOLDS_GIL),
        _ => (Chain::CurrentFrame, Gil::Status, u32::MAX),
    };
    let mut flags = 0;
    if minor >= 12 {
        flags |= layout_flags::ENDS_AT_ENTRY | layout_flags::ENTRY_FRAMES;
    }
    if matches!(minor, 11 | 12) {
        flags |= layout_flags::TORN_CALLS;
    }
    let (frame_start, frame_span) = match chain {
        Chain::FrameObject => FRAME_OBJECT,
        Chain::CFrame | Chain::CurrentFrame => INTERPRETER_FRAME,
    };
    let mut layout = Layout {
        version: 3 << 8 | u32::from(minor),
        chain: chain as u32,
        flags,
        interpreter_next: at(&ROWS.interpreter_next),
        interpreter_threads: at(&ROWS.interpreter_threads),
        thread_next: at(&ROWS.thread_next),
        thread_interpreter: at(&ROWS.thread_interpreter),
        thread_frame: at(&ROWS.thread_frame),
        thread_id: at(&ROWS.thread_id),
        cframe_frame: at(&ROWS.cframe_frame),
        gil: gil as u32,
        gil_offset: at(&ROWS.gil_offset),
        gil_mask,
        frame_start,
        frame_span,
        frame_code: at(&ROWS.frame_code),
        frame_previous: at(&ROWS.frame_previous),
        frame_instruction: at(&ROWS.frame_instruction),
        frame_owner: at(&ROWS.frame_owner),
        code_span: 0,
        code_first_line: at(&ROWS.code_first_line),
        code_filename: at(&ROWS.code_filename),
        code_name: at(&ROWS.code_name),
        code_qualname: at(&ROWS.code_qualname),
        code_linetable: at(&ROWS.code_linetable),
        code_bytes: at(&ROWS.code_bytes),
        code_version: at(&ROWS.code_version),
        object_type: at(&ROWS.object_type),
        bytes_size: at(&ROWS.bytes_size),
        bytes_data: at(&ROWS.bytes_data),
        str_length: at(&ROWS.str_length),
        str_hash: at(&ROWS.str_hash),
        str_state: at(&ROWS.str_state),
        str_kind_shift: 2,
        str_ascii: at(&ROWS.str_ascii),
        str_compact: at(&ROWS.str_compact),
    };
    layout.code_span = code_span(&layout);
    Some(layout)
}

/// How many bytes of a code object hold everything that is read of it, in whole words. The code
/// itself (from 3.11) is not among them.
pub(super) fn code_span(layout: &Layout) -> u32 {
    let code = match layout.chain == Chain::FrameObject as u32 {
        true => layout.code_bytes,
        false => 0,
    };
    [
        layout.object_type,
        layout.code_first_line,
        layout.code_filename,
        layout.code_name,
        layout.code_qualname,
        layout.code_linetable,
        layout.code_version,
        code,
    ]
    .into_iter()
    .fold(0, |span, offset| span.max(offset.saturating_add(8)))
    .next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::python::{CODE_SPAN_MAX, FRAME_SPAN_MAX};

    use super::*;

    #[test]
    fn only_the_supported_versions_have_a_layout() {
        assert_eq!(layout(5), None);
        assert_eq!(layout(16), None);
        assert_eq!(runtime(5), None);
        for minor in FIRST_MINOR..=LAST_MINOR {
            let layout = layout(minor).unwrap();
            assert_eq!(layout.version, 0x300 + u32::from(minor));
        }
    }

    #[test]
    fn every_field_of_a_frame_lies_in_what_is_read() {
        for minor in FIRST_MINOR..=LAST_MINOR {
            let layout = layout(minor).unwrap();
            assert!(layout.frame_span as usize <= FRAME_SPAN_MAX);
            let end = layout.frame_start + layout.frame_span;
            for (field, size) in [
                (layout.frame_code, 8),
                (layout.frame_previous, 8),
                (layout.frame_instruction, if minor < 11 { 4 } else { 8 }),
            ] {
                assert!(field >= layout.frame_start, "3.{minor}: {field}");
                assert!(field + size <= end, "3.{minor}: {field}");
            }
            assert!(layout.frame_owner < end);
        }
    }

    #[test]
    fn the_span_of_a_code_object_ends_with_the_line_table() {
        let spans = (FIRST_MINOR..=LAST_MINOR).map(|minor| layout(minor).unwrap().code_span);
        let spans: Vec<_> = spans.collect();
        assert_eq!(spans, [120, 120, 128, 128, 128, 144, 144, 144, 144, 144]);
        assert!(spans.iter().all(|span| *span as usize <= CODE_SPAN_MAX));
    }

    #[test]
    fn the_gil_is_told_as_each_version_tells_it() {
        let gil = |minor| {
            let layout = layout(minor).unwrap();
            (layout.gil, layout.gil_offset, layout.gil_mask)
        };
        assert_eq!(gil(6), (Gil::Current as u32, 0, 0));
        assert_eq!(gil(11), (Gil::Current as u32, 0, 0));
        assert_eq!(gil(12), (Gil::Holder as u32, 384, 0));
        assert_eq!(gil(13), (Gil::Status as u32, 32, 0x20));
        assert_eq!(gil(14), (Gil::Status as u32, 36, u32::MAX));
        assert_eq!(gil(15), (Gil::Status as u32, 36, u32::MAX));
    }
}
