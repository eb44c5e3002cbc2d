use profiler_ebpf::{Cfa, RBP, RSP, Rbp};

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
