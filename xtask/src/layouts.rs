//! Measures CPython's structures: compiles a small program against the headers of each installed
//! Python that has a column in `profiler/src/cpython/rows.rs`, and compares or fills in that column.
//! A column without headers stays as it is and is named.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{quietly, say, text_of};
use crate::toolchain::cache_folder;

const ROWS: &str = "profiler/src/cpython/rows.rs";
const PROGRAM: &str = include_str!("layouts.c");
/// The columns, as the program calls them, in the order of `Build::ALL` there.
const BUILDS: [&str; 14] = [
    "2.7", "3.6", "3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15", "3.13t",
    "3.14t", "3.15t",
];

/// Measure CPython's structures with the headers of the installed Pythons.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Compare with the committed rows and fail on a difference, instead of writing them.
    #[arg(long)]
    check: bool,
    /// A folder of Python headers (one that has Python.h), besides those of pyenv; repeatable.
    #[arg(long, value_name = "FOLDER")]
    include: Vec<PathBuf>,
}

/// Field name to offset, as the program prints them.
type Column = BTreeMap<String, u32>;

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join(ROWS);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {ROWS}"))?;
    let mut columns: BTreeMap<usize, Column> = BTreeMap::new();
    let headers = args.include.iter().cloned().chain(pyenv_headers());
    for headers in headers.chain(free_threaded_headers()) {
        let (build, column) = measure(&headers)?;
        if let Some(index) = BUILDS.iter().position(|known| *known == build) {
            columns.entry(index).or_insert(column);
        }
    }
    let (new, differences) = apply(&text, &columns)?;
    for (index, build) in BUILDS.iter().enumerate() {
        if !columns.contains_key(&index) {
            say(&format!("skipped: no headers of Python {build}"));
        }
    }
    let measured = columns.len();
    if differences.is_empty() {
        say(&format!("{measured} columns measured, all as in {ROWS}"));
        return Ok(());
    }
    let list = differences.join("\n  ");
    if args.check {
        bail!(
            "{ROWS} differs from the headers:\n  {list}\n`cargo xtask layouts` writes what they say"
        );
    }
    fs::write(&path, new).with_context(|| format!("cannot write {ROWS}"))?;
    say(&format!("changed in {ROWS}:\n  {list}"));
    Ok(())
}

/// The folders with Python.h of the Pythons that pyenv has built.
fn pyenv_headers() -> Vec<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let mut found: Vec<PathBuf> = entries(&home.join(".pyenv/versions"))
        .iter()
        .flat_map(|version| entries(&version.join("include")))
        .filter(|folder| folder.join("Python.h").exists())
        .collect();
    found.sort();
    found
}

/// The headers of the Python without a GIL that tests are run on: as configured, then as they came.
fn free_threaded_headers() -> Option<PathBuf> {
    let folder = cache_folder().ok()?.join("freethreaded-3.13");
    folder.join("pyconfig.h").exists().then_some(folder)
}

fn measure(headers: &Path) -> Result<(String, Column)> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let (source, program) = (
        folder.path().join("layouts.c"),
        folder.path().join("layouts"),
    );
    fs::write(&source, PROGRAM).context("cannot write the program")?;
    let mut compile = Command::new("cc");
    compile.arg("-w");
    // As installed, or as they lie where Python was built.
    for inner in ["", "internal", "Include", "Include/internal"] {
        compile.arg("-I").arg(headers.join(inner));
    }
    compile.arg("-o").args([&program, &source]);
    quietly(&mut compile)
        .with_context(|| format!("cannot compile against {}", headers.display()))?;
    let said = text_of(&mut Command::new(&program))?;
    parse(&said).with_context(|| format!("the program for {} said {said:?}", headers.display()))
}

/// The build, then a line `field offset` each.
fn parse(said: &str) -> Option<(String, Column)> {
    let mut lines = said.lines();
    let build = lines.next()?.to_owned();
    let column = lines
        .map(|line| {
            let (field, offset) = line.split_once(' ')?;
            Some((field.to_owned(), offset.parse().ok()?))
        })
        .collect::<Option<Column>>()?;
    Some((build, column))
}

/// Puts the columns into the rows of `text`; gives the new text and what changed.
fn apply(text: &str, columns: &BTreeMap<usize, Column>) -> Result<(String, Vec<String>)> {
    let mut new = String::new();
    let mut differences = Vec::new();
    let mut fields = 0;
    for line in text.lines() {
        let Some((field, mut row)) = parse_row(line) else {
            new.push_str(line);
            new.push('\n');
            continue;
        };
        fields += 1;
        for (index, column) in columns {
            let build = BUILDS[*index];
            let measured = column.get(field);
            let measured = measured.with_context(|| format!("{build}: no {field} measured"))?;
            let value = &mut row[*index];
            if value != measured {
                differences.push(format!(
                    "{build} {field}: {value}, the headers say {measured}"
                ));
                *value = *measured;
            }
        }
        let values: Vec<String> = row.iter().map(u32::to_string).collect();
        new.push_str(&format!("    {field}: [{}],\n", values.join(", ")));
    }
    for (index, column) in columns {
        if column.len() != fields {
            let (build, measured) = (BUILDS[*index], column.len());
            bail!("{build}: {measured} fields measured, but {ROWS} has {fields} rows");
        }
    }
    Ok((new, differences))
}

/// `    field: [1, 2, …],` with one value for each version.
fn parse_row(line: &str) -> Option<(&str, Vec<u32>)> {
    let (field, values) = line.strip_prefix("    ")?.split_once(": [")?;
    let values = values.strip_suffix("],")?.split(", ");
    let row: Vec<u32> = values
        .map(|value| value.parse().ok())
        .collect::<Option<_>>()?;
    (row.len() == BUILDS.len()).then_some((field, row))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "static ROWS: Rows = Rows {\n    a: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],\n};\n";

    fn measured(build: &str, fields: &[(&str, u32)]) -> BTreeMap<usize, Column> {
        let column = fields
            .iter()
            .map(|(field, offset)| ((*field).to_owned(), *offset));
        let index = BUILDS.iter().position(|known| *known == build).unwrap();
        BTreeMap::from([(index, column.collect())])
    }

    #[test]
    fn a_column_that_agrees_changes_nothing() {
        let (new, differences) = apply(TEXT, &measured("3.7", &[("a", 3)])).unwrap();
        assert_eq!((new.as_str(), differences.len()), (TEXT, 0));
    }

    #[test]
    fn a_column_that_differs_is_named_and_filled_in() {
        let (new, differences) = apply(TEXT, &measured("3.15t", &[("a", 99)])).unwrap();
        assert!(new.contains("    a: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 99],\n"));
        assert_eq!(differences, ["3.15t a: 14, the headers say 99"]);
    }

    #[test]
    fn rows_and_measurements_must_be_the_same_fields() {
        assert!(apply(TEXT, &measured("3.7", &[("b", 3)])).is_err());
        assert!(apply(TEXT, &measured("3.7", &[("a", 3), ("b", 3)])).is_err());
    }

    #[test]
    fn the_programs_words_are_taken_whole_or_not_at_all() {
        let (build, column) = parse("3.12\na 8\nb 16\n").unwrap();
        assert_eq!((build.as_str(), column.len()), ("3.12", 2));
        assert_eq!(parse("3.12\na\n"), None);
        assert_eq!(parse(""), None);
    }
}
