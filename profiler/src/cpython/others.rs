//! Pythons that are no CPython, so that they are called what they are. Takes an ELF file without a
//! CPython in it; says what it is by the symbols that it exports, never by its name.

use std::collections::HashMap;

use super::binary::Look;
use super::elf::{Image, Table};

/// A symbol that only this implementation exports, what it is called, and why it isn't walked.
const OTHERS: [(&str, &str, &str); 2] = [
    // Exported by libpypy (3.9, v7.3.11).
    (
        "pypy_execute_source",
        "PyPy",
        "it keeps its frames otherwise than CPython; use CPython",
    ),
    // In its C API for extensions (graalpython/com.oracle.graal.python.cext/src/capi.c), which it
    // loads when the first of them is imported.
    (
        "initialize_graal_capi",
        "GraalPy",
        "it keeps its frames otherwise than CPython; use CPython",
    ),
];

/// What a file is that is no CPython.
pub(super) fn look(image: &Image) -> Look {
    let wanted = OTHERS.map(|(symbol, ..)| symbol);
    let mut found = HashMap::new();
    image.symbols(Table::Dynamic, &wanted, &mut found);
    let other = OTHERS
        .iter()
        .find(|(symbol, ..)| found.contains_key(symbol));
    match other {
        Some((_, what, why)) => Look::Unsupported {
            what: (*what).to_owned(),
            why: (*why).to_owned(),
        },
        None => Look::NotPython,
    }
}
