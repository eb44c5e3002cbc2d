//! `cargo xtask bench`: what pyebpf costs, beside py-spy in both its modes and perf as the floor, as
//! Markdown on standard output. One file per figure; every figure is a median of interleaved rounds.

mod agent;
mod brief;
mod crowd;
mod kernel;
mod machine;
mod measure;
mod native;
mod own;
mod profilers;
mod ready;
mod slowdown;
pub(crate) mod soak;
pub(crate) mod table;
mod workload;

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::process::{as_root, find, is_root, openly, say};
use crate::{run, testbed};
use profilers::Tools;
use table::Table;

/// What to measure, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Few and short rounds: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// Only these figures.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Figure>,
    /// How often everything is measured [default: 6, and 2 with --quick].
    #[arg(long)]
    rounds: Option<usize>,
    /// The Python whose slowdown is measured [default: the newest of pyenv's].
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Measure this pyebpf instead of a release build.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// A figure that can be measured on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Figure {
    /// How much slower targets get.
    Slowdown,
    /// Time of the kernel program per sample.
    Kernel,
    /// CPU and memory of the profiler, and whether it keeps up.
    #[value(name = "self")]
    Own,
    /// Time until sampling begins.
    Ready,
    /// CPU and memory of the profiler beside a thousand Pythons.
    Crowd,
    /// The same with native frames: kernel program, slowdown, memory.
    Native,
    /// CPU and memory of the node agent beside a hundred containers, and its profiles' sizes.
    Agent,
    /// Processes that are gone soon: what is named, what is lost.
    Brief,
}

type Measure = fn(&Plan) -> Result<Table>;

/// Each figure and how it is measured.
const FIGURES: [(Figure, Measure); 10] = [
    (Figure::Slowdown, slowdown::measure),
    (Figure::Kernel, kernel::measure),
    (Figure::Own, own::measure),
    (Figure::Ready, ready::measure),
    (Figure::Crowd, crowd::measure),
    (Figure::Agent, agent::measure),
    (Figure::Brief, brief::measure),
    (Figure::Native, native::kernel),
    (Figure::Native, native::slowdown),
    (Figure::Native, native::memory),
];

/// What the figures are measured with.
struct Plan {
    tools: Tools,
    python: PathBuf,
    /// By minor version.
    pythons: BTreeMap<u32, PathBuf>,
    rounds: usize,
    /// Seconds of a block of work.
    block: f64,
    /// Seconds over which the kernel program is timed.
    kernel: f64,
    /// Seconds of a recording whose profiler is watched.
    own: f64,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let pyebpf = match &args.program {
        Some(program) => program.clone(),
        None => run::release()?,
    };
    let tools = tools(pyebpf)?;
    if !is_root() {
        return again_as_root(args, &tools.pyebpf);
    }
    let plan = plan(args, tools)?;
    print!(
        "{}",
        machine::describe(&plan.tools, &plan.python, plan.rounds)?
    );
    let mut missed = 0;
    for (figure, measure) in FIGURES {
        if args.only.is_empty() || args.only.contains(&figure) {
            let table = measure(&plan)?;
            missed += table.missed();
            print!("{}", table.markdown());
        }
    }
    say(&format!("marks that were missed: {missed}"));
    Ok(())
}

/// Gets what pyebpf is compared with.
fn tools(pyebpf: PathBuf) -> Result<Tools> {
    let py_spy = testbed::py_spy()?;
    if find("perf").is_none() && Apt::is_here() {
        Apt::default().install(&["linux-perf"], "to measure the floor of all profilers")?;
    }
    Ok(Tools {
        pyebpf,
        py_spy,
        perf: find("perf").context("there is no perf: install your distribution's package")?,
        scratch: tempfile::tempdir().context("cannot make a temporary folder")?,
    })
}

fn plan(args: &Args, tools: Tools) -> Result<Plan> {
    let pythons = machine::pythons();
    for missing in machine::missing(&pythons) {
        say(&format!("pyenv has no CPython {missing}: not measured"));
    }
    let python = match &args.python {
        Some(python) => python.clone(),
        None => machine::python(&pythons)?,
    };
    let pick = |full: f64, quick: f64| if args.quick { quick } else { full };
    Ok(Plan {
        tools,
        python,
        pythons,
        rounds: args.rounds.unwrap_or(if args.quick { 2 } else { 6 }).max(1),
        block: pick(0.6, 0.3),
        kernel: pick(2.0, 1.0),
        own: pick(10.0, 4.0),
    })
}

/// Does the same as root, with what is built and fetched already.
fn again_as_root(args: &Args, pyebpf: &Path) -> Result<()> {
    let mut command = as_root("env");
    // sudo gives root's own; the Pythons and the tools are the user's.
    for name in ["HOME", "PATH", "XDG_CACHE_HOME", "PYENV_ROOT", "CARGO"] {
        if let Some(value) = env::var_os(name) {
            let mut pair = std::ffi::OsString::from(name);
            pair.push("=");
            pair.push(value);
            command.arg(pair);
        }
    }
    let ourselves = env::current_exe().context("cannot tell which program this is")?;
    command.arg(ourselves).args(env::args_os().skip(1));
    if args.program.is_none() {
        command.arg("--program").arg(pyebpf);
    }
    openly(&mut command)
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

    #[test]
    fn figures_are_named_as_the_readme_does() {
        let line = Line::try_parse_from(["bench", "--only", "self,ready", "--quick"]);
        let args = line.expect("a valid line").args;
        assert_eq!(args.only, [Figure::Own, Figure::Ready]);
        assert!(args.quick);
        assert!(Line::try_parse_from(["bench", "--only", "speed"]).is_err());
    }
}
