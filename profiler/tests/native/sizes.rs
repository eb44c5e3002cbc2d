//! How large our tables are beside the rows of unwind information that they are made of, and how long
//! it takes to make them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gimli::{
    BaseAddresses, CieOrFde, EhFrame, EndianSlice, LittleEndian, UnwindContext, UnwindSection as _,
};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _};
use profiler_ebpf::Rule;
use pyebpf::unwind::{Rules, Table};

/// Bytes that a rule takes in the kernel.
const RULE_BYTES: usize = size_of::<Rule>();

/// How the names of the files begin that are measured, where wheels are.
const OF_WHEELS: [&str; 9] = [
    "_multiarray_umath.",
    "libscipy_openblas64_",
    "_polars_runtime.",
    "cygrpc.",
    "libarrow.so",
    "_rust.abi3",
    "libtorch_python.so",
    "libtorch_cpu.so",
    "libtorch_cuda.so",
];

/// What was measured of a file.
struct Size {
    file: u64,
    section: u64,
    dwarf_rows: usize,
    rows: usize,
    /// Of its table in the kernel.
    words: usize,
    /// Rules that no file before has had.
    rules: usize,
    time: Duration,
}

impl Size {
    fn bytes(&self) -> usize {
        self.words * size_of::<u32>() + self.rules * RULE_BYTES
    }

    fn bytes_a_row(&self) -> f64 {
        self.bytes() as f64 / self.dwarf_rows.max(1) as f64
    }
}

fn measure(path: &Path, rules: &mut Rules) -> Size {
    let known = rules.len();
    let start = Instant::now();
    let table = Table::read(File::open(path).unwrap(), rules).unwrap();
    let time = start.elapsed();
    let bytes = fs::read(path).unwrap();
    let (section, dwarf_rows) = dwarf_rows(&bytes);
    Size {
        file: bytes.len() as u64,
        section,
        dwarf_rows,
        rows: table.rows.len(),
        words: table.packed().words.len(),
        rules: rules.len() - known,
        time,
    }
}

/// Bytes of a file's unwind information, and its rows as DWARF has them.
fn dwarf_rows(bytes: &[u8]) -> (u64, usize) {
    let file = ElfFile64::<object::LittleEndian>::parse(bytes).unwrap();
    let Some(section) = file.section_by_name(".eh_frame") else {
        return (0, 0);
    };
    let bases = BaseAddresses::default().set_eh_frame(section.address());
    let frames = EhFrame::from(EndianSlice::new(section.data().unwrap(), LittleEndian));
    let mut context = UnwindContext::new();
    let mut entries = frames.entries(&bases);
    let mut rows = 0;
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let entry = partial.parse(EhFrame::cie_from_offset).unwrap();
        let mut table = entry.rows(&frames, &bases, &mut context).unwrap();
        while let Ok(Some(_)) = table.next_row() {
            rows += 1;
        }
    }
    (section.size(), rows)
}

/// The files that are there, by the name that a reader knows.
fn files() -> Vec<PathBuf> {
    let libraries = "/usr/lib/x86_64-linux-gnu";
    let mut files: Vec<PathBuf> = ["libc.so.6", "libstdc++.so.6"]
        .map(|name| Path::new(libraries).join(name))
        .into();
    files.push("/usr/bin/python3".into());
    for version in ["3.8", "3.13."] {
        let root = super::common::pyenv(version).unwrap_or_default();
        let library = format!("lib/libpython{}.so.1.0", version.trim_end_matches('.'));
        files.push(root.join(library));
    }
    let mut wheels = Vec::new();
    below(&super::corpus::wheels().join("lib"), &mut wheels);
    for name in OF_WHEELS {
        let named = |path: &&PathBuf| {
            let file = path.file_name().unwrap_or_default();
            let file = file.to_string_lossy();
            file.starts_with(name) && file.contains(".so")
        };
        files.extend(wheels.iter().filter(named).cloned());
    }
    files.retain(|path| path.is_file());
    files
}

/// Every file in a folder and its folders.
fn below(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => below(&path, files),
            false => files.push(path),
        }
    }
}

/// `cargo xtask unwind --tables`.
#[test]
#[ignore = "takes an optimised build and wheels"]
fn tables() {
    println!("| file | MB | `.eh_frame`, MB | rows of DWARF | rows | bytes a row of DWARF | ms |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut rules = Rules::default();
    let (mut bytes, mut rows) = (0, 0);
    for path in files() {
        let size = measure(&path, &mut rules);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        println!(
            "| {name} | {:.1} | {:.1} | {} | {} | {:.1} | {:.0} |",
            size.file as f64 / 1e6,
            size.section as f64 / 1e6,
            size.dwarf_rows,
            size.rows,
            size.bytes_a_row(),
            size.time.as_secs_f64() * 1e3,
        );
        bytes += size.bytes();
        rows += size.dwarf_rows;
        assert!(size.bytes_a_row() <= 7.0, "{name}");
    }
    println!(
        "\n{} rules in all; {:.2} bytes a row of all.",
        rules.len(),
        bytes as f64 / rows as f64
    );
    assert!(bytes <= 6 * rows);
}

#[test]
fn a_table_takes_no_more_than_its_dwarf_has_rows() {
    let mut rules = Rules::default();
    let size = measure(&std::env::current_exe().unwrap(), &mut rules);
    assert!(size.dwarf_rows > 1000 && size.rows > 1000, "{}", size.rows);
    assert!(
        size.bytes_a_row() <= 6.0,
        "{} of {}",
        size.rows,
        size.dwarf_rows
    );
}
