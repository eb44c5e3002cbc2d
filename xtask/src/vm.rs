//! `cargo xtask vm [KERNEL…]`: pyebpf under other kernels, each in a virtual machine that has this
//! machine's files. Every program goes through the kernel's verifier, and the known stack of the live
//! tests is looked for in several Pythons, and native frames among theirs. Out comes a table.

mod archive;
mod boot;
mod check;
mod initrd;
mod kernel;
mod native;
mod stack;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bench::table::{Table, figure};
use crate::process::{quietly, say};
use crate::run::{release, target_folder};
use crate::setup::{cache, turn};
use boot::Ended;
pub(crate) use check::Row;
use kernel::Kernel;
use tools::Tools;

/// Which kernels, and how.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Kernels: 5.10, 6.1, 6.12, newest [default: all of them]
    kernels: Vec<String>,

    /// Get kernels again that are in the cache folder: the archive may have newer ones
    #[arg(long)]
    refresh: bool,

    /// Use KVM instead of computing every instruction: quicker where it works
    #[arg(long)]
    kvm: bool,

    /// Seconds that a guest may take
    #[arg(long, default_value_t = LIMIT)]
    limit: u64,

    /// A pyebpf to try instead of building this one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,

    /// Only run this there, as root, and show what it says
    #[arg(last = true)]
    command: Vec<String>,
}

/// Seconds that a guest may take unless told otherwise: it takes two to six minutes, and several
/// times as long on a machine that is busy.
const LIMIT: u64 = 1200;
/// Of a job, as root has it.
const ENVIRONMENT: &str =
    "export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";

impl Args {
    fn names(&self) -> Vec<&str> {
        match self.kernels.is_empty() {
            true => kernel::KERNELS.map(|(name, _)| name).to_vec(),
            false => self.kernels.iter().map(String::as_str).collect(),
        }
    }
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.command.is_empty() {
        return command(args);
    }
    let rows = measure(args)?;
    print!("{}", table(&rows).markdown());
    let failed: Vec<String> = rows.iter().filter_map(failure).collect();
    if !failed.is_empty() {
        bail!(
            "{} of {} failed:\n{}",
            failed.len(),
            rows.len(),
            failed.join("\n")
        );
    }
    Ok(())
}

/// The oldest and the newest kernel, with the pyebpf that the tests have built. A kernel that can't be
/// had here is named and not tried.
pub(crate) fn in_ci() -> Result<()> {
    let mut kernels = Vec::new();
    for name in ["5.10", "newest"] {
        match prepared(name, false) {
            Ok(_) => kernels.push(name.to_owned()),
            Err(error) => say(&format!(
                "not available, not tried: the kernel {name}: {error:#}"
            )),
        }
    }
    if kernels.is_empty() {
        return Ok(());
    }
    run(&Args {
        kernels,
        program: Some(target_folder()?.join("debug/pyebpf")),
        limit: LIMIT,
        ..Args::default()
    })
}

/// Boots each kernel and gives how each Python fared under it. A kernel that can't be had or does
/// not come up is an error, after the others have had their turn.
pub(crate) fn measure(args: &Args) -> Result<Vec<Row>> {
    let pyebpf = match &args.program {
        Some(program) => fs::canonicalize(program)
            .with_context(|| format!("there is no {}", program.display()))?,
        None => release()?,
    };
    let workloads = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python");
    let workloads = fs::canonicalize(&workloads)
        .with_context(|| format!("no workloads in {}", workloads.display()))?;
    let pythons = check::pythons()?;
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for name in args.names() {
        let cases = check::cases(&pythons, kernel::has_loop(name));
        let script = check::script(&pyebpf, &workloads, &cases)?;
        match boot(args, name, &script) {
            Ok((ended, release)) => rows.append(&mut check::rows(&release, &ended, &cases)),
            Err(error) => failed.push(format!("kernel {name}: {error:#}")),
        }
    }
    if !failed.is_empty() {
        if !rows.is_empty() {
            print!("{}", table(&rows).markdown());
        }
        bail!("{}", failed.join("\n"));
    }
    Ok(rows)
}

/// Runs the user's own command under each kernel.
fn command(args: &Args) -> Result<()> {
    let words: Vec<String> = args.command.iter().map(|word| quoted(word)).collect();
    let here = std::env::current_dir().context("there is no current folder")?;
    let here = quoted(here.to_str().context("a path that is not UTF-8")?);
    let script = format!("cd {here} && {}", words.join(" "));
    for name in args.names() {
        let (ended, release) = boot(args, name, &script)?;
        print!("{}", ended.file("out"));
        eprint!("{}", ended.file("err"));
        if ended.code != 0 {
            bail!("it ended with {} under {release}", ended.code);
        }
    }
    Ok(())
}

/// One guest from start to end; gives what it left, and which kernel it was exactly.
fn boot(args: &Args, name: &str, script: &str) -> Result<(Ended, String)> {
    let (tools, kernel) = prepared(name, args.refresh)?;
    say(&format!("booting {}", kernel.release));
    let job = boot::Job {
        script: &format!("{ENVIRONMENT}{script}"),
        limit: Duration::from_secs(args.limit),
        kvm: args.kvm,
    };
    Ok((boot::run(&tools, &kernel, &job)?, kernel.release))
}

/// A word as a shell reads it whole.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The tools and a kernel, from the cache folder or Debian's archive.
fn prepared(name: &str, refresh: bool) -> Result<(Tools, Kernel)> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the kernels and QEMU that this task gets are for x86-64");
    }
    let cache = cache()?;
    let _turn = turn(&cache)?;
    let folder = cache.join("vm");
    let tools = Tools::prepare(&folder)?;
    let kernel = Kernel::prepare(&folder, &tools, name, refresh)?;
    Ok((tools, kernel))
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(
        "**Kernels**, each in a virtual machine:",
        &[
            "kernel",
            "Python",
            "samples",
            "complete",
            "native complete",
            "steps by",
            "time per sample",
            "outcome",
        ],
    );
    for row in rows {
        let share = |of: u64, all: u64| format!("{:.1} %", 100.0 * of as f64 / all.max(1) as f64);
        let time = row.time.map(|time| time / 1000.0);
        table.row(vec![
            row.kernel.clone(),
            row.python.clone(),
            row.samples.to_string(),
            share(row.complete, row.samples),
            share(row.native_complete, row.native),
            row.steps.to_owned(),
            format!("{} µs", figure(time, 1)),
            (if row.failure.is_none() {
                "ok"
            } else {
                "**FAILED**"
            })
            .to_owned(),
        ]);
    }
    table.note(
        "Times are `run_time_ns` over `run_cnt`, early exits included. Without `--kvm` every \
         instruction of the guest is computed, some twenty times as slow as a machine: compare \
         them with each other only.",
    );
    table
}

fn failure(row: &Row) -> Option<String> {
    let failure = row.failure.as_ref()?;
    Some(format!("{} under {}: {failure}", row.python, row.kernel))
}

/// Makes a folder whole or not at all: `make` fills another one, which then takes its place.
fn make_whole(place: &Path, what: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if place.exists() {
        return Ok(());
    }
    say(&format!("getting {what}"));
    let parent = place.parent().context("a folder in the cache folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let new = tempfile::tempdir_in(parent)
        .with_context(|| format!("cannot write in {}", parent.display()))?;
    make(new.path()).with_context(|| format!("cannot get {what}"))?;
    let new = new.keep();
    // Packages bring folders that only root may enter, but never ours.
    quietly(Command::new("chmod").arg("755").arg(&new))?;
    fs::rename(&new, place).with_context(|| format!("cannot make {}", place.display()))
}
