//! Programs that run the CPython of a library. Takes an ELF file without a CPython of its own; says
//! where it keeps the library's variables, and whether it is a program that Nuitka has compiled.

use std::collections::HashMap;

use super::elf::{Image, Segment, Symbol, Table};

/// What starts an interpreter (`Include/pylifecycle.h`); one of them is called by every embedder that
/// is linked with libpython.
const STARTERS: [&str; 6] = [
    "Py_Initialize",
    "Py_InitializeEx",
    "Py_InitializeFromConfig",
    "Py_Main",
    "Py_BytesMain",
    "Py_RunMain",
];

/// The name of a type that every such program has: in `nuitka/build/static_src/MetaPathBasedLoader.c`
/// of Nuitka 4.3. Programs that it makes are stripped.
const NUITKA: &[u8] = b"nuitka_module_loader\0";

/// What there is to know of such a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Embedder {
    pub segments: Vec<Segment>,
    /// Where the library's `_PyRuntime` and `PyCode_Type` are in its place, 0 where they are not: the
    /// linker gives variables that a program refers to a place in the program, to which the loader
    /// copies their first content (R_X86_64_COPY of the x86-64 ABI). The library uses those.
    pub runtime: u64,
    pub code_type: u64,
    pub nuitka: bool,
}

/// What a file is that has no `Py_GetVersion`.
pub(super) fn look(image: &Image) -> Option<Embedder> {
    if !image.is_program || !image.imports(&STARTERS) {
        return None;
    }
    let mut copies = HashMap::new();
    image.symbols(Table::Dynamic, &["_PyRuntime", "PyCode_Type"], &mut copies);
    let at = |name: &str| copies.get(name).map_or(0, |symbol: &Symbol| symbol.address);
    Some(Embedder {
        segments: image.segments.clone(),
        runtime: at("_PyRuntime"),
        code_type: at("PyCode_Type"),
        nuitka: is_of_nuitka(image),
    })
}

/// Whether Nuitka made the program.
pub(super) fn is_of_nuitka(image: &Image) -> bool {
    image.constants_have(NUITKA)
}
