//! A running workload: a Python program of `python/` that says in a JSON line what a profile of it
//! must show. It ends by itself when its parent is gone.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::start::pid_on_the_host;

/// A running workload. Dropping it kills it.
#[derive(Debug)]
pub struct Target {
    /// Its process id.
    pub pid: u32,
    /// What it said about itself: the JSON of its first line of output.
    pub said: Value,
    /// The process itself, for tests that wait for its end.
    pub child: Child,
    output: BufReader<ChildStdout>,
}

/// The folder of the workloads.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

impl Target {
    /// Starts this command and waits for its first line.
    ///
    /// # Errors
    ///
    /// When it can't be started or its first line is no JSON with a `pid`.
    pub fn start(command: Command) -> Result<Target> {
        let target = Target::spawn(command)?;
        ensure!(
            target.said["pid"] == target.pid,
            "process {} says of itself: {}",
            target.pid,
            target.said
        );
        Ok(target)
    }

    /// Likewise, where the command starts the workload as a process of its own, perhaps in another
    /// PID namespace: `pid` is the workload's, as the host sees it.
    ///
    /// # Errors
    ///
    /// When it can't be started, or no process of the family is what the workload says that it is.
    pub fn start_within(command: Command) -> Result<Target> {
        let mut target = Target::spawn(command)?;
        let inner = target.said["pid"].as_u64().context("no pid is told")?;
        target.pid = pid_on_the_host(target.pid, inner)?;
        Ok(target)
    }

    fn spawn(mut command: Command) -> Result<Target> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let output = child.stdout.take().expect("stdout is piped");
        let mut target = Target {
            pid: child.id(),
            said: Value::Null,
            child,
            output: BufReader::new(output),
        };
        target.said = target.line().with_context(|| format!("{command:?}"))?;
        Ok(target)
    }

    /// Sends it SIGTERM, at which some workloads say what they measured.
    ///
    /// # Errors
    ///
    /// When it says nothing.
    pub fn finish(mut self) -> Result<Value> {
        self.signal(libc::SIGTERM)?;
        self.line()
    }

    /// Sends it this signal: SIGSTOP, for example, so that it is out of the way until SIGCONT.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let pid = libc::pid_t::try_from(self.pid).context("a pid fits")?;
        // SAFETY: kill takes no pointers. What we started ourselves has not been waited for, so that
        // the pid is still its own; what that started lives until it ends.
        let sent = unsafe { libc::kill(pid, signal) };
        ensure!(
            sent == 0,
            "process {pid}: {}",
            std::io::Error::last_os_error()
        );
        Ok(())
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .context("cannot read what the workload says")?;
        serde_json::from_str(&line)
            .with_context(|| format!("the workload said {line:?} instead of a JSON line"))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must be waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
