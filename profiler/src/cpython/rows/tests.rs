//! Which builds have a layout, and what must hold of every one.

use profiler_ebpf::python::{CODE_SPAN_MAX, FRAME_SPAN_MAX};

use super::*;

#[test]
fn only_the_supported_versions_have_a_layout() {
    assert_eq!(layout(5), None);
    assert_eq!(layout(16), None);
    assert_eq!(runtime(5), None);
    assert_eq!(layout(Build::new(2, 6, false)), None);
    assert_eq!(layout(Build::new(3, 12, true)), None);
    for build in Build::ALL {
        let layout = layout(build).unwrap();
        assert_eq!(layout.version, build.version());
        let free_threaded = layout.flags & layout_flags::FREE_THREADED != 0;
        assert_eq!(free_threaded, build.free_threaded);
    }
}

#[test]
fn micro_releases_that_differ_have_rows_of_their_own() {
    let row = |minor, micro| {
        let major = 3;
        let version = Version {
            major,
            minor,
            micro,
        };
        let row = runtime(minor).unwrap().of_release(version);
        (row.interpreters_head, row.current, row.tss_key)
    };
    assert_eq!(row(7, 3), (24, 1392, 1420));
    assert_eq!(row(7, 4), (24, 1480, 1508));
    assert_eq!(row(8, 0), (32, 1368, 1396));
}

#[test]
fn every_field_of_a_frame_lies_in_what_is_read() {
    for build in Build::ALL {
        let layout = layout(build).unwrap();
        assert!(layout.frame_span as usize <= FRAME_SPAN_MAX);
        let end = layout.frame_start + layout.frame_span;
        for (field, size) in [
            (layout.frame_code, 8),
            (layout.frame_previous, 8),
            (
                layout.frame_instruction,
                if build.minor < 11 { 4 } else { 8 },
            ),
        ] {
            assert!(field >= layout.frame_start, "{build}: {field}");
            assert!(field + size <= end, "{build}: {field}");
        }
        assert!(layout.frame_owner < end);
        assert!(layout.frame_tlbc + 4 <= end);
    }
}

#[test]
fn what_is_read_of_a_code_object_is_no_more_than_needed() {
    let bounds = Build::ALL.map(|build| {
        let layout = layout(build).unwrap();
        (layout.code_start, layout.code_span)
    });
    let expected = [
        (32, 112),
        (32, 120),
        (32, 120),
        (40, 128),
        (40, 128),
        (40, 128),
        (72, 144),
        (64, 144),
        (64, 144),
        (64, 144),
        (64, 144),
        (80, 160),
        (80, 160),
        (80, 160),
    ];
    assert_eq!(bounds, expected);
    assert!(
        bounds
            .iter()
            .all(|(_, span)| *span as usize <= CODE_SPAN_MAX)
    );
}

#[test]
fn the_gil_is_told_as_each_version_tells_it() {
    let of = |build| {
        let layout = layout(build).unwrap();
        (layout.gil, layout.gil_offset, layout.gil_mask)
    };
    let gil = |minor: u8| of(Build::from(minor));
    assert_eq!(of(Build::new(2, 7, false)), (Gil::Current as u32, 0, 0));
    for (minor, state) in [(13, 40), (14, 44), (15, 48)] {
        let expected = (Gil::Attached as u32, state, 0);
        assert_eq!(of(Build::new(3, minor, true)), expected);
    }
    assert_eq!(gil(6), (Gil::Current as u32, 0, 0));
    assert_eq!(gil(11), (Gil::Current as u32, 0, 0));
    assert_eq!(gil(12), (Gil::Holder as u32, 384, 0));
    assert_eq!(gil(13), (Gil::Status as u32, 32, 0x20));
    assert_eq!(gil(14), (Gil::Status as u32, 36, u32::MAX));
    assert_eq!(gil(15), (Gil::Status as u32, 36, u32::MAX));
}
