use profiler_ebpf::{RBP, RSP, Rbp};

use super::*;

/// A library with one function for each kind of rule: `first` without a caller, `moved` with its frame
/// address in `rax` and then in memory, `restores` for signals, `leaf`, `calls`, `grows` by the frame
/// pointer, and a linkage table. Its code lies in the file where it has its address.
const SMALL: &[u8] = include_bytes!("../../../../tests/data/fuzz/unwind/small-library");

/// Start, kind, register, offset, addend, and where `rbp` is saved.
type Expected = (u32, Cfa, u8, i32, i32, Option<i32>);

/// What `readelf --debug-dump=frames-interp` says of it.
#[rustfmt::skip] // A table.
const EXPECTED: &[Expected] = &[
    (0, Cfa::None, 0, 0, 0, None),
    (0x310, Cfa::Register, RSP, 16, 0, None),
    (0x316, Cfa::Register, RSP, 24, 0, None),
    (0x320, Cfa::Plt, RSP, 8, 11, None),
    (0x350, Cfa::End, 0, 0, 0, None),
    (0x358, Cfa::Register, RSP, 8, 0, None),
    (0x35b, Cfa::Register, 0, 8, 0, None),
    (0x35c, Cfa::Register, 0, 8, 0, Some(-16)),
    (0x365, Cfa::Memory, RSP, 16, 8, Some(-16)),
    (0x367, Cfa::Signal, 0, 0, 0, None),
    (0x371, Cfa::Register, RSP, 8, 0, None),
    (0x388, Cfa::Register, RSP, 16, 0, Some(-16)),
    (0x389, Cfa::Register, RSP, 24, 0, Some(-16)),
    (0x390, Cfa::Register, RSP, 192, 0, Some(-16)),
    (0x3c9, Cfa::Register, RSP, 24, 0, Some(-16)),
    (0x3ca, Cfa::Register, RSP, 16, 0, Some(-16)),
    (0x3cb, Cfa::Register, RSP, 8, 0, Some(-16)),
    (0x3cc, Cfa::Register, RSP, 8, 0, None),
    (0x3cd, Cfa::Register, RSP, 16, 0, Some(-16)),
    (0x3d0, Cfa::Register, RBP, 16, 0, Some(-16)),
    (0x3f0, Cfa::Register, RSP, 8, 0, Some(-16)),
    (0x3f1, Cfa::None, 0, 0, 0, None),
];

#[test]
fn each_row_says_what_readelf_does() {
    let mut rules = Rules::default();
    let table = Table::parse(SMALL, &mut rules).unwrap();
    let by_number: std::collections::HashMap<u16, Rule> = rules.since(0).into_iter().collect();
    let seen: Vec<(u32, Rule)> = table
        .rows
        .iter()
        .map(|row| (row.start, by_number[&row.rule]))
        .collect();
    let expected: Vec<(u32, Rule)> = EXPECTED
        .iter()
        .map(|&(start, cfa, register, offset, add, saved)| {
            let rbp = if saved.is_some() {
                Rbp::Saved
            } else {
                Rbp::Same
            };
            let rule = Rule {
                cfa: cfa as u8,
                register,
                rbp: rbp as u8,
                offset,
                add,
                rbp_offset: saved.unwrap_or(0),
                ..Rule::default()
            };
            (start, rule)
        })
        .collect();
    assert_eq!(seen, expected);
}

/// By `.cfi_escape`, after one instruction each: what gcc says of a realigned frame, and OpenSSL of its
/// multiplication.
#[test]
fn expressions_of_compilers_and_of_assembly_are_understood() {
    let mut rules = Rules::default();
    let file: &[u8] = include_bytes!("../../../../tests/data/fuzz/unwind/expressions");
    let table = Table::parse(file, &mut rules).unwrap();
    let by_number: std::collections::HashMap<u16, Rule> = rules.since(0).into_iter().collect();
    let seen = table.rows.iter().map(|row| by_number[&row.rule]);
    let plain = Rule {
        cfa: Cfa::Register as u8,
        register: RSP,
        offset: 8,
        ..Rule::default()
    };
    let realigned = Rule {
        cfa: Cfa::Memory as u8,
        register: RBP,
        rbp: Rbp::Pointed as u8,
        offset: -8,
        ..Rule::default()
    };
    let indexed = Rule {
        cfa: Cfa::Indexed as u8,
        register: 9,
        offset: 8,
        add: 8,
        ..realigned
    };
    let none = Rule::default();
    let expected = [none, plain, realigned, indexed, none];
    assert_eq!(seen.collect::<Vec<_>>(), expected);
}

#[test]
fn what_is_cut_or_absurd_gives_a_reason_or_fewer_rows() {
    for length in (0..SMALL.len()).step_by(7) {
        let _any = Table::parse(&SMALL[..length], &mut Rules::default());
    }
    for at in 0..SMALL.len() {
        for value in [0, 0x7f, 0xff] {
            let mut bytes = SMALL.to_vec();
            bytes[at] = value;
            if let Ok(table) = Table::parse(&*bytes, &mut Rules::default()) {
                assert!(table.rows.is_sorted_by(|one, next| one.start < next.start));
            }
        }
    }
    assert!(Table::parse(&b"no ELF"[..], &mut Rules::default()).is_err());
}

#[test]
fn what_aligns_a_function_needs_no_row() {
    assert!(is_padding(0x1001, 0x1010) && is_padding(0x100f, 0x1010));
    // As long as an alignment: a function may be in between, as musl's `__restore_rt` is.
    assert!(!is_padding(0x1000, 0x1010) && !is_padding(0x1001, 0x1020));
    assert!(!is_padding(0x1001, 0x1008));
}

#[test]
fn a_file_without_sections_has_the_same_rows() {
    let mut bytes = SMALL.to_vec();
    // `e_shoff`; `e_shnum` and `e_shstrndx` (System V ABI, figure 4-3).
    bytes[0x28..0x30].fill(0);
    bytes[0x3c..0x40].fill(0);
    let [with, without] = [SMALL, &bytes].map(|bytes| {
        let table = Table::parse(bytes, &mut Rules::default());
        table.unwrap().rows
    });
    assert_eq!(with, without);
}

#[test]
fn nobody_has_called_what_a_program_begins_with() {
    // Linked to begin at `leaf`, which has a row of its own; with nothing said of it, it is the end.
    let mut bytes = SMALL.to_vec();
    bytes[0x18..0x20].copy_from_slice(&0x358_u64.to_le_bytes());
    let mut rules = Rules::default();
    let rows = |bytes: &[u8], rules: &mut Rules| Table::parse(bytes, rules).unwrap().rows;
    assert_eq!(rows(&bytes, &mut rules), rows(SMALL, &mut rules));
    let code = [Segment {
        address: 0,
        offset: 0,
        size: 0x1000,
    }];
    let bases = BaseAddresses::default();
    let section = eh_frame(&Elf::parse(SMALL).unwrap()).unwrap().unwrap();
    let bases = bases.set_eh_frame(section.0);
    let table = flatten(section.1, &bases, (&code, 0x500), &mut rules).unwrap();
    let end = rules.number(Rule {
        cfa: Cfa::End as u8,
        ..Rule::default()
    });
    let last = |start, rule| Row { start, rule };
    let rows = &table.rows[table.rows.len() - 3..];
    assert_eq!(rows, [last(0x3f1, 0), last(0x500, end), last(0x540, 0)]);
}

#[test]
fn what_is_no_elf_file_is_not_taken_for_a_damaged_one() {
    let mut rules = Rules::default();
    let mut read = |bytes: &[u8]| Table::parse(bytes, &mut rules);
    let dump = b"DTiJ\x01\0\0\0";
    assert!(matches!(read(dump), Err(Refusal::NotElf)));
    assert!(matches!(read(b""), Err(Refusal::NotElf)));
    assert!(matches!(read(&SMALL[..20]), Err(Refusal::Damaged(_))));
}
