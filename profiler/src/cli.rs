//! The command line: flags as typed, checked as far as the flags alone can be, into one config.
//! Names and meanings follow py-spy where it has the same thing.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{
    ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
    ValueHint, builder::NonEmptyStringValueParser, error::ErrorKind,
};
use clap_complete::Shell;
use serde::{Deserialize, Serialize};

use crate::{
    agent::settings::{Settings, Start},
    bpf::{RING_LARGEST, RING_SMALLEST, Steps},
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

impl Cli {
    /// What the arguments mean, of which the first is our own name.
    ///
    /// # Errors
    /// A usage error. A `--` with nothing after it is one, which clap takes for none at all: `-- $COMMAND`
    /// with a variable that is not set would profile the whole machine.
    pub fn read(arguments: &[OsString]) -> Result<Cli, clap::Error> {
        let mut matches = Cli::command().try_get_matches_from(arguments)?;
        let mut cli = Cli::from_arg_matches(&matches)?;
        let record = match &mut cli.command {
            Command::Record(record) => record,
            Command::Daemon(daemon) => {
                let (_, said) = matches.remove_subcommand().expect("it was read");
                daemon.said = said;
                return Ok(cli);
            }
            _ => return Ok(cli),
        };
        if !record.program.is_empty() || arguments.last().is_none_or(|last| last != "--") {
            return Ok(cli);
        }
        let mut command = Cli::command();
        // Before, it does not know that it is a part of `pyebpf`.
        command.build();
        let record = command.find_subcommand_mut("record").expect("it was read");
        let kind = ErrorKind::MissingRequiredArgument;
        Err(record.error(kind, "there is no command after `--`"))
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sample Python processes and write a profile
    Record(Box<RecordArgs>),
    /// Profile every Python all the time: a profile for each container and interval, into a folder or a
    /// store, and pages and figures over HTTP
    // Who is given flags by a chart or a unit adds those that hold instead.
    #[command(args_override_self = true)]
    Daemon(Box<DaemonArgs>),
    /// Tell what this machine, this user and single processes have and lack for profiling
    Doctor(DoctorArgs),
    /// Print a script that completes pyebpf's command line
    Completions {
        /// Whose script
        shell: Shell,
    },
}

#[derive(Args, Debug)]
pub struct DaemonArgs {
    #[command(flatten)]
    start: Start,

    #[command(flatten)]
    settings: Settings,

    /// Which of the settings were said, and where.
    #[arg(skip)]
    said: ArgMatches,
}

impl DaemonArgs {
    /// The settings with those of the file, and whether they are to be printed and nothing else.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn check(self) -> Result<(Settings, bool)> {
        let settings = self.settings.with_file(&self.start, &self.said)?;
        Ok((settings, self.start.print_config))
    }
}

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Look at this process, too: its Python and what its threads do; may be given several times
    #[arg(short, long = "pid", value_name = "PID",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub pids: Vec<u32>,

    /// Print the same as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct RecordArgs {
    /// Profile every Python process of the machine (the default when nothing else is named)
    #[arg(long, conflicts_with_all = ["pids", "cgroups", "containers", "program"])]
    all_python: bool,

    /// Profile this process; may be given several times
    #[arg(short, long = "pid", value_name = "PID", conflicts_with = "program",
          value_parser = clap::value_parser!(u32).range(1..))]
    pids: Vec<u32>,

    /// Profile the Pythons in this control group and below, now and later: a path as in
    /// /proc/PID/cgroup, or below /sys/fs/cgroup; may be given several times
    #[arg(long = "cgroup", value_name = "PATH", conflicts_with_all = ["pids", "program"],
          value_hint = ValueHint::DirPath, value_parser = NonEmptyStringValueParser::new())]
    cgroups: Vec<String>,

    /// Profile the Pythons in the container whose id begins with ID, now and later; may be given
    /// several times
    #[arg(long = "container", value_name = "ID", conflicts_with_all = ["pids", "program"],
          value_parser = parse_container)]
    containers: Vec<String>,

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

    /// Show what Python calls outside of Python: native frames among Python's
    #[arg(short, long, value_name = "WHICH", num_args = 0..=1, require_equals = true,
          default_missing_value = "folded")]
    native: Option<Native>,

    /// Show what the kernel does for Python: its frames above those that have called it
    #[arg(short, long)]
    kernel: bool,

    /// Count only samples that hold the GIL
    #[arg(short, long)]
    gil: bool,

    /// Show file names whole instead of relative to their package
    #[arg(long)]
    full_filenames: bool,

    /// Accepted for py-spy's sake: pyebpf never blocks a process
    #[arg(long)]
    nonblocking: bool,

    /// The summary as JSON: `json` puts it on stderr in place of the text, a FILE.json gets it as
    /// well
    #[arg(long, value_name = "json|FILE.json", value_parser = parse_stats)]
    stats: Option<Stats>,

    /// Size of the buffer between kernel and pyebpf: bytes, or as in 512K, 64M; a power of two
    /// [default: by rate and CPUs, 1M to 16M]
    #[arg(long, value_name = "SIZE", value_parser = parse_buffer)]
    buffer: Option<u32>,

    /// Log rare events of the kernel program to stderr
    #[arg(long)]
    bpf_log: bool,

    /// How the kernel program gets from frame to frame: `best`, `loop` as from 5.17 on, or `calls`
    /// as before; for tests
    #[arg(long, hide = true, default_value = "best", value_parser = parse_steps)]
    steps: Steps,

    /// Start this program and profile it
    #[arg(last = true, value_name = "COMMAND")]
    program: Vec<OsString>,
}

/// What is profiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Every Python process.
    All,
    /// Every Python process in one of these.
    Within {
        /// Paths of control groups, as typed.
        cgroups: Vec<String>,
        /// Beginnings of containers' ids.
        containers: Vec<String>,
    },
    /// These processes, whatever happens to them.
    Pids(Vec<u32>),
    /// A program that pyebpf starts: its name and its arguments.
    Command(Vec<OsString>),
}

impl Selection {
    /// Whether it is a kind of process that is meant: those that begin later are found, too.
    pub fn is_open(&self) -> bool {
        matches!(self, Selection::All | Selection::Within { .. })
    }
}

/// Which native frames are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Native {
    /// Without the interpreter's own that only lead from one Python frame to the next
    Folded,
    /// The interpreter's own, too, down to the thread's first
    All,
}

/// Until when `record` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    For(Duration),
    Unlimited,
}

/// Where the summary goes as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stats {
    /// To stderr, in place of the text.
    Stderr,
    /// To this file; stderr has the text.
    File(PathBuf),
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
    /// Which native frames are shown; none unless it is said.
    pub native: Option<Native>,
    /// Whether the kernel's frames are shown.
    pub kernel: bool,
    /// `None`: as text alone.
    pub stats: Option<Stats>,
    /// Bytes of the ring buffer; `None`: as many as rate and CPUs need.
    pub buffer: Option<u32>,
    pub bpf_log: bool,
    pub steps: Steps,
}

impl Record {
    /// Whether stderr is for the summary as JSON: unless pyebpf fails, nothing else is said there.
    pub fn is_quiet(&self) -> bool {
        self.stats == Some(Stats::Stderr)
    }
}

impl RecordArgs {
    /// Checks what the flags alone decide.
    ///
    /// # Errors
    /// A usage error: an extension that names no format, subprocesses of nobody.
    pub fn check(self) -> Result<Record> {
        let format = match (self.format, &self.output) {
            (Some(format), _) => format,
            // What is said of a folder is that it is one.
            (None, Some(path)) if path.as_os_str() != "-" && !path.is_dir() => {
                Format::of_path(path)?
            }
            _ => Format::Flamegraph,
        };
        let selection = if !self.pids.is_empty() {
            let mut pids = self.pids;
            pids.sort_unstable();
            pids.dedup();
            Selection::Pids(pids)
        } else if !self.program.is_empty() {
            Selection::Command(self.program)
        } else if !self.cgroups.is_empty() || !self.containers.is_empty() {
            Selection::Within {
                cgroups: self.cgroups,
                containers: self.containers,
            }
        } else {
            Selection::All
        };
        if self.subprocesses && selection == Selection::All && !self.all_python {
            bail!(
                "`--subprocesses` is about what a process starts: name it with `--pid`, or start a \
                 command after `--`; `--all-python` has every Python"
            );
        }
        let line = if self.nolineno {
            LineShape::None
        } else if self.function {
            LineShape::First
        } else {
            LineShape::Current
        };
        Ok(Record {
            children: self.subprocesses && !selection.is_open(),
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
            native: self.native,
            kernel: self.kernel,
            stats: self.stats,
            buffer: self.buffer,
            bpf_log: self.bpf_log,
            steps: self.steps,
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

/// The first digits of a container's id, or all of them.
fn parse_container(text: &str) -> Result<String> {
    let is_id = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id || !(4..=64).contains(&text.len()) {
        bail!(
            "a container is named by 4 to 64 hexadecimal digits, the beginning of its id: \
             `docker ps`, `podman ps` or `crictl ps` shows it"
        );
    }
    Ok(text.to_ascii_lowercase())
}

/// `json`, or a file that is named like one.
fn parse_stats(text: &str) -> Result<Stats> {
    let path = PathBuf::from(text);
    if text == "json" {
        Ok(Stats::Stderr)
    } else if path.extension().is_some_and(|end| end == "json") {
        Ok(Stats::File(path))
    } else {
        bail!("the summary goes to stderr (`--stats json`) or to a file whose name ends in .json")
    }
}

fn parse_steps(text: &str) -> Result<Steps> {
    match text {
        "best" => Ok(Steps::Best),
        "loop" => Ok(Steps::Loop),
        "calls" => Ok(Steps::Calls),
        _ => bail!("the kernel program steps by `loop` or by `calls`, or as is `best`"),
    }
}

/// A number of bytes, or of KiB, MiB or GiB with the unit's first letter.
fn parse_buffer(text: &str) -> Result<u32> {
    let (number, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .with_context(|| format!("{text} is not a size: give bytes, or as in 512K, 64M"))?;
    if !(RING_SMALLEST..=RING_LARGEST).contains(&bytes) || !bytes.is_power_of_two() {
        bail!(
            "the buffer is a power of two from {}K to {}G",
            RING_SMALLEST >> 10,
            RING_LARGEST >> 30
        );
    }
    Ok(u32::try_from(bytes).expect("the largest fits"))
}

#[cfg(test)]
mod tests;
