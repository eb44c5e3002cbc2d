//! The Python workloads of a measurement, each under a stack of a known depth, and what ends every
//! program that we start, whatever happens.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long a workload may take to answer before something must be wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// Which of its modes a workload runs in, how deep its stack is, and of what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) mode: &'static str,
    pub(super) depth: usize,
    /// Every frame is another function, not one of ten.
    pub(super) each_its_own: bool,
    /// The only CPU that it may run on.
    pub(super) cpu: Option<usize>,
    /// Nothing but the kernel and other programs of real time may take its CPU.
    pub(super) real_time: bool,
}

/// The workloads' program.
pub(super) fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench/work.py")
}

/// A workload that runs.
#[derive(Debug)]
pub(super) struct Target {
    running: Running,
    lines: Receiver<String>,
}

impl Target {
    /// Starts a workload, and waits until it is under its stack.
    pub(super) fn start(python: &Path, work: Work) -> Result<Target> {
        let script = script();
        let mut words: Vec<String> = Vec::new();
        if work.real_time {
            words.extend(["chrt", "--fifo", "1"].map(str::to_owned));
        }
        if let Some(cpu) = work.cpu {
            words.extend(["taskset".into(), "--cpu-list".into(), cpu.to_string()]);
        }
        words.push(python.to_string_lossy().into_owned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg("-B")
            .arg(&script)
            .args([work.mode, &work.depth.to_string()])
            .arg(if work.each_its_own { "all" } else { "ten" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", words.join(" ")))?;
        let stdout = child.stdout.take().context("its output is a pipe")?;
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                if !line.is_ok_and(|line| send.send(line).is_ok()) {
                    return;
                }
            }
        });
        let target = Target {
            running: Running(child),
            lines,
        };
        let answer = target.answer()?;
        if answer != format!("up under {}", work.depth) {
            bail!("{} began with {answer:?}", script.display());
        }
        Ok(target)
    }

    pub(super) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Has a `block` workload work for about so many seconds; gives the seconds that each of its
    /// units took.
    pub(super) fn block(&mut self, seconds: f64) -> Result<Vec<f64>> {
        let stdin = self
            .running
            .0
            .stdin
            .as_mut()
            .context("its input is a pipe")?;
        writeln!(stdin, "{seconds}").context("the workload has ended")?;
        let line = self.answer()?;
        line.split(' ')
            .map(|number| {
                number
                    .parse()
                    .with_context(|| format!("no seconds: {line:?}"))
            })
            .collect()
    }

    fn answer(&self) -> Result<String> {
        let line = self.lines.recv_timeout(PATIENCE);
        line.with_context(|| {
            let pid = self.pid();
            format!(
                "the workload {pid} did not answer within {} s",
                PATIENCE.as_secs()
            )
        })
    }
}

/// A program that is killed and waited for when this is dropped.
#[derive(Debug)]
pub(super) struct Running(pub(super) Child);

impl Running {
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends SIGINT.
    pub(super) fn interrupt(&self) {
        if let Ok(pid) = libc::pid_t::try_from(self.0.id()) {
            // SAFETY: kill only takes numbers; the child was not waited for, so the number is its.
            unsafe { libc::kill(pid, libc::SIGINT) };
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measure;

    /// It checks its own depth.
    fn work(depth: usize, each_its_own: bool) -> Work {
        Work {
            mode: "block",
            depth,
            each_its_own,
            cpu: None,
            real_time: false,
        }
    }

    #[test]
    fn a_workload_stands_under_its_stack_and_tells_each_unit() {
        let Some(python) = crate::process::find("python3") else {
            eprintln!("skipped: there is no python3");
            return;
        };
        for each_its_own in [false, true] {
            let mut target = Target::start(&python, work(30, each_its_own)).expect("it is up");
            assert_eq!(target.block(0.001).expect("an answer").len(), 1);
            let pid = target.pid();
            drop(target);
            assert!(measure::has_ended(pid));
        }
    }
}
