//! Tests of which function an address is in, of tables made by hand.

use super::*;

/// The functions of a section that ends at 0x1000: start, size, whether local, name.
fn table(complete: bool, symbols: &[(u64, u64, bool, &'static str)]) -> Table {
    let symbols = symbols.iter().map(|&(start, size, local, name)| Raw {
        start,
        size,
        limit: 0x1000,
        local,
        name: name.as_bytes(),
    });
    let symbols = symbols.collect();
    let built = Builder { symbols, complete }.build();
    built.expect("it has functions")
}

fn at(table: &Table, address: u64) -> Option<(&str, u64)> {
    let found = table.find(address)?;
    Some((
        std::str::from_utf8(found.name).expect("names are text"),
        found.offset,
    ))
}

#[test]
fn a_function_ends_where_its_size_says() {
    let table = table(
        true,
        &[(0x100, 0x10, false, "a"), (0x200, 0x2000, false, "b")],
    );
    assert_eq!(at(&table, 0xff), None);
    assert_eq!(at(&table, 0x10f), Some(("a", 15)));
    assert_eq!(at(&table, 0x110), None);
    assert_eq!(at(&table, 0xfff), Some(("b", 0xdff)));
    assert_eq!(at(&table, 0x1000), None, "its section has ended");
}

#[test]
fn one_without_a_size_reaches_to_the_next() {
    let symbols = [
        (0x100, 0, false, "assembly"),
        (0x120, 0x40, false, "c"),
        (0x130, 0, true, "label"),
        (0x180, 0, false, "last"),
    ];
    let all = table(true, &symbols);
    assert_eq!(at(&all, 0x11f), Some(("assembly", 0x1f)));
    assert_eq!(at(&all, 0x138), Some(("c", 0x18)));
    assert_eq!(at(&all, 0x160), None);
    assert_eq!(at(&all, 0xfff), Some(("last", 0xe7f)));
    // Local functions may lie between those that are exported.
    let exported = table(false, &symbols);
    assert_eq!((at(&exported, 0x100), at(&exported, 0x180)), (None, None));
    assert_eq!(at(&exported, 0x138), Some(("c", 0x18)));
}

#[test]
fn of_aliases_the_global_plainest_shortest_is_shown() {
    for (names, expected) in [
        (vec![(true, "a"), (false, "longer")], "longer"),
        (
            vec![
                (false, "__write"),
                (false, "write"),
                (false, "__libc_write"),
            ],
            "write",
        ),
        (vec![(false, "memmove_b"), (false, "memmove")], "memmove"),
        (vec![(false, "b"), (false, "a")], "a"),
    ] {
        let symbols: Vec<_> = names
            .iter()
            .map(|&(local, name)| (0x100, 8, local, name))
            .collect();
        assert_eq!(at(&table(true, &symbols), 0x104), Some((expected, 4)));
    }
}

#[test]
fn a_function_within_another_is_the_innermost() {
    let symbols = [
        (0x100, 0x100, false, "outer"),
        (0x110, 0x10, false, "inner"),
        (0x114, 4, false, "innermost"),
        (0x140, 0x10, false, "second"),
    ];
    let table = table(true, &symbols);
    let names = [
        0x100, 0x110, 0x114, 0x118, 0x120, 0x14f, 0x150, 0x1ff, 0x200,
    ];
    let names = names.map(|address| at(&table, address).map(|(name, _)| name));
    let expected = [
        "outer",
        "inner",
        "innermost",
        "inner",
        "outer",
        "second",
        "outer",
        "outer",
    ];
    assert_eq!(names[..8], expected.map(Some));
    assert_eq!(names[8], None);
}
