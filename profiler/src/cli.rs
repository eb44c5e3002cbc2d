//! The command line: flags as typed, checked as far as the flags alone can be, into one config.
//! Names and meanings follow py-spy where it has the same thing.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    output::Format,
    profile::{LineShape, Shape},
};

/// A system-wide eBPF profiler for Python: where every Python process spends its time, without
/// restarting, changing or stopping any of them.
#[derive(Debug, Parser)]
#[command(name = "pyebpf", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sample Python processes and write a profile
    Record(Box<RecordArgs>),
    /// Print a script that completes pyebpf's command line
    Completions {
        /// Whose script
        shell: Shell,
    },
}

#[derive(Args, Debug)]
pub struct RecordArgs {
    /// Profile every Python process of the machine (the default when nothing else is named)
    #[arg(long, conflicts_with_all = ["pids", "program"])]
    all_python: bool,

    /// Profile this process; may be given several times
    #[arg(short, long = "pid", value_name = "PID", conflicts_with = "program",
          value_parser = clap::value_parser!(u32).range(1..))]
    pids: Vec<u32>,

    /// Profile the children of --pid or COMMAND, too
    #[arg(short, long)]
    subprocesses: bool,

    /// How long: seconds, or as in 90s, 5m; or `unlimited` [default: until Ctrl-C]
    #[arg(short, long, value_parser = parse_duration)]
    duration: Option<Limit>,

    /// Samples per second and CPU
    #[arg(short, long, value_name = "HZ", default_value_t = 99,
          value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,

    /// Where the profile goes; `-` is stdout [default: a name from the target and the time]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The profile's format [default: by the output's extension, else flamegraph]
    #[arg(short, long)]
    format: Option<Format>,

    /// Fold the lines of a function: show its first line instead of the current one
    #[arg(short = 'F', long)]
    function: bool,

    /// Show no line numbers
    #[arg(long)]
    nolineno: bool,

    /// Show each thread as a frame
    #[arg(short, long)]
    threads: bool,

    /// Count only samples that hold the GIL
    #[arg(short, long)]
    gil: bool,

    /// Show file names whole instead of relative to their package
    #[arg(long)]
    full_filenames: bool,

    /// Accepted for py-spy's sake: pyebpf never blocks a process
    #[arg(long)]
    nonblocking: bool,

    /// Log rare events of the kernel program to stderr
    #[arg(long)]
    bpf_log: bool,

    /// Start this program and profile it
    #[arg(last = true, value_name = "COMMAND")]
    program: Vec<OsString>,
}

/// What is profiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Every Python process.
    All,
    /// These processes, whatever happens to them.
    Pids(Vec<u32>),
    /// A program that pyebpf starts: its name and its arguments.
    Command(Vec<OsString>),
}

/// Until when `record` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    For(Duration),
    Unlimited,
}

/// `record`'s flags, checked.
#[derive(Clone, Debug)]
pub struct Record {
    pub selection: Selection,
    /// Whether children of the selected processes are profiled.
    pub children: bool,
    pub limit: Limit,
    /// Samples per second and CPU.
    pub rate: u32,
    /// `None`: a default name; `-`: stdout.
    pub output: Option<PathBuf>,
    pub format: Format,
    pub shape: Shape,
    pub gil_only: bool,
    pub bpf_log: bool,
}

impl RecordArgs {
    /// Checks what the flags alone decide.
    ///
    /// # Errors
    /// A usage error: an extension that names no format.
    pub fn check(self) -> Result<Record> {
        let format = match (self.format, &self.output) {
            (Some(format), _) => format,
            (None, Some(path)) if path.as_os_str() != "-" => Format::of_path(path)?,
            _ => Format::Flamegraph,
        };
        let selection = if !self.pids.is_empty() {
            let mut pids = self.pids;
            pids.sort_unstable();
            pids.dedup();
            Selection::Pids(pids)
        } else if !self.program.is_empty() {
            Selection::Command(self.program)
        } else {
            Selection::All
        };
        let line = if self.nolineno {
            LineShape::None
        } else if self.function {
            LineShape::First
        } else {
            LineShape::Current
        };
        Ok(Record {
            children: self.subprocesses && selection != Selection::All,
            selection,
            limit: self.duration.unwrap_or(Limit::Unlimited),
            rate: self.rate,
            output: self.output,
            format,
            shape: Shape {
                line,
                threads: self.threads,
                full_filenames: self.full_filenames,
                processes: true,
            },
            gil_only: self.gil,
            bpf_log: self.bpf_log,
        })
    }
}

/// Seconds (`10`, `0.5`), a time with units (`90s`, `5m`, `1h 30m`), or `unlimited`.
fn parse_duration(text: &str) -> Result<Limit> {
    if text == "unlimited" {
        return Ok(Limit::Unlimited);
    }
    let duration = match text.parse::<f64>() {
        Ok(seconds) => {
            Duration::try_from_secs_f64(seconds).with_context(|| format!("{text} is not a time"))?
        }
        Err(_) => humantime::parse_duration(text).context(
            "a duration is a number of seconds, or a time such as 90s, 5m or 1h30m, or `unlimited`",
        )?,
    };
    if duration.is_zero() {
        bail!("a recording takes some time: give more than 0 seconds");
    }
    Ok(Limit::For(duration))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, error::ErrorKind};

    use super::*;

    fn parse(args: &str) -> Result<Record> {
        let cli = Cli::try_parse_from(args.split(' '))?;
        match cli.command {
            Command::Record(args) => args.check(),
            Command::Completions { .. } => bail!("not record"),
        }
    }

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_named_means_every_python() {
        let record = parse("pyebpf record").unwrap();
        assert_eq!(record.selection, Selection::All);
        assert_eq!((record.rate, record.limit), (99, Limit::Unlimited));
        assert_eq!(record.format, Format::Flamegraph);
    }

    #[test]
    fn targets_are_pids_or_a_command() {
        let record = parse("pyebpf record -p 7 --pid 3 -p 7 -s").unwrap();
        assert_eq!(record.selection, Selection::Pids(vec![3, 7]));
        assert!(record.children);
        let record = parse("pyebpf record -d 5 -- python3 -c pass").unwrap();
        let command = ["python3", "-c", "pass"].map(OsString::from).to_vec();
        assert_eq!(record.selection, Selection::Command(command));
        assert!(parse("pyebpf record -p 7 -- python3").is_err());
        assert!(parse("pyebpf record --all-python -p 7").is_err());
    }

    #[test]
    fn durations_are_seconds_or_have_units() {
        let seconds = |text| match parse_duration(text).unwrap() {
            Limit::For(duration) => duration.as_secs_f64(),
            Limit::Unlimited => f64::INFINITY,
        };
        assert_eq!(seconds("10"), 10.0);
        assert_eq!(seconds("0.5"), 0.5);
        assert_eq!(seconds("90s"), 90.0);
        assert_eq!(seconds("5m"), 300.0);
        assert_eq!(seconds("unlimited"), f64::INFINITY);
        for bad in ["0", "-1", "ten", "", "nan", "1e300", "0s"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn formats_come_from_the_flag_or_the_extension() {
        let format = |args| parse(args).unwrap().format;
        assert_eq!(format("pyebpf record -o a.json"), Format::Speedscope);
        assert_eq!(format("pyebpf record -o a.json -f raw"), Format::Raw);
        assert_eq!(format("pyebpf record -o -"), Format::Flamegraph);
        let error = parse("pyebpf record -o a.doc").unwrap_err().to_string();
        assert!(error.contains("a.doc"), "{error}");
    }

    #[test]
    fn folding_lines_and_showing_none_go_together() {
        for args in ["-F --nolineno", "--nolineno --function", "--nolineno"] {
            let record = parse(&format!("pyebpf record {args}")).unwrap();
            assert_eq!(record.shape.line, LineShape::None, "{args}");
        }
        assert_eq!(
            parse("pyebpf record -F").unwrap().shape.line,
            LineShape::First
        );
    }

    #[test]
    fn a_rate_of_zero_is_a_usage_error() {
        let error = Cli::try_parse_from(["pyebpf", "record", "-r", "0"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValueValidation);
        assert_eq!(error.exit_code(), 2);
    }
}
