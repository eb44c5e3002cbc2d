//! `cargo xtask fuzz`: libFuzzer on the parsers of foreign bytes, each for a while. It needs a C++
//! compiler and the same Rust as everything else. Inputs that lead somewhere new are kept in the
//! cache folder; one that breaks a parser becomes a file of `tests/data/fuzz`, which `cargo test`
//! reads from then on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, find, openly, say};
use crate::run::target_folder;
use crate::setup::cache;

/// What libFuzzer wants of the compiler: counters at the edges of the code, and to see what is
/// compared with what. All are passes of LLVM that a stable Rust has.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// An input that takes longer hangs a parser; a parser that takes more memory has lost its bounds.
const SECONDS_MAX: u32 = 10;
const MEBIBYTES_MAX: u32 = 1024;

/// What to fuzz, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these parsers, by the folders of tests/data/fuzz.
    parsers: Vec<String>,
    /// Seconds for each.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    time: u32,
}

/// The command. Fails when a parser does.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let root = fs::canonicalize(&root).context("cannot find the repository")?;
    let inputs = root.join("tests/data/fuzz");
    let known = folders(&inputs)?;
    if let Some(unknown) = args.parsers.iter().find(|name| !known.contains(name)) {
        bail!(
            "no parser is called {unknown}: there are {}",
            known.join(", ")
        );
    }
    let program = build(&root)?;
    let mut broken = Vec::new();
    for name in &known {
        if !args.parsers.is_empty() && !args.parsers.contains(name) {
            continue;
        }
        if let Err(error) = fuzz(&program, name, &inputs.join(name), args.time) {
            eprintln!("{name}: {error:#}");
            broken.push(name.as_str());
        }
    }
    if !broken.is_empty() {
        let (names, inputs) = (broken.join(", "), inputs.display());
        bail!("broken: {names}; what breaks them is in {inputs}: mend, test, commit");
    }
    Ok(())
}

fn folders(inputs: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(inputs).with_context(|| format!("no {}", inputs.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn build(root: &Path) -> Result<PathBuf> {
    if find("c++").or_else(|| find("g++")).is_none() {
        bail!("libFuzzer needs a C++ compiler: install your distribution's package g++");
    }
    say("building the parsers with libFuzzer");
    let target = target_folder()?.join("fuzz");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--release", "--manifest-path"])
        .arg(root.join("fuzz/Cargo.toml"))
        // With a target the flags are not for build scripts.
        .args(["--target", &host, "--target-dir"])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        .env("AYA_BUILD_SKIP", "1");
    openly(&mut command)?;
    Ok(target.join(host).join("release/pyebpf-fuzz"))
}

fn fuzz(program: &Path, name: &str, inputs: &Path, seconds: u32) -> Result<()> {
    let corpus = cache()?.join("fuzz").join(name);
    fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let output = Command::new(program)
        .env("PYEBPF_FUZZ", name)
        // Found inputs go to the first folder; the second is only read.
        .args([&corpus, inputs])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEBIBYTES_MAX}"))
        .arg(format!("-artifact_prefix={}/", inputs.display()))
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let lines: Vec<&str> = said.lines().collect();
        let end = lines[lines.len().saturating_sub(40)..].join("\n");
        bail!("{}\n{end}", output.status);
    }
    say(&format!("{name}: {}", summary(&said)));
    Ok(())
}

/// Runs and reach, from the line `#RUNS DONE cov: EDGES …`.
fn summary(said: &str) -> String {
    let done = said.lines().find(|line| line.contains("DONE"));
    let words: Vec<&str> = done.unwrap_or_default().split_whitespace().collect();
    match words[..] {
        [runs, "DONE", "cov:", edges, ..] => {
            let runs = runs.trim_start_matches('#');
            format!("{runs} inputs, {edges} edges of code reached, none broke it")
        }
        _ => "done".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_in_a_line() {
        let said =
            "#4\tNEW    cov: 3 ft: 4\n#81 \tDONE   cov: 57 ft: 61 corp: 9/33b\nDone 81 runs\n";
        let expected = "81 inputs, 57 edges of code reached, none broke it";
        assert_eq!(summary(said), expected);
        assert_eq!(summary(""), "done");
    }
}
