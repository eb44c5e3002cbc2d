//! Runs the built `pyebpf` and gives back what it wrote, what it said and how it ended.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::raw::{self, Stack};

/// How long a run may take before it is called hung.
const LIMIT: Duration = Duration::from_secs(120);

/// A run of `pyebpf` that has not ended. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: File,
    stderr: File,
}

/// How a run of `pyebpf` ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: String,
}

/// What one `pyebpf record … -f raw` gave.
#[derive(Debug)]
pub struct Recording {
    /// Every stack of the profile.
    pub stacks: Vec<Stack>,
    /// What was said at the end.
    pub stderr: String,
}

/// The `pyebpf` under test: `PYEBPF_BIN`, or the one that cargo builds beside this test.
///
/// # Panics
///
/// When it can't be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("PYEBPF_BIN") {
        Some(path) => PathBuf::from(path),
        None => build().expect("pyebpf can be built"),
    })
}

/// Builds it in the target folder and the profile that this test itself was built in.
fn build() -> Result<PathBuf> {
    let test = std::env::current_exe().context("cannot find this test's own file")?;
    let profile = test
        .ancestors()
        .nth(2)
        .context("this test is not in a target folder")?;
    let target = profile.parent().context("the profile's folder has none")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--package", "pyebpf", "--target-dir"])
        .arg(target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(profile.join("pyebpf"))
}

/// A `pyebpf` command line with these arguments, as root itself types it: without the user behind
/// sudo, who may have started these tests.
pub fn pyebpf(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments);
    for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
        command.env_remove(name);
    }
    command
}

/// Runs `pyebpf record -f raw` with these arguments to its end, which must be a success.
///
/// # Errors
///
/// When it fails, or what it wrote is not the collapsed form.
pub fn record(arguments: &[&str]) -> Result<Recording> {
    record_by(|command| command, arguments)
}

/// Likewise, with the command line made another one: in a namespace, say.
///
/// # Errors
///
/// As [`record`].
pub fn record_by(by: impl FnOnce(Command) -> Command, arguments: &[&str]) -> Result<Recording> {
    let folder = TempDir::new()?;
    let file = folder.path().join("profile.txt");
    let mut command = pyebpf(&["record", "-f", "raw", "-o"]);
    // What follows `--` is the target's own, so the output comes first.
    command.arg(&file).args(arguments);
    let mut command = by(command);
    let ended = Running::start(&mut command)?.wait()?;
    finished(ended, &file).with_context(|| format!("{command:?}"))
}

/// What a `pyebpf record -f raw -o FILE` gave that has ended, which must be a success.
///
/// # Errors
///
/// When it failed, or what it wrote is not the collapsed form.
pub fn finished(ended: Ended, file: &Path) -> Result<Recording> {
    ensure!(ended.status.success(), "{}\n{}", ended.status, ended.stderr);
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("no profile was written:\n{}", ended.stderr))?;
    Ok(Recording {
        stacks: raw::parse(&text)?,
        stderr: ended.stderr,
    })
}

impl Running {
    /// Starts this command, which is one of [`pyebpf`].
    ///
    /// # Errors
    ///
    /// When it can't be started.
    pub fn start(command: &mut Command) -> Result<Running> {
        // Files, not pipes: nobody reads while it runs, and a full pipe would stop it.
        let stdout = tempfile::tempfile()?;
        let stderr = tempfile::tempfile()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Running {
            child,
            stdout,
            stderr,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it samples: until it holds two perf events for each CPU, its clock and the one
    /// that tells of new mappings.
    ///
    /// # Errors
    ///
    /// When it does not within a minute.
    pub fn wait_until_it_samples(&self) -> Result<()> {
        let start = Instant::now();
        let cpus = std::thread::available_parallelism()?.get();
        let events = || -> usize {
            let files = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
            let links = files.into_iter().flatten();
            links
                .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
                .filter(|link| link.as_os_str() == "anon_inode:[perf_event]")
                .count()
        };
        while events() < 2 * cpus {
            ensure!(
                start.elapsed() < Duration::from_secs(60),
                "pyebpf does not begin to sample"
            );
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Sends it this signal.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let pid = libc::pid_t::try_from(self.child.id()).context("a pid fits")?;
        // SAFETY: kill takes no pointers; the child has not been waited for, so the pid is its own.
        let result = unsafe { libc::kill(pid, signal) };
        ensure!(result == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it does not end in two minutes: it is killed then.
    pub fn wait(mut self) -> Result<Ended> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if start.elapsed() > LIMIT {
                bail!("still running after {LIMIT:?}; it said:\n{}", self.said()?);
            }
            sleep(Duration::from_millis(20));
        };
        let mut stdout = Vec::new();
        self.stdout.rewind()?;
        self.stdout.read_to_end(&mut stdout)?;
        Ok(Ended {
            status,
            stdout,
            stderr: self.said()?,
        })
    }

    /// Whether it has not ended.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it has said on standard error until now.
    ///
    /// # Errors
    ///
    /// When that can't be read.
    pub fn said(&self) -> Result<String> {
        // It writes where this file's offset is, so that stays.
        let mut bytes = vec![0; usize::try_from(self.stderr.metadata()?.len())?];
        self.stderr.read_exact_at(&mut bytes, 0)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must be waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Recording {
    /// The stacks of one process, without the process frame. A profile of a single process has no
    /// process frames: then all of it belongs to that process.
    pub fn of(&self, pid: u32) -> Vec<Stack> {
        self.stacks
            .iter()
            .filter(|stack| stack.process.is_none_or(|process| process == pid))
            .cloned()
            .collect()
    }
}
