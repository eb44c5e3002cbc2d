//! `cargo xtask run -- ARGS…`: set-up, a release build, then `pyebpf ARGS…` as root in our place,
//! so that signals reach it and its exit code is the task's.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::process::{as_root, cargo, openly, text_of};
use crate::setup;

/// What to run pyebpf with.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Arguments for pyebpf, for example: record --all-python --duration 10 --output profile.svg
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// The command. Returns only when something failed before pyebpf ran.
pub(crate) fn run(args: &Args) -> Result<()> {
    let program = release()?;
    let mut command = as_root(&program);
    command.args(&args.arguments);
    let error = command.exec();
    Err(anyhow!(error).context(format!("cannot run {} as root", program.display())))
}

/// Sets up, builds the release binary, and gives its path.
pub(crate) fn release() -> Result<PathBuf> {
    setup::ebpf()?;
    openly(cargo().args(["build", "--quiet", "--release", "--package=pyebpf"]))?;
    Ok(target_folder()?.join("release/pyebpf"))
}

/// Cargo's target folder for this workspace.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["metadata", "--format-version=1", "--no-deps", "--offline"]);
    let metadata: Value = serde_json::from_str(&text_of(&mut command)?)
        .context("cargo metadata printed something that is not JSON")?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo metadata names no target_directory")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(line: &str) -> Vec<OsString> {
        let words = std::iter::once("run").chain(line.split(' '));
        Line::parse_from(words).args.arguments
    }

    #[test]
    fn arguments_reach_pyebpf_as_they_were_typed() {
        let all = ["record", "-d", "3", "--", "python3", "x.py", "--", "-h"];
        assert_eq!(parsed("-- record -d 3 -- python3 x.py -- -h"), all);
        assert_eq!(parsed("record -d 3 -- python3 x.py -- -h"), all);
        assert_eq!(parsed("-- --help"), ["--help"]);
    }
}
