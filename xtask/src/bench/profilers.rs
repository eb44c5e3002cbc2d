//! The profilers that are compared: how each is started, when it samples, how it is ended and what
//! it says then. What its profile holds is not looked at.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::measure;
use super::workload::Running;

/// How long a profiler may take to begin.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a profiler may take to write its profile.
const WRITING: Duration = Duration::from_secs(60);
/// py-spy gives no sign of being ready that a program could see.
const PY_SPY_STARTS: Duration = Duration::from_millis(700);

/// The profilers that are compared, and where they are.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) pyebpf: PathBuf,
    pub(super) py_spy: PathBuf,
    pub(super) perf: PathBuf,
    /// Profiles and what the profilers say go here.
    pub(super) scratch: tempfile::TempDir,
}

/// One of them, in one of its modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profiler {
    Pyebpf,
    PyebpfNative,
    PySpy,
    PySpyNonblocking,
    PySpyNative,
    Perf,
}

/// Whom to profile.
#[derive(Clone, Debug)]
pub(super) enum Whom {
    /// Of several only pyebpf knows the meaning.
    Pids(Vec<u32>),
    /// Every Python of the machine; pyebpf alone can.
    All,
}

/// A profiler at work.
#[derive(Debug)]
pub(super) struct Recording {
    running: Running,
    said: File,
    /// Where pyebpf says it for programs.
    stats: Option<PathBuf>,
    /// From its start until it could take its first sample.
    pub(super) ready_after: Duration,
    pub(super) started: Instant,
}

/// What a profiler told at its end.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) text: String,
    /// What pyebpf says for programs; nothing of others.
    pub(super) stats: Value,
    /// CPU time of the whole run.
    pub(super) cpu_time: Duration,
}

impl Tools {
    /// Where the profile of the last recording is.
    pub(super) fn profile(&self) -> PathBuf {
        self.scratch.path().join("profile")
    }

    fn stats(&self) -> PathBuf {
        self.scratch.path().join("stats.json")
    }
}

impl Recording {
    /// Starts a profiler; returns when it samples. `before` are words before the command.
    pub(super) fn start(
        tools: &Tools,
        profiler: Profiler,
        whom: Whom,
        rate: u32,
        before: &[&str],
    ) -> Result<Recording> {
        let program = match profiler {
            Profiler::Pyebpf | Profiler::PyebpfNative => &tools.pyebpf,
            Profiler::PySpy | Profiler::PySpyNonblocking | Profiler::PySpyNative => &tools.py_spy,
            Profiler::Perf => &tools.perf,
        };
        let ours = program == &tools.pyebpf;
        let words = before.iter().map(|&word| word.to_owned());
        let words: Vec<String> = words
            .chain([program.to_string_lossy().into_owned()])
            .chain(profiler.arguments(tools, whom, rate))
            .collect();
        let mut said =
            tempfile::tempfile_in(tools.scratch.path()).context("cannot make a temporary file")?;
        // Some talk on standard output; no profile goes there.
        let share = || said.try_clone().context("cannot share a temporary file");
        let started = Instant::now();
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(share()?)
            .stderr(share()?)
            .spawn()
            .with_context(|| format!("cannot run {}", words.join(" ")))?;
        let running = Running(child);
        let events = match profiler {
            Profiler::Pyebpf | Profiler::PyebpfNative => measure::cpus()?,
            Profiler::Perf => 1,
            Profiler::PySpy | Profiler::PySpyNonblocking | Profiler::PySpyNative => {
                thread::sleep(PY_SPY_STARTS);
                0
            }
        };
        while measure::perf_events(running.pid()) < events {
            if measure::has_ended(running.pid()) || started.elapsed() > PATIENCE {
                let said = read(&mut said);
                bail!(
                    "{} did not begin to sample; it said:\n{said}",
                    words.join(" ")
                );
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(Recording {
            running,
            said,
            stats: ours.then(|| tools.stats()),
            ready_after: started.elapsed(),
            started,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Ends it as Ctrl-C does and waits until it has written its profile. `each` is called several
    /// times a second meanwhile.
    pub(super) fn finish(mut self, mut each: impl FnMut()) -> Result<Told> {
        let pid = self.pid();
        self.running.interrupt();
        let asked = Instant::now();
        while !measure::has_ended(pid) {
            if asked.elapsed() > WRITING {
                let (age, limit) = (self.started.elapsed().as_secs(), WRITING.as_secs());
                bail!("a profiler {age} s old did not end within {limit} s of SIGINT");
            }
            each();
            thread::sleep(Duration::from_millis(20));
        }
        let cpu_time = measure::cpu_time(pid)?;
        let status = self
            .running
            .0
            .wait()
            .context("cannot wait for a profiler")?;
        let text = read(&mut self.said);
        // perf dies of the signal that ends it, once its file is written.
        if status.code().is_some_and(|code| code != 0) {
            bail!("a profiler failed ({status}); it said:\n{text}");
        }
        let stats = match self.stats {
            Some(path) => {
                let file = File::open(&path);
                let file = file.with_context(|| format!("cannot read {}", path.display()))?;
                serde_json::from_reader(file).context("the summary is no JSON")?
            }
            None => Value::Null,
        };
        Ok(Told {
            text,
            stats,
            cpu_time,
        })
    }
}

impl Profiler {
    /// What tables call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Profiler::Pyebpf => "pyebpf",
            Profiler::PyebpfNative => "pyebpf `--native`",
            Profiler::PySpy => "py-spy",
            Profiler::PySpyNative => "py-spy `--native`",
            Profiler::PySpyNonblocking => "py-spy `--nonblocking`",
            Profiler::Perf => "perf",
        }
    }

    fn arguments(self, tools: &Tools, whom: Whom, rate: u32) -> Vec<String> {
        let output = tools.profile().to_string_lossy().into_owned();
        let stats = tools.stats().to_string_lossy().into_owned();
        let rate = rate.to_string();
        let words: &[&str] = match self {
            Profiler::Pyebpf | Profiler::PyebpfNative => &[
                "record", "-f", "raw", "-r", &rate, "-o", &output, "--stats", &stats,
            ],
            Profiler::PySpy | Profiler::PySpyNonblocking | Profiler::PySpyNative => &[
                "record", "-f", "raw", "-d", "600", "-r", &rate, "-o", &output,
            ],
            Profiler::Perf => &["record", "-q", "-g", "-F", &rate, "-o", &output],
        };
        let mode = match self {
            Profiler::PyebpfNative | Profiler::PySpyNative => Some("--native"),
            Profiler::PySpyNonblocking => Some("--nonblocking"),
            Profiler::Pyebpf | Profiler::PySpy | Profiler::Perf => None,
        };
        let words = words.iter().copied().chain(mode);
        let mut arguments: Vec<String> = words.map(str::to_owned).collect();
        match whom {
            Whom::Pids(pids) => {
                let pairs = pids.iter().map(|pid| ["-p".to_owned(), pid.to_string()]);
                arguments.extend(pairs.flatten());
            }
            Whom::All => arguments.push("--all-python".to_owned()),
        }
        arguments
    }
}

fn read(file: &mut File) -> String {
    let mut bytes = Vec::new();
    // What can't be read is missing from a message, no more.
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profiler_that_fails_to_start_is_quoted() {
        let tools = Tools {
            pyebpf: "ls".into(),
            py_spy: "ls".into(),
            perf: "ls".into(),
            scratch: tempfile::tempdir().expect("a temporary folder"),
        };
        let error = Recording::start(
            &tools,
            Profiler::Pyebpf,
            Whom::All,
            99,
            &["env", "LC_ALL=C"],
        )
        .expect_err("ls knows no --all-python");
        let message = error.to_string();
        assert!(message.contains("did not begin to sample"), "{message}");
        assert!(message.contains("unrecognized option"), "{message}");
    }
}
