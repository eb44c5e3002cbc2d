//! Markdown tables of figures, and whether a figure reaches what was set out to be reached.

use std::fmt::Write as _;

/// A table: a caption, a head, rows of cells, and what is to be said about it.
#[derive(Debug, Default)]
pub(crate) struct Table {
    caption: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    /// An empty table with these columns.
    pub(crate) fn new(caption: &str, head: &[&str]) -> Table {
        Table {
            caption: caption.to_owned(),
            head: head.iter().map(|&cell| cell.to_owned()).collect(),
            ..Table::default()
        }
    }

    /// Adds a row, one cell for each column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.head.len());
        self.rows.push(cells);
    }

    /// Adds a sentence below the table.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// The cells that say that a figure missed its mark.
    pub(crate) fn missed(&self) -> usize {
        let cells = self.rows.iter().flatten();
        cells.filter(|cell| cell.ends_with(MISSED)).count()
    }

    /// The table in Markdown, with an empty line before and after each part.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("\n{}\n\n", self.caption);
        let mut line = |cells: &[String]| {
            writeln!(text, "| {} |", cells.join(" | ")).expect("writing to a string");
        };
        line(&self.head);
        line(&vec!["---".to_owned(); self.head.len()]);
        self.rows.iter().for_each(|row| line(row));
        for note in &self.notes {
            writeln!(text, "\n{note}").expect("writing to a string");
        }
        text
    }
}

const MISSED: &str = "**MISSED**";

/// The mark to reach and whether it was: `≤ 1.5 ok`.
pub(crate) fn verdict(mark: &str, reached: bool) -> String {
    format!("{mark} {}", if reached { "ok" } else { MISSED })
}

/// A figure, or a dash where there is none.
pub(crate) fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or("–".to_owned(), |value| {
        // Rounding may leave the sign of a small negative number on a zero.
        let text = format!("{value:.digits$}");
        let zero = text
            .trim_start_matches('-')
            .chars()
            .all(|c| c == '0' || c == '.');
        if zero { text.replace('-', "") } else { text }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_markdown_and_counts_what_it_missed() {
        let mut table = Table::new("Cost:", &["what", "to reach"]);
        table.row(vec!["a".to_owned(), verdict("≤ 1", true)]);
        table.row(vec!["b".to_owned(), verdict("≤ 1", false)]);
        table.note("On a whim.");
        let text = "\nCost:\n\n| what | to reach |\n| --- | --- |\n| a | ≤ 1 ok |\n\
                    | b | ≤ 1 **MISSED** |\n\nOn a whim.\n";
        assert_eq!(table.markdown(), text);
        assert_eq!(table.missed(), 1);
    }

    #[test]
    fn figures_have_no_negative_zero() {
        assert_eq!(figure(None, 1), "–");
        assert_eq!(figure(Some(-0.04), 1), "0.0");
        assert_eq!(figure(Some(-0.06), 1), "-0.1");
    }
}
