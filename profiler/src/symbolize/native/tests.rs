//! Tests on real files: what this process has mapped, against where its functions are and what the
//! linker's own tools say.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::*;

/// A mapping of a file that no process has mapped: it is opened by its path.
fn unmapped(path: &Path) -> Mapping {
    let path = std::fs::canonicalize(path).expect("the file is there");
    Mapping {
        start: 0,
        end: 0,
        offset: 0,
        inode: path.metadata().expect("it can be looked at").ino(),
        path: path.to_str().expect("its name is text").to_owned(),
    }
}

fn module(natives: &mut Natives, path: &Path) -> ModuleId {
    let known = natives.module(std::process::id(), &unmapped(path));
    known.unwrap_or_else(|reason| panic!("{}: {reason}", path.display()))
}

/// The mapping of this process that has `address`.
pub(super) fn mapping_of(address: u64) -> Mapping {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("it can be read");
    let found = maps.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let mapping = Mapping {
            start: hex(start)?,
            end: hex(end)?,
            offset: hex(fields[2])?,
            inode: fields[4].parse().ok()?,
            path: (*fields.get(5)?).to_owned(),
        };
        (mapping.start..mapping.end)
            .contains(&address)
            .then_some(mapping)
    });
    found.expect("it is in a file")
}

/// The name of what is at an address of this process.
fn name_here(natives: &mut Natives, address: u64) -> Name {
    let mapping = mapping_of(address);
    let module = natives
        .module(std::process::id(), &mapping)
        .expect("our own file");
    let offset = address - mapping.start + mapping.offset;
    let address = natives.address(module, offset).expect("it has a segment");
    natives.name(module, address).expect("it has a name")
}

#[inline(always)]
fn inlined_here(value: u64) -> u64 {
    std::hint::black_box(value) * 3
}

#[inline(never)]
fn a_function_with_a_name(value: u64) -> u64 {
    inlined_here(value) + 1
}

#[test]
fn functions_of_this_program_have_their_names_and_lines() {
    assert_eq!(a_function_with_a_name(2), 7);
    let mut natives = Natives::default();
    let start = a_function_with_a_name as fn(u64) -> u64 as usize as u64;
    let name = name_here(&mut natives, start);
    let function = "pyebpf::symbolize::native::tests::a_function_with_a_name";
    assert_eq!((name.function.as_str(), name.offset), (function, 0));
    let file = name.file.expect("tests have lines");
    assert!(file.ends_with("symbolize/native/tests.rs"), "{file}");
    let declared = include_str!("tests.rs")
        .lines()
        .position(|line| line.starts_with("fn a_function_with_a_name"));
    assert_eq!(name.line.map(|line| line as usize - 1), declared);

    let inlined = (0..64).find_map(|skip| {
        let name = name_here(&mut natives, start + skip);
        (name.function == function && !name.inlined.is_empty()).then_some(name.inlined)
    });
    let inlined = inlined.expect("something is inlined");
    let has = |wanted: &str| {
        inlined
            .iter()
            .any(|inlined| inlined.function.contains(wanted))
    };
    assert!(has("inlined_here"), "{inlined:?}");
}

#[test]
fn functions_of_libc_have_their_names() {
    let mut natives = Natives::default();
    for (address, expected) in [
        (libc::malloc as *const () as u64, "malloc"),
        (libc::qsort as *const () as u64, "qsort"),
        (libc::getenv as *const () as u64, "getenv"),
        (libc::write as *const () as u64, "write"),
    ] {
        let name = name_here(&mut natives, address + 1);
        assert_eq!((name.function.as_str(), name.offset), (expected, 1));
    }
    assert_eq!(natives.count(), (1, 1));
}

#[test]
fn the_vdso_has_names() {
    let mut natives = Natives::default();
    let vdso = natives.vdso().expect("it is the first");
    let known = natives.contents(vdso).expect("x86-64 has one");
    let table = known.table.clone().expect("it has symbols");
    let (start, _, _) = table
        .iter()
        .find(|(_, _, name)| name.ends_with(b"clock_gettime"))
        .expect("it has this one");
    let name = natives.name(vdso, start).expect("it is a function");
    assert_eq!(name.function, "clock_gettime");
}

#[test]
fn what_is_no_function_has_no_name() {
    let mut natives = Natives::default();
    let start = libc::malloc as *const () as u64;
    let mapping = mapping_of(start);
    let module = natives
        .module(std::process::id(), &mapping)
        .expect("our libc");
    for address in [0, 1, 64, u64::MAX, u64::MAX - 1, 1 << 40] {
        assert_eq!(natives.name(module, address), Err(Reason::NoSymbol));
    }
    assert_eq!(natives.address(module, 1 << 40), Err(Reason::NoSymbol));
}

#[test]
fn what_is_no_elf_file_is_refused() {
    let mut natives = Natives::default();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("a");
    std::fs::write(&path, "#!/bin/sh\n").expect("it can be written");
    let text = module(&mut natives, &path);
    assert_eq!(natives.name(text, 0), Err(Reason::NotElf));
    let mut mapping = unmapped(&path);
    mapping.inode += 1;
    let refused = natives.module(std::process::id(), &mapping);
    assert!(matches!(refused, Err(Reason::Unreadable(_))), "{refused:?}");
}

/// The functions of a file as `nm` has them: every address that begins one, its size and names.
fn nm(path: &Path) -> Option<BTreeMap<u64, (u64, Vec<String>)>> {
    let mut functions: BTreeMap<u64, (u64, Vec<String>)> = BTreeMap::new();
    for table in ["--dynamic", "--debug-syms"] {
        let mut command = Command::new("nm");
        let output = command
            .args(["-S", "--defined-only", table])
            .arg(path)
            .output()
            .ok()?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [start, size, kind, name] = fields[..] else {
                continue;
            };
            if !["T", "t", "W", "w", "i"].contains(&kind) || name.starts_with('.') {
                continue;
            }
            let hex = |text| u64::from_str_radix(text, 16).expect("nm prints numbers so");
            let entry = functions.entry(hex(start)).or_default();
            entry.0 = entry.0.max(hex(size));
            let plain = name.split('@').next().unwrap_or(name);
            entry.1.push(plain.to_owned());
        }
    }
    Some(functions)
}

/// Every function that `nm` knows has one of its names here, at its first and its last byte.
#[expect(clippy::print_stderr, reason = "what is skipped is said")]
fn same_as_nm(path: &Path) {
    let Some(functions) = nm(path).filter(|functions| functions.len() > 10) else {
        eprintln!("skipped: nm knows nothing of {}", path.display());
        return;
    };
    let mut natives = Natives::default();
    let module = module(&mut natives, path);
    let contents = natives.contents(module).expect("it can be read");
    let table = contents.table.clone().expect("it has symbols");
    for (&start, (size, names)) in &functions {
        let has = |found: Option<table::Found<'_>>| {
            let found = found.unwrap_or_else(|| panic!("nothing at {start:x}, {names:?}"));
            let name = String::from_utf8_lossy(found.name).into_owned();
            (names.contains(&name), name, found.offset)
        };
        let (same, name, offset) = has(table.find(start));
        // A debug file may know more names than the binary; they must have come from there.
        let in_debug_file = || {
            let mut known = table.iter();
            known.any(|(at, _, known)| at == start && known == name.as_bytes())
        };
        assert!(
            (same || in_debug_file()) && offset == 0,
            "{name} is none of {names:?} at {start:x}"
        );
        let next = functions.range(start + 1..).next().map(|(&next, _)| next);
        if *size > 1 && next.is_none_or(|next| start + size <= next) {
            let (_, last, offset) = has(table.find(start + size - 1));
            assert!(
                last == name && offset == size - 1 || offset < size - 1,
                "{last} at the end of {name}"
            );
        }
    }
}

#[test]
fn libc_is_as_nm_has_it() {
    let libc = mapping_of(libc::malloc as *const () as u64);
    same_as_nm(Path::new(&libc.path));
}

#[test]
fn this_program_is_as_nm_has_it() {
    same_as_nm(&std::env::current_exe().expect("it is there"));
}

/// A small library of the inputs for fuzzers: `public_` calls `noinline_`, into which `inl` is
/// inlined twice; `asm_fn` has no size.
fn small(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/fuzz/native");
    folder.join(name)
}

/// The names at every byte of a library's code.
fn all_names(natives: &mut Natives, module: ModuleId) -> Vec<Name> {
    let contents = natives.contents(module).expect("it can be read");
    let table = contents.table.clone().expect("it has symbols");
    let functions: Vec<_> = table.iter().map(|(start, size, _)| (start, size)).collect();
    let bytes = functions
        .iter()
        .flat_map(|&(start, size)| start..start + size);
    bytes
        .map(|at| natives.name(module, at).expect("it is in a function"))
        .collect()
}

#[test]
fn the_places_of_a_stripped_function_are_one() {
    let folder = tempfile::tempdir().expect("there can be a folder");
    let stripped = folder.path().join("stripped.so");
    let strip = Command::new("strip")
        .args(["--strip-all", "-o"])
        .arg(&stripped)
        .arg(small("dwarf.so"))
        .status();
    assert!(strip.expect("binutils are here").success());
    let mut natives = Natives::default();
    let [whole, stripped] = [&small("dwarf.so"), &stripped].map(|it| module(&mut natives, it));
    let contents = natives.contents(whole).expect("it can be read");
    assert_eq!(contents.extents.bytes(), 0, "it has all names");
    let table = contents.table.clone().expect("it has symbols");
    let function = |wanted: &[u8]| {
        let mut all = table.iter();
        let found = all.find(|&(_, _, name)| name == wanted);
        found.map(|(start, size, _)| (start, size))
    };
    let (start, size) = function(b"noinline_").expect("it is there");
    assert!(natives.name(stripped, start).is_err());
    for into in 0..size {
        assert_eq!(natives.into_function(stripped, start + into), Some(into));
    }
    assert_ne!(natives.into_function(stripped, start + size), Some(size));
}

#[test]
fn lines_and_inlined_functions_come_from_dwarf_plain_or_packed() {
    for library in ["dwarf.so", "packed.so"] {
        let mut natives = Natives::default();
        let module = module(&mut natives, &small(library));
        let names = all_names(&mut natives, module);
        let lines_of = |function: &str| {
            let mut lines: Vec<_> = names
                .iter()
                .filter(|name| name.function == function)
                .filter_map(|name| name.line)
                .collect();
            lines.sort_unstable();
            lines.dedup();
            lines
        };
        // Of `t.c`: where each stands in it.
        assert_eq!(lines_of("noinline_"), [3], "{library}");
        assert_eq!(lines_of("public_"), [4], "{library}");
        assert_eq!(lines_of("asm_fn"), [] as [u32; 0], "{library}");
        let inlined = names.iter().flat_map(|name| &name.inlined);
        let inlined: Vec<_> = inlined
            .map(|inlined| (inlined.function.as_str(), inlined.line))
            .collect();
        assert!(
            inlined.contains(&("inl", Some(2))),
            "{library}: {inlined:?}"
        );
        assert!(
            inlined.iter().all(|(function, _)| *function == "inl"),
            "{library}"
        );
    }
}

/// `int both(int x) { return first(x) + second(x); }`, neither of which it has.
#[test]
fn entries_of_a_linkage_table_are_named_by_what_they_lead_to() {
    let mut natives = Natives::default();
    let module = module(&mut natives, &small("linkage.so"));
    // Where `objdump -d -j .plt` shows them; the table's own first entry leads to no function.
    let names = [0x2c0, 0x2d0, 0x2df, 0x2e0, 0x2ef, 0x2f0].map(|address| {
        let name = natives.name(module, address).ok()?;
        Some((name.function, name.offset))
    });
    let entry = |function: &str, offset| Some((function.to_owned(), offset));
    let (second, first) = ("second@plt", "first@plt");
    let expected = [
        None,
        entry(second, 0),
        entry(second, 15),
        entry(first, 0),
        entry(first, 15),
        entry("both", 0),
    ];
    assert_eq!(names, expected);
}

#[test]
fn local_functions_of_a_stripped_library_come_from_its_debug_data() {
    let mut natives = Natives::default();
    let module = module(&mut natives, &small("debugdata.so"));
    let names = all_names(&mut natives, module);
    let mut functions: Vec<_> = names.iter().map(|name| name.function.as_str()).collect();
    functions.dedup();
    assert_eq!(functions, ["asm_fn", "noinline_", "public_"]);
    assert!(
        names
            .iter()
            .all(|name| name.line.is_none() && name.inlined.is_empty())
    );
}

#[test]
fn equal_libraries_have_one_table_and_a_changed_one_its_own() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut natives = Natives::default();
    let mut table_of = |path: &Path| {
        let module = module(&mut natives, path);
        let contents = natives.contents(module).expect("it can be read");
        contents.table.clone()
    };
    let [one, other] = ["a.so", "b.so"].map(|copy| {
        let path = folder.path().join(copy);
        std::fs::copy(small("dwarf.so"), &path).expect("it can be copied");
        table_of(&path).expect("it has symbols")
    });
    assert!(Arc::ptr_eq(&one, &other));
    // The same inode, of the same size, is another file once it is written to.
    let changed = folder.path().join("b.so");
    let mut bytes = std::fs::read(&changed).expect("it is there");
    bytes[..4].copy_from_slice(b"text");
    std::fs::write(&changed, bytes).expect("it can be written");
    let changed = module(&mut natives, &changed);
    assert_eq!(natives.name(changed, 0), Err(Reason::NotElf));
    assert_eq!(natives.count(), (3, 1));
}

#[test]
fn what_was_not_used_for_longest_is_forgotten_and_read_again() {
    let limits = Limits {
        tables: 1,
        lines: 1,
    };
    let mut natives = Natives {
        limits,
        ..Natives::default()
    };
    let one = module(&mut natives, &small("dwarf.so"));
    let other = module(&mut natives, &small("debugdata.so"));
    let first = all_names(&mut natives, one);
    assert_eq!(natives.count(), (2, 1));
    let with_lines = natives.bytes();
    all_names(&mut natives, other);
    assert!(natives.count() == (2, 1) && natives.bytes() < with_lines);
    assert_eq!(all_names(&mut natives, one), first);
    assert_eq!(natives.count(), (2, 1));
    assert_eq!(natives.held, 1, "the file with DWARF");
}
