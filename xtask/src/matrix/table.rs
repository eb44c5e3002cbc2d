//! The cells of the matrix as Markdown: all of them, or their worst by minor version. What failed or
//! was not tried is said below, by name.

use std::fmt::Write as _;

use super::Cell;

/// A row for each Python, a column for each way to start it.
pub(super) fn whole(cells: &[Cell]) -> String {
    let pythons = each(cells, |cell| cell.python.clone());
    let starts = each(cells, |cell| cell.start.clone());
    let rows = pythons.iter().map(|python| {
        let of = starts.iter().map(|start| {
            let mut found = cells.iter();
            match found.find(|cell| cell.python == *python && cell.start == *start) {
                None => "–".to_owned(),
                Some(cell) => match (&cell.failed, &cell.skipped, cell.nanoseconds) {
                    (Some(_), ..) => FAILED.to_owned(),
                    (_, Some(_), _) => SKIPPED.to_owned(),
                    (.., None) => share(&[cell]),
                    (.., Some(time)) => format!("{}, {} µs", share(&[cell]), micro(time)),
                },
            }
        });
        std::iter::once(python.clone()).chain(of).collect()
    });
    markdown("CPython", &starts, rows) + &notes(cells)
}

/// A column for each minor version, a row for each way to start it: of all builds the lowest share of
/// whole stacks. The last row is the median time.
pub(super) fn summary(cells: &[Cell]) -> String {
    let mut versions = each(cells, version);
    versions.sort_by_key(|version| order(version));
    let starts = each(cells, |cell| cell.start.clone());
    let rows = starts.iter().map(|start| {
        let of = versions.iter().map(|wanted| {
            let of: Vec<&Cell> = cells
                .iter()
                .filter(|cell| version(cell) == **wanted && cell.start == *start)
                .collect();
            if of.iter().any(|cell| cell.failed.is_some()) {
                return FAILED.to_owned();
            }
            let tried: Vec<&Cell> = of
                .iter()
                .copied()
                .filter(|cell| cell.skipped.is_none())
                .collect();
            match (of.is_empty(), tried.is_empty()) {
                (true, _) => "–".to_owned(),
                (_, true) => SKIPPED.to_owned(),
                _ => share(&tried),
            }
        });
        std::iter::once(start.clone()).chain(of).collect()
    });
    let times = versions.iter().map(|wanted| {
        let of = cells.iter().filter(|cell| version(cell) == **wanted);
        let mut times: Vec<f64> = of.filter_map(|cell| cell.nanoseconds).collect();
        times.sort_by(f64::total_cmp);
        times
            .get(times.len() / 2)
            .map_or("–".to_owned(), |time| micro(*time))
    });
    let times: Vec<String> = std::iter::once("µs a sample".to_owned())
        .chain(times)
        .collect();
    markdown("whole stacks", &versions, rows.chain([times])) + &notes(cells)
}

const FAILED: &str = "**FAILED**";
const SKIPPED: &str = "skipped";

/// As Python's own tools name it: `3.13t` for a free-threaded build.
fn version(cell: &Cell) -> String {
    let (build, version) = cell.python.rsplit_once(' ').unwrap_or(("", &cell.python));
    let mark = if build == "free-threaded" { "t" } else { "" };
    format!("{version}{mark}")
}

/// 3.9 before 3.13, and 3.13 before 3.13t.
fn order(version: &str) -> (u32, u32, String) {
    let (major, rest) = version.split_once('.').unwrap_or((version, ""));
    let digits = rest.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let number = |text: &str| text.parse().unwrap_or(0);
    (number(major), number(digits), rest.to_owned())
}

/// The values in the order in which they first come.
fn each(cells: &[Cell], value: impl Fn(&Cell) -> String) -> Vec<String> {
    let mut found = Vec::new();
    for cell in cells {
        let value = value(cell);
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// The lowest share of whole stacks. Never 100 % unless all are.
fn share(cells: &[&Cell]) -> String {
    let share = |cell: &&Cell| 100.0 * cell.whole as f64 / cell.stacks.max(1) as f64;
    let lowest = cells.iter().map(share).fold(100.0, f64::min);
    let shown = (10.0 * lowest).floor() / 10.0;
    let digits = usize::from(shown < 100.0);
    format!("{shown:.digits$} %")
}

fn micro(nanoseconds: f64) -> String {
    format!("{:.1}", nanoseconds / 1000.0)
}

/// A table whose columns line up in a terminal, too.
fn markdown(corner: &str, columns: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head: Vec<String> = std::iter::once(corner.to_owned())
        .chain(columns.to_owned())
        .collect();
    let rule = vec!["---".to_owned(); head.len()];
    let lines: Vec<Vec<String>> = [head, rule].into_iter().chain(rows).collect();
    let mut text = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            let width = lines.iter().map(|line| line[column].chars().count()).max();
            let width = width.unwrap_or_default();
            write!(text, "| {cell:width$} ").expect("writing to a string");
        }
        text.push_str("|\n");
    }
    text
}

fn notes(cells: &[Cell]) -> String {
    let mut text = String::new();
    let frames = || {
        cells
            .iter()
            .map(|cell| cell.frames)
            .filter(|&frames| frames > 0)
    };
    if let (Some(fewest), Some(most)) = (frames().min(), frames().max()) {
        let times = "time: all that the kernel program took with every CPU busy, by stacks";
        writeln!(text, "\nThe stack has {fewest} to {most} frames; {times}.").expect("writing");
    }
    for (word, of) in [("failed", true), ("skipped", false)] {
        for cell in cells {
            let why = if of { &cell.failed } else { &cell.skipped };
            if let Some(why) = why {
                let name = format!("{word}: {}, {}", cell.python, cell.start);
                writeln!(text, "\n{name}: {}", why.trim()).expect("writing to a string");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(python: &str, start: &str, whole: u64) -> Cell {
        Cell {
            python: python.to_owned(),
            start: start.to_owned(),
            frames: 90,
            stacks: 2000,
            whole,
            nanoseconds: Some(1240.0),
            ..Cell::default()
        }
    }

    #[test]
    fn the_worst_build_of_a_version_is_what_a_summary_shows() {
        let mut cells = vec![
            cell("pyenv 3.13", "bare", 2000),
            cell("pyenv 3.9", "bare", 1999),
            cell("stripped 3.9", "bare", 2000),
            cell("free-threaded 3.13", "bare", 2000),
            cell("pyenv 3.9", "runc", 0),
            cell("pyenv 3.13", "runc", 0),
        ];
        cells[4].skipped = Some("there is no runc".to_owned());
        cells[5].failed = Some("only 0 stacks".to_owned());
        let expected = "\
| whole stacks | 3.9     | 3.13       | 3.13t |
| ---          | ---     | ---        | ---   |
| bare         | 99.9 %  | 100 %      | 100 % |
| runc         | skipped | **FAILED** | –     |
| µs a sample  | 1.2     | 1.2        | 1.2   |

The stack has 90 to 90 frames; time: all that the kernel program took with every CPU busy, by stacks.

failed: pyenv 3.13, runc: only 0 stacks

skipped: pyenv 3.9, runc: there is no runc
";
        assert_eq!(summary(&cells), expected);
        let line = "| pyenv 3.9          | 99.9 %, 1.2 µs | skipped    |\n";
        let text = whole(&cells);
        assert!(text.contains(line), "{text}");
        assert!(text.contains("| **FAILED** |"), "{text}");
    }
}
