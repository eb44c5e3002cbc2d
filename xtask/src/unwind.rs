//! `cargo xtask unwind`: the walk over native frames, over the stacks of many programs, beside what
//! framehop and gdb find there; or the size of unwind tables. A test does the work and prints a table;
//! this gets what it needs.

use anyhow::{Result, bail};

use crate::process::{cargo, find, openly};
use crate::{setup, testbed};

/// What to compare, or to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these programs.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How many stacks of each program to look at, in each of two ways.
    #[arg(long, default_value_t = 60)]
    stacks: u32,
    /// Instead: bytes and time that tables take.
    #[arg(long)]
    tables: bool,
}

/// The command. Fails when a share or a size is not what it is to be.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ebpf()?;
    if !args.tables && find("gdb").is_none() {
        bail!("there is no gdb to compare with: install gdb");
    }
    testbed::wheels(args.tables)?;
    let mut test = cargo();
    test.args(["test", "--quiet", "--package=pyebpf", "--test=native"]);
    let name = match args.tables {
        true => {
            test.arg("--release");
            "sizes::tables"
        }
        false => "corpus::corpus",
    };
    test.args(["--", "--ignored", "--nocapture", "--exact", name]);
    test.env("PYEBPF_ONLY", args.only.join(","));
    test.env("PYEBPF_STOPS", args.stacks.to_string());
    openly(&mut test)
}
