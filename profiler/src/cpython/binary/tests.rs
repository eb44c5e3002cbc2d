//! Tests of what a file is, on small ELF files made by hand, whole and damaged; and of the cache.

use std::io::Write;
use std::time::{Duration, SystemTime};

use object::elf;

use super::*;

const BASE: u64 = 0x40_0000;
/// Where the parts of [`elf`] begin in the file.
const SYMBOLS_AT: u64 = 0x200;
const NAMES_AT: u64 = 0x400;
const DATA_AT: u64 = 0x600;
/// The dynamic segment of [`bare`].
const DYNAMIC_AT: u64 = 0x900;
const LENGTH: u64 = 0xa00;

fn words(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// An executable with one segment and a `.dynsym` of these symbols, all at [`DATA_AT`], where the
/// file has `data`.
fn elf(symbols: &[&str], data: &[u8]) -> Vec<u8> {
    let mut names = vec![0];
    let mut entries = vec![0; 24];
    for symbol in symbols {
        entries.extend_from_slice(&(names.len() as u32).to_le_bytes());
        // A global object of the first section.
        entries.extend_from_slice(&[0x11, 0, 1, 0]);
        entries.extend_from_slice(&words(&[BASE + DATA_AT, 64]));
        names.extend_from_slice(symbol.as_bytes());
        names.push(0);
    }
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // ET_EXEC, EM_X86_64; program headers at 64, section headers at 128.
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend_from_slice(&words(&[BASE, 64, 128]));
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 3, 0, 0, 0]);
    // PT_LOAD, all of the file, readable and executable.
    file.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    file.extend_from_slice(&words(&[0, BASE, BASE, LENGTH, LENGTH, 4096]));
    file.resize(128, 0);
    file.extend_from_slice(&[0; 64]);
    for (kind, at, size, link) in [
        (11_u64, SYMBOLS_AT, entries.len(), 2),
        (3, NAMES_AT, names.len(), 0),
    ] {
        file.extend_from_slice(&words(&[
            kind << 32,
            2,
            BASE + at,
            at,
            size as u64,
            link,
            8,
            24,
        ]));
    }
    for (at, part) in [
        (SYMBOLS_AT, entries.as_slice()),
        (NAMES_AT, &names),
        (DATA_AT, data),
    ] {
        assert!(file.len() as u64 <= at);
        file.resize(at as usize, 0);
        file.extend_from_slice(part);
    }
    assert!(file.len() as u64 <= LENGTH);
    file.resize(LENGTH as usize, 0);
    file
}

/// The same as a loader needs it: without section headers, with a dynamic segment.
fn bare(symbols: &[&str], data: &[u8]) -> Vec<u8> {
    let mut whole = elf(symbols, data);
    let dynamic = words(&[
        elf::DT_STRTAB as u64,
        BASE + NAMES_AT,
        elf::DT_STRSZ as u64,
        DATA_AT - NAMES_AT,
        elf::DT_SYMTAB as u64,
        BASE + SYMBOLS_AT,
        0,
        0,
    ]);
    whole[DYNAMIC_AT as usize..][..dynamic.len()].copy_from_slice(&dynamic);
    // Two program headers where the section headers were: all of it, which is writable, and this.
    let load = whole[64..64 + 56].to_vec();
    whole[128..128 + 56].copy_from_slice(&load);
    whole[128 + 4] = 7;
    let mut header = vec![2, 0, 0, 0, 6, 0, 0, 0];
    let (at, length) = (BASE + DYNAMIC_AT, dynamic.len() as u64);
    header.extend_from_slice(&words(&[DYNAMIC_AT, at, at, length, length, 8]));
    whole[128 + 56..128 + 112].copy_from_slice(&header);
    whole[32..48].copy_from_slice(&words(&[128, 0]));
    whole[56] = 2;
    whole[60..64].fill(0);
    whole
}

fn look(file: File) -> Look {
    Image::open(file).map_or(Look::NotPython, super::look)
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn refusal(bytes: &[u8]) -> (String, String) {
    match look(file(bytes)) {
        Look::Unsupported { what, why } => (what, why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_file_is_depends_on_the_symbols_that_it_defines() {
    let python = ["_PyRuntime", "Py_Version", "PyCode_Type"];
    let Look::Python(found) = look(file(&elf(&python, &0x030b_07f0_u32.to_le_bytes()))) else {
        panic!("not found");
    };
    assert_eq!(found.version.to_string(), "3.11.7");
    assert_eq!(found.addresses.interpreters, BASE + DATA_AT + 40);
    assert_eq!(found.addresses.current, BASE + DATA_AT + 576);
    assert_eq!(found.addresses.code_type, BASE + DATA_AT);
    let other = look(file(&elf(&["Py_Version", "main"], &[])));
    assert!(matches!(other, Look::NotPython), "{other:?}");
    let mut undefined = elf(&python, &[]);
    for symbol in 1..=python.len() {
        undefined[SYMBOLS_AT as usize + 24 * symbol + 6] = 0;
    }
    assert!(matches!(look(file(&undefined)), Look::NotPython));
    for not_elf in [&b""[..], b"#!/bin/sh\n", &[0x7f; 64]] {
        assert!(matches!(look(file(not_elf)), Look::NotPython));
    }
}

#[test]
fn a_cpython_that_is_not_supported_says_why() {
    let with = |symbols: &[&str], hex: u32| refusal(&elf(symbols, &hex.to_le_bytes()));
    let python = ["_PyRuntime", "Py_Version", "PyCode_Type"];
    let (version, why) = with(&python, 0x0310_00f0);
    assert_eq!(
        (version.as_str(), why.as_str()),
        (
            "CPython 3.16.0",
            "only CPython 2.7 and 3.6 to 3.15 are supported",
        )
    );
    let (version, why) = with(&python, 0x030c_00c2);
    assert_eq!(version, "CPython 3.12.0rc2");
    assert!(why.starts_with("it is a pre-release"), "{why}");
    let (_, why) = with(
        &["_PyRuntime", "Py_Version", "PyCode_Type", DEBUG_BUILD],
        0x030b_07f0,
    );
    assert!(why.starts_with("it is a debug build (pydebug)"), "{why}");
    let (_, why) = with(
        &["_PyRuntime", "Py_Version", "PyCode_Type", TRACE_REFS],
        0x030b_07f0,
    );
    assert!(why.starts_with("it is built with Py_TRACE_REFS"), "{why}");
    let (_, why) = with(&["_PyRuntime", "Py_Version"], 0x030b_07f0);
    assert_eq!(why, "it has no symbol PyCode_Type");
    let (version, _) = with(&["_PyRuntime"], 0);
    assert_eq!(version, "CPython of unknown version");
    let (_, why) = with(&python, 0x030d_00f0);
    assert_eq!(
        why,
        "its _Py_DebugOffsets are damaged: no cookie \"xdebugpy\""
    );
}

#[test]
fn a_python_that_is_no_cpython_is_called_what_it_is() {
    for (symbol, name) in [
        ("pypy_execute_source", "PyPy"),
        ("initialize_graal_capi", "GraalPy"),
    ] {
        let (what, why) = refusal(&elf(&["main", symbol], &[]));
        assert_eq!(what, name);
        assert!(why.ends_with("use CPython"), "{why}");
    }
}

#[test]
fn constants_are_found_wherever_they_lie_in_what_is_only_read() {
    let mark = b"a mark of some length";
    let at_end = (3 << 20) - mark.len();
    // Read from the end in pieces of 1 MiB: within one, and across two.
    for at in [LENGTH as usize, 2 << 20, (1 << 20) - 5, at_end] {
        let mut bytes = elf(&["main"], &[]);
        bytes.resize(3 << 20, 0);
        let size = words(&[3 << 20]);
        bytes[64 + 32..][..8].copy_from_slice(&size);
        bytes[64 + 40..][..8].copy_from_slice(&size);
        bytes[at..][..mark.len()].copy_from_slice(mark);
        let have = |flags: u8| {
            let mut bytes = bytes.clone();
            bytes[64 + 4] = flags;
            Image::open(file(&bytes)).unwrap().constants_have(mark)
        };
        // PF_R; with PF_X, with PF_W.
        assert_eq!([4, 5, 6].map(have), [true, false, false], "{at:#x}");
    }
}

#[test]
fn exported_symbols_are_found_without_section_headers() {
    let python = ["_PyRuntime", "Py_Version", "PyCode_Type"];
    let version = 0x030b_07f0_u32.to_le_bytes();
    let Look::Python(found) = look(file(&bare(&python, &version))) else {
        panic!("not found");
    };
    assert_eq!(found.version.to_string(), "3.11.7");
    assert_eq!(found.addresses.code_type, BASE + DATA_AT);
    // By the hash table of either kind, which tells how many symbols there are.
    for (tag, table, more) in [
        (elf::DT_HASH, vec![1_u32, 4, 0, 0], true),
        (elf::DT_HASH, vec![1, 2, 0, 0], false),
        // One bucket, symbols from 1 on, one word of filter; the chain ends with the fourth.
        (elf::DT_GNU_HASH, vec![1, 1, 1, 0, 0, 0, 1, 2, 2, 3], true),
        (elf::DT_GNU_HASH, vec![1, 1, 1, 0, 0, 0, 1, 3, 2, 2], false),
    ] {
        let mut hashed = bare(&python, &version);
        let entry = words(&[tag as u64, BASE + DATA_AT + 0x100, 0, 0]);
        hashed[DYNAMIC_AT as usize + 48..][..32].copy_from_slice(&entry);
        for (index, word) in table.iter().enumerate() {
            hashed[DATA_AT as usize + 0x100 + 4 * index..][..4]
                .copy_from_slice(&word.to_le_bytes());
        }
        let found = matches!(look(file(&hashed)), Look::Python(_));
        assert_eq!(found, more, "{table:?}");
    }
}

#[test]
fn a_runtime_that_nothing_names_is_found_by_its_cookie() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/debug_offsets");
    let text = std::fs::read_to_string(format!("{folder}/3.13.0.txt")).unwrap();
    let recorded: Vec<u64> = text
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    let table = |version: u64| {
        let mut table = b"xdebugpyxdebugpy".to_vec();
        table.extend_from_slice(&words(&recorded));
        table[16..24].copy_from_slice(&version.to_le_bytes());
        table
    };
    let Look::Python(found) = look(file(&bare(&["main"], &table(recorded[0])))) else {
        panic!("not found");
    };
    assert_eq!(found.version.to_string(), "3.13.0");
    assert_eq!(found.addresses.interpreters, BASE + DATA_AT + 8 + 632);
    assert_eq!(found.addresses.code_type, 0, "a live process tells it");
    for version in [0, 0x0205_00f0, 0x030c_00f0, 0x040d_00f0, u64::MAX] {
        let other = look(file(&bare(&["main"], &table(version))));
        assert!(matches!(other, Look::NotPython), "{other:?}");
    }
    // Where sections are named, none of them being Python's, variables are not searched.
    let other = look(file(&elf(&["main"], &table(recorded[0])[..0x200])));
    assert!(matches!(other, Look::NotPython), "{other:?}");
}

#[test]
fn damaged_files_are_looked_at_without_harm() {
    let python = [
        "_PyRuntime",
        "Py_Version",
        "PyCode_Type",
        "PyGILState_GetThisThreadState",
    ];
    let version = 0x030b_07f0_u32.to_le_bytes();
    for whole in [elf(&python, &version), bare(&python, &version)] {
        damage(&whole);
    }
}

fn damage(whole: &[u8]) {
    for length in (0..whole.len()).step_by(7) {
        look(file(&whole[..length]));
    }
    for at in (0..NAMES_AT as usize).filter(|at| whole[*at] != 0 || at % 8 == 0) {
        for value in [0, 1, 0x7f, 0xff] {
            let mut damaged = whole.to_vec();
            damaged[at] = value;
            look(file(&damaged));
            // A claim of a size that no memory would hold.
            let field = at / 8 * 8;
            damaged[field..field + 8].copy_from_slice(&[
                0xff - value,
                0xff,
                0xff,
                0xff,
                0xff,
                value,
                0xff,
                0x7f,
            ]);
            look(file(&damaged));
        }
    }
}

/// `whole` with its section headers moved behind its end, and after its own three of them these:
/// (kind, offset, size, link).
fn with_sections(whole: &[u8], more: &[(u64, u64, u64, u64)]) -> Vec<u8> {
    let mut file = whole.to_vec();
    file.extend_from_slice(&whole[128..128 + 3 * 64]);
    for (kind, at, size, link) in more {
        file.extend_from_slice(&words(&[kind << 32, 2, 0, *at, *size, *link, 8, 24]));
    }
    file[40..48].copy_from_slice(&LENGTH.to_le_bytes());
    file[60..62].copy_from_slice(&(3 + more.len() as u16).to_le_bytes());
    file
}

#[test]
fn only_the_first_table_of_a_kind_is_read() {
    let mut whole = elf(&["_PyRuntime"], &[]);
    let (version, _) = refusal(&with_sections(&whole, &[(11, 0, 0, 0)]));
    assert_eq!(version, "CPython of unknown version");
    let table = whole[128 + 64..][..64].to_vec();
    let table = (11, SYMBOLS_AT, u64::from(table[32]), 2);
    // The first one becomes a table without symbols, which is all that a linker would have made.
    whole[128 + 64 + 32..][..8].fill(0);
    let found = look(file(&with_sections(&whole, &[table; 1000])));
    assert!(matches!(found, Look::NotPython), "{found:?}");
}

#[test]
fn of_one_file_a_bounded_number_of_bytes_is_read() {
    let file = file(&elf(&["_PyRuntime"], &[]));
    let image = Image::open(file).unwrap();
    let reads = |most: usize| {
        let bytes = (0..most).map_while(|_| image.bytes(BASE, LENGTH));
        bytes.map(|bytes| bytes.len() as u64).sum::<u64>()
    };
    assert_eq!(reads(1000), 1000 * LENGTH);
    let (in_all, most) = (1000 * LENGTH + reads(1 << 16), 64 << 20);
    assert!((most - LENGTH..=most).contains(&in_all), "{in_all}");
}

#[test]
fn a_file_is_read_once_and_again_when_it_was_written() {
    let mut named = tempfile::NamedTempFile::new().unwrap();
    named.write_all(&elf(&["_PyRuntime"], &[])).unwrap();
    let mut binaries = Binaries::new();
    let mut opened = 0;
    let mut look = |metadata: &Metadata| {
        binaries.look(metadata, || {
            opened += 1;
            File::open(named.path())
        })
    };
    let before = named.as_file().metadata().unwrap();
    look(&before).unwrap();
    look(&before).unwrap();
    let later = SystemTime::now() + Duration::from_secs(5);
    named.as_file().set_modified(later).unwrap();
    look(&named.as_file().metadata().unwrap()).unwrap();
    assert_eq!(opened, 2);
}
