//! `cargo xtask matrix`: every Python that is here, started in every way, with what was seen of it:
//! how many of its stacks are whole and how long the kernel program takes for a sample. The live test
//! of the matrix does the work and says what fails; this makes a table of what it tells.

mod table;

use std::fs;
use std::os::fd::AsFd as _;

use anyhow::{Context, Result, bail};
use clap::Parser as _;
use serde::Deserialize;

use crate::process::{openly, say};
use crate::{setup, test, testbed, vm};

/// The live test that fills the matrix (`tests/live_matrix.rs`).
const TEST: &str = "shows_the_known_stack_however_a_python_is_started";

/// How to show it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A column for each minor version instead of one for each way to start it: fits a page.
    #[arg(long)]
    summary: bool,
    /// Try other kernels, too, in virtual machines (`cargo xtask vm`): some minutes more.
    #[arg(long)]
    kernels: bool,
}

/// What became of one cell: a line of what the live test tells.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Cell {
    /// Its build and minor version: `pyenv 3.9`.
    pub(crate) python: String,
    /// How or on what it was started: `runc`.
    pub(crate) start: String,
    /// How many frames the stack has.
    pub(crate) frames: usize,
    /// Stacks that were seen, and those that are whole.
    pub(crate) stacks: u64,
    pub(crate) whole: u64,
    /// Nanoseconds of the kernel program for a sample.
    pub(crate) nanoseconds: Option<f64>,
    /// Why it was not tried.
    pub(crate) skipped: Option<String>,
    /// What was wrong.
    pub(crate) failed: Option<String>,
}

/// The command. Fails when a cell does.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ebpf()?;
    let lacking = testbed::prepare()?;
    let program = crate::run::release()?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let told = folder.path().join("cells");
    // Made here, by us, so that root's test appends to a file that we can read.
    fs::write(&told, "").with_context(|| format!("cannot write {}", told.display()))?;
    say("two seconds and more for each cell, with all CPUs busy");
    let mut live = test::live();
    live.args(["--test", "live", "--", "--exact"])
        .arg(format!("live_matrix::{TEST}"))
        .env("PYEBPF_MATRIX", &told)
        .env("PYEBPF_BIN", &program);
    // What it says goes to standard error: the table is the only data.
    let stderr = std::io::stderr().as_fd().try_clone_to_owned();
    live.stdout(stderr.context("cannot share standard error")?);
    let passed = openly(&mut live);
    lacking.report();
    let text =
        fs::read_to_string(&told).with_context(|| format!("cannot read {}", told.display()))?;
    let mut cells = parse(&text)?;
    if cells.is_empty() {
        passed?;
        bail!("no cell was tried: the live tests need root");
    }
    let kernels = match args.kernels {
        true => kernels(),
        false => Ok(Vec::new()),
    };
    cells.extend(kernels.iter().flatten().cloned());
    print!(
        "{}",
        if args.summary {
            table::summary(&cells)
        } else {
            table::whole(&cells)
        }
    );
    let failed = cells.iter().filter(|cell| cell.failed.is_some()).count();
    if failed > 0 {
        bail!("{failed} of {} cells failed", cells.len());
    }
    kernels?;
    passed
}

/// A cell for each kernel and Python of `cargo xtask vm`. Not timed: what a processor that is
/// computed takes is no time of a processor.
fn kernels() -> Result<Vec<Cell>> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: vm::Args,
    }
    let rows = vm::measure(&Line::parse_from(["vm"]).args)?;
    Ok(rows.into_iter().map(cell).collect())
}

fn cell(row: vm::Row) -> Cell {
    let minor = |version: &str| -> String {
        let parts: Vec<&str> = version.split('.').take(2).collect();
        parts.join(".")
    };
    let (build, version) = row.python.rsplit_once(' ').unwrap_or(("", &row.python));
    Cell {
        python: format!("{build} {}", minor(version)),
        start: format!("Linux {}", minor(&row.kernel)),
        stacks: row.samples,
        whole: row.complete,
        failed: row.failure,
        ..Cell::default()
    }
}

fn parse(text: &str) -> Result<Vec<Cell>> {
    let cell = |line| serde_json::from_str(line).with_context(|| format!("not a cell: {line}"));
    text.lines().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_a_cell_beside_the_containers() {
        let cell = cell(vm::Row {
            kernel: "6.12.48+deb13-cloud-amd64".to_owned(),
            python: "pyenv 3.8.18".to_owned(),
            samples: 40,
            complete: 39,
            native: 30,
            native_complete: 30,
            steps: "bpf_loop",
            time: Some(90_000.0),
            failure: None,
        });
        assert_eq!(
            (cell.python.as_str(), cell.start.as_str()),
            ("pyenv 3.8", "Linux 6.12")
        );
        assert_eq!((cell.stacks, cell.whole, cell.nanoseconds), (40, 39, None));
    }
}
