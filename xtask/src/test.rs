//! `cargo xtask test`: set-up, then every test of the workspace, the live ones as root, and at the
//! end the tests that were skipped, by name.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::process::{cargo, is_root, openly, quietly, say};
use crate::run::target_folder;
use crate::{setup, testbed};

/// The package whose tests profile real processes.
const LIVE: &str = "pyebpf-tests";

/// What to test.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Arguments for `cargo test`, for example a part of a test's name.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// The command. Fails when a test failed, not when one was skipped.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ebpf()?;
    let lacking = testbed::prepare()?;
    let target = target_folder()?;
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    // Made here, by us, so that root's tests append to a file that we can read and remove.
    let skipped = target.join("skipped-tests.txt");
    fs::write(&skipped, "").with_context(|| format!("cannot write {}", skipped.display()))?;

    openly(cargo().args(["build", "--quiet", "--package=pyebpf"]))?;
    let passed = tests(args, &skipped, &target.join("debug/pyebpf"));
    lacking.report();
    let text = fs::read_to_string(&skipped)
        .with_context(|| format!("cannot read {}", skipped.display()))?;
    eprint!("{}", summary(&text));
    passed
}

fn tests(args: &Args, skipped: &Path, program: &Path) -> Result<()> {
    let test = |packages: &[&str]| {
        let mut command = cargo();
        command
            .args(["test", "--no-fail-fast", "--workspace"])
            .args(packages)
            .args(&args.arguments)
            .env("PYEBPF_SKIPPED", skipped)
            .env("PYEBPF_BIN", program);
        command
    };
    if is_root() {
        return openly(&mut test(&[]));
    }
    let pure = openly(&mut test(&["--exclude", LIVE]));
    let mut live = live();
    live.arg("--no-fail-fast")
        .args(&args.arguments)
        .env("PYEBPF_SKIPPED", skipped)
        .env("PYEBPF_BIN", program);
    pure.and(openly(&mut live))
}

/// A `cargo test` of the live tests, as root where that can be.
pub(crate) fn live() -> Command {
    let mut live = cargo();
    live.args(["test", "--package", LIVE]);
    if is_root() {
        return live;
    }
    // Asks for the password now, where there is a terminal to ask on.
    let sudo = quietly(
        Command::new("sudo")
            .arg("--validate")
            .stderr(Stdio::inherit()),
    );
    match sudo {
        Ok(()) => {
            let machine = std::env::consts::ARCH.to_uppercase();
            let runner = format!("CARGO_TARGET_{machine}_UNKNOWN_LINUX_GNU_RUNNER");
            live.env(runner, "sudo --preserve-env");
        }
        Err(error) => say(&format!("the live tests run without root: {error:#}")),
    }
    live
}

/// The list of skipped tests, each once, in order.
fn summary(skipped: &str) -> String {
    let lines: BTreeSet<&str> = skipped
        .lines()
        .map(|line| line.strip_prefix("skipped: ").unwrap_or(line).trim())
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        return "no test was skipped\n".to_owned();
    }
    let mut text = format!("{} skipped:\n", lines.len());
    for line in lines {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_tests_are_listed_by_name_and_once() {
        let text = "skipped: deep on sid 3.15: not here\nskipped: a: needs root\n\
                    skipped: a: needs root\n";
        let expected = "2 skipped:\n  a: needs root\n  deep on sid 3.15: not here\n";
        assert_eq!(summary(text), expected);
        assert_eq!(summary("\n"), "no test was skipped\n");
    }
}
