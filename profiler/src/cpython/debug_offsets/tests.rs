//! Tests of the parser of `_Py_DebugOffsets`, on tables of releases and on damaged ones.

use super::*;

/// A table as a release has it: `tests/data/debug_offsets` keeps its words after the cookie.
fn recorded(release: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/debug_offsets");
    let path = format!("{folder}/{release}.txt");
    let text = std::fs::read_to_string(&path).expect(&path);
    let mut bytes = COOKIE.to_vec();
    for word in text.split_whitespace() {
        bytes.extend_from_slice(&word.parse::<u64>().unwrap().to_le_bytes());
    }
    bytes
}

fn with(release: &str, index: usize, value: u64) -> Vec<u8> {
    let mut bytes = recorded(release);
    bytes[8 * index..8 * index + 8].copy_from_slice(&value.to_le_bytes());
    bytes
}

const RELEASES: [(&str, Build); 5] = [
    ("3.13.0", Build::new(3, 13, false)),
    ("3.13.18", Build::new(3, 13, false)),
    ("3.14.10", Build::new(3, 14, false)),
    ("3.15.2", Build::new(3, 15, false)),
    ("3.13.5t", Build::new(3, 13, true)),
];

#[test]
fn released_tables_say_what_the_rows_say() {
    for (release, build) in RELEASES {
        let bytes = recorded(release);
        let (_, words) = WORDS
            .iter()
            .find(|(known, _)| *known == build.minor)
            .unwrap();
        assert_eq!(bytes.len(), 8 * words, "{release}");
        let fields: usize = FIELDS
            .iter()
            .filter(|(since, ..)| *since <= build.minor)
            .map(|(.., fields)| fields.len())
            .sum();
        assert!(3 + fields <= *words, "{release}");
        let (layout, runtime) = parse(&bytes).unwrap();
        assert_eq!(Some(layout), rows::layout(build), "{release}");
        assert_eq!(Some(runtime), rows::runtime(build), "{release}");
        assert_eq!(version(&bytes).unwrap().text, release.trim_end_matches('t'));
    }
}

/// A table as 3.14 and later have it without a GIL: the words that the row has, where the release
/// with one has 0.
#[test]
fn tables_without_a_gil_say_where_threads_keep_their_code() {
    for (release, minor) in [("3.14.10", 14), ("3.15.2", 15)] {
        let row = rows::layout(Build::new(3, minor, true)).unwrap();
        let mut bytes = with(release, 2, 1);
        let words = [
            ("interpreter_state", "next", row.interpreter_next),
            ("interpreter_state", "threads_head", row.interpreter_threads),
            ("interpreter_frame", "owner", row.frame_owner),
            ("interpreter_frame", "tlbc_index", row.frame_tlbc),
            ("code_object", "size", row.code_bytes + 8),
            ("code_object", "filename", row.code_filename),
            ("code_object", "name", row.code_name),
            ("code_object", "qualname", row.code_qualname),
            ("code_object", "linetable", row.code_linetable),
            ("code_object", "firstlineno", row.code_first_line),
            ("code_object", "co_code_adaptive", row.code_bytes),
            ("code_object", "co_tlbc", row.code_tlbc),
            ("pyobject", "size", 32),
            ("pyobject", "ob_type", row.object_type),
            ("bytes_object", "size", row.bytes_data + 1),
            ("bytes_object", "ob_size", row.bytes_size),
            ("bytes_object", "ob_sval", row.bytes_data),
            ("unicode_object", "size", row.str_compact + 8),
            ("unicode_object", "state", row.str_state),
            ("unicode_object", "length", row.str_length),
            ("unicode_object", "asciiobject_size", row.str_ascii),
            (
                "unicode_object",
                "compactunicodeobject_size",
                row.str_compact,
            ),
        ];
        for (structure, field, value) in words {
            if let Some(index) = index(minor, structure, field) {
                bytes[8 * index..8 * index + 8].copy_from_slice(&u64::from(value).to_le_bytes());
            }
        }
        assert_eq!(parse(&bytes).unwrap().0, row, "{release}");
        let at = 8 * index(minor, "interpreter_frame", "tlbc_index").unwrap();
        bytes[at..at + 8].copy_from_slice(&6_u64.to_le_bytes());
        let refusal = parse(&bytes).unwrap_err().to_string();
        assert!(
            refusal.contains("interpreter_frame.tlbc_index is at 6"),
            "{refusal}"
        );
    }
}

#[test]
fn the_table_goes_over_the_row() {
    // thread_state.next of 3.13: word 3 + 3 + 4 + 5 + 4 + 2.
    let (layout, _) = parse(&with("3.13.0", 21, 64)).unwrap();
    assert_eq!(layout.thread_next, 64);
    let misaligned = parse(&with("3.13.0", 21, 12)).unwrap_err();
    let said = "its _Py_DebugOffsets say that thread_state.next is at 12, which can't be";
    assert_eq!(misaligned.to_string(), said);
}

#[test]
fn a_table_that_is_not_whole_is_refused() {
    for (release, _) in RELEASES {
        let bytes = recorded(release);
        for length in 0..bytes.len() {
            let refusal = parse(&bytes[..length]).unwrap_err();
            assert!(matches!(refusal, Refusal::Damaged(_)), "{refusal}");
        }
    }
    let mut bytes = recorded("3.14.10");
    bytes[7] = b'z';
    assert_eq!(version(&bytes), None);
    assert!(matches!(parse(&bytes), Err(Refusal::Damaged(_))));
}

#[test]
fn what_has_no_exact_layout_is_refused_by_name() {
    let refusal = |bytes: &[u8]| parse(bytes).unwrap_err();
    let pre_release = |text: &str| Refusal::PreRelease(text.to_owned());
    assert_eq!(
        refusal(&with("3.15.2", 1, 0x030f_00b4)),
        pre_release("3.15.0b4")
    );
    assert_eq!(
        refusal(&with("3.15.2", 1, 0x030f_00a1)),
        pre_release("3.15.0a1")
    );
    assert_eq!(
        refusal(&with("3.14.10", 1, 0x030e_00c3)),
        pre_release("3.14.0rc3")
    );
    let odd = Refusal::Absurd {
        field: "_Py_DebugOffsets.free_threaded".to_owned(),
        value: 2,
    };
    assert_eq!(refusal(&with("3.14.10", 2, 2)), odd);
    assert_eq!(refusal(&with("3.15.2", 1, 0x0310_00f0)), Refusal::Version);
    assert_eq!(refusal(&with("3.15.2", 1, 0x030c_00f0)), Refusal::Version);
    assert_eq!(refusal(&with("3.15.2", 1, 0x040d_00f0)), Refusal::Version);
    let bytes = with("3.15.2", 1, u64::MAX);
    assert!(matches!(refusal(&bytes), Refusal::Damaged(_)));
}

#[test]
fn absurd_values_are_refused_or_not_used() {
    for (release, build) in RELEASES {
        let words = recorded(release).len() / 8;
        let mut refused = 0;
        for index in 3..words {
            for value in [u64::MAX, 1 << 32, 1 << 31, u64::MAX - 7] {
                match parse(&with(release, index, value)) {
                    Err(Refusal::Absurd { value: seen, .. }) => {
                        refused += 1;
                        assert_eq!(seen, value, "{release} word {index}");
                    }
                    Err(other) => panic!("{release} word {index}: {other}"),
                    Ok((layout, _)) => assert_eq!(Some(layout), rows::layout(build)),
                }
            }
        }
        assert!(refused > 100, "{release}: only {refused}");
    }
}

#[test]
fn whatever_is_accepted_can_be_read_by_the_walk() {
    let mut state = 3_u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        state >> 33
    };
    let mut accepted = 0;
    for round in 0..20_000 {
        let (release, _) = RELEASES[round % RELEASES.len()];
        let mut bytes = recorded_once(release);
        for _ in 0..1 + random() % 3 {
            let index = 3 + random() as usize % (bytes.len() / 8 - 3);
            let value = (random() % [16, 128, 1024, 1 << 20][random() as usize % 4]) & !7;
            bytes[8 * index..8 * index + 8].copy_from_slice(&value.to_le_bytes());
        }
        let Ok((layout, _)) = parse(&bytes) else {
            continue;
        };
        accepted += 1;
        let thread = layout.thread_id as usize + 8;
        assert!(thread < THREAD_SPAN_MAX);
        assert!(layout.thread_frame as usize + 8 <= thread);
        assert!(layout.thread_interpreter as usize + 8 <= thread);
        assert!(layout.gil_offset as usize + 4 <= thread);
        assert!(layout.thread_interpreter <= layout.thread_frame);
        assert!(layout.thread_interpreter <= layout.gil_offset);
        assert!((layout.code_span as usize) < CODE_SPAN_MAX);
        assert!(layout.code_linetable + 8 <= layout.code_span);
        assert!(layout.code_version + 4 <= layout.code_span);
        assert!(layout.frame_instruction + 8 <= layout.frame_span);
        assert!(layout.frame_owner < layout.frame_span);
    }
    assert!(accepted > 1000, "{accepted}");
}

/// [`recorded`], read from its file once.
fn recorded_once(release: &str) -> Vec<u8> {
    use std::cell::RefCell;
    use std::collections::HashMap;
    thread_local! {
        static TABLES: RefCell<HashMap<String, Vec<u8>>> = RefCell::default();
    }
    TABLES.with_borrow_mut(|tables| {
        let table = tables.entry(release.to_owned());
        table.or_insert_with(|| recorded(release)).clone()
    })
}
