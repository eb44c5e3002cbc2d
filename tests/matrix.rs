//! One cell of the matrix of Pythons and ways to start them: what was seen of it, and how the
//! result is told to `cargo xtask matrix`, which makes a table of it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::raw::{Frame, Stack, samples};

/// Least share of the stacks that must be whole, in percent.
const WHOLE_MIN: f64 = 99.5;

/// A frame as a workload tells it: the name, the file, and the lines that it may be on.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Expected(pub String, pub String, pub Vec<u32>);

/// What became of one cell.
#[derive(Debug, Default, Serialize)]
pub struct Cell {
    /// As tests call it: `pyenv 3.9`.
    pub python: String,
    /// How it was started: `runc`.
    pub start: String,
    /// How many frames the stack has.
    pub frames: usize,
    /// Stacks that were seen, and those of them that are whole.
    pub stacks: u64,
    /// Likewise.
    pub whole: u64,
    /// Nanoseconds of the kernel program for one sample, where that was measured.
    pub nanoseconds: Option<f64>,
    /// Why it was not tried.
    pub skipped: Option<String>,
    /// What was wrong.
    pub failed: Option<String>,
}

impl Cell {
    /// Counts the stacks of the process and checks them: each whole one must be `expected`.
    ///
    /// # Errors
    ///
    /// When one is another, there are hardly any, or too many are not whole.
    pub fn check(&mut self, stacks: &[Stack], expected: &[Expected]) -> Result<()> {
        self.frames = expected.len();
        self.stacks = samples(stacks);
        let (whole, broken): (Vec<&Stack>, Vec<&Stack>) =
            stacks.iter().partition(|stack| stack.marker.is_none());
        self.whole = samples(whole.iter().copied());
        ensure!(self.stacks >= 20, "only {} stacks", self.stacks);
        for stack in whole {
            same_frames(&stack.frames, expected)?;
        }
        let share = 100.0 * self.whole as f64 / self.stacks as f64;
        let mut markers: BTreeMap<&str, u64> = BTreeMap::new();
        for stack in broken {
            let marker = stack.marker.as_deref().unwrap_or_default();
            *markers.entry(marker).or_default() += stack.count;
        }
        ensure!(
            share >= WHOLE_MIN,
            "{share:.1} % of {} stacks are whole: {markers:?}",
            self.stacks
        );
        Ok(())
    }

    /// Appends the cell to the file that the environment variable `PYEBPF_MATRIX` names, if it does.
    ///
    /// # Errors
    ///
    /// When that can't be written.
    pub fn tell(&self) -> Result<()> {
        let Some(path) = wanted() else {
            return Ok(());
        };
        let line = serde_json::to_string(self)? + "\n";
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .with_context(|| format!("cannot append to {}", path.display()))
    }
}

/// The file for the cells. Where there is one, they are also timed, which takes longer.
pub fn wanted() -> Option<PathBuf> {
    std::env::var_os("PYEBPF_MATRIX").map(PathBuf::from)
}

/// Checks the Python frames of a stack against those that are expected, all of them.
///
/// # Errors
///
/// Names the first frame that is another.
pub fn same_frames(seen: &[Frame], expected: &[Expected]) -> Result<()> {
    for (index, (seen, expected)) in seen.iter().zip(expected).enumerate() {
        let Expected(name, file, lines) = expected;
        ensure!(
            seen.name == *name && seen.file == *file && lines.contains(&seen.line),
            "frame {index} from the root is {seen:?}, not {expected:?}"
        );
    }
    ensure!(
        seen.len() == expected.len(),
        "{} frames instead of {}; the newest are {:?}",
        seen.len(),
        expected.len(),
        &seen[seen.len().saturating_sub(3)..]
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw;

    fn checked(text: &str) -> Result<(u64, u64)> {
        let mut cell = Cell::default();
        let expected = [Expected("f".into(), "a.py".into(), vec![1, 2])];
        cell.check(&raw::parse(text)?, &expected)?;
        Ok((cell.stacks, cell.whole))
    }

    #[test]
    fn a_cell_is_held_to_its_stack_and_to_whole_ones() {
        let (good, bad) = (
            "f (a.py:1) 199\nf (a.py:2) 200\n",
            "[truncated: x];f (a.py:1)",
        );
        let counts = checked(&format!("{good}{bad} 1\n")).expect("one of 400 may be broken");
        assert_eq!(counts, (400, 399));
        for (text, said) in [
            (
                format!("{good}{bad} 3\n"),
                "99.3 % of 402 stacks are whole: {\"truncated: x\": 3}",
            ),
            (format!("{good}f (a.py:3) 1\n"), "frame 0 from the root"),
            (
                format!("{good}f (a.py:1);g (a.py:1) 1\n"),
                "2 frames instead of 1",
            ),
            ("f (a.py:1) 3\n".to_owned(), "only 3 stacks"),
        ] {
            let error = checked(&text).expect_err(&text).to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
