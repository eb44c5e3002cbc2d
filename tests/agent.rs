//! Runs the built `pyebpf daemon`, asks it over HTTP as a person, a kubelet or Prometheus does, and reads
//! the profiles that it writes into a folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;
use prost::Message as _;
use pyebpf::output::pprof::proto;
use tempfile::TempDir;

use crate::recording::{Ended, Running, pyebpf};

/// How long it may take to begin.
const START: Duration = Duration::from_secs(60);

/// A daemon that runs, with a folder of its own. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    running: Running,
    folder: TempDir,
    /// `host:port` of the page, and of the probes.
    pub page: String,
    pub probes: String,
}

impl Agent {
    /// Starts one with these flags beside those that keep it to itself: its folder, short intervals, and
    /// ports that are free.
    ///
    /// # Errors
    ///
    /// When it does not begin.
    pub fn start(flags: &[&str]) -> Result<Agent> {
        Agent::start_by(|command| command, flags)
    }

    /// Likewise, with the command line made another one.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_by(by: impl FnOnce(Command) -> Command, flags: &[&str]) -> Result<Agent> {
        let folder = TempDir::new()?;
        let mut command = pyebpf(&["daemon", "--interval", "2s", "--pods", "none"]);
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--probes",
            "127.0.0.1:0",
            // A build for tests costs more than a budget is for.
            "--max-cpu",
            "100%",
            "--folder",
        ]);
        // A flag that is given twice holds as the last one says: `args_override_self`.
        command.arg(folder.path().join("profiles")).args(flags);
        let running = Running::start(&mut by(command))?;
        let mut agent = Agent {
            running,
            folder,
            page: String::new(),
            probes: String::new(),
        };
        let begun = Instant::now();
        while agent.page.is_empty() || agent.probes.is_empty() {
            let said = agent.running.said()?;
            ensure!(agent.running.runs()?, "it has ended:\n{said}");
            ensure!(begun.elapsed() < START, "it tells no address:\n{said}");
            agent.page = address(&said, "page, profiles and processes: http://");
            agent.probes = address(&said, "health and metrics: http://");
            sleep(Duration::from_millis(20));
        }
        Ok(agent)
    }

    /// What the page's listener answers to a GET of this path: the status and the body.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, Vec<u8>)> {
        get(&self.page, path)
    }

    /// Likewise, of the probes' listener, as text.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn probe(&self, path: &str) -> Result<(u16, String)> {
        let (status, body) = get(&self.probes, path)?;
        Ok((status, String::from_utf8(body)?))
    }

    /// Every profile that it has written.
    ///
    /// # Errors
    ///
    /// When one can't be read.
    pub fn profiles(&self) -> Result<Vec<Written>> {
        let mut written = Vec::new();
        read_folder(&self.folder.path().join("profiles"), &mut written)?;
        Ok(written)
    }

    /// Asks until `what` is there.
    ///
    /// # Errors
    ///
    /// When it does not come, with what was seen last.
    pub fn wait_for<T>(&self, what: impl Fn(&Agent) -> Result<Option<T>>) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = what(self)? {
                return Ok(found);
            }
            if begun.elapsed() > START {
                bail!("it does not come:\n{}", self.running.said()?);
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Tells it to end, as an orchestrator does, and waits for that; with what it has written.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn end(self) -> Result<(Ended, Vec<Written>)> {
        self.running.signal(libc::SIGTERM)?;
        let ended = self.running.wait()?;
        ensure!(ended.status.success(), "{}\n{}", ended.status, ended.stderr);
        let mut written = Vec::new();
        read_folder(&self.folder.path().join("profiles"), &mut written)?;
        Ok((ended, written))
    }
}

/// A profile of the agent's folder.
#[derive(Debug)]
pub struct Written {
    pub labels: BTreeMap<String, String>,
    /// Names of functions, of which some sample is.
    pub functions: Vec<String>,
    pub samples: u64,
}

fn address(said: &str, before: &str) -> String {
    let rest = said.split_once(before).map_or("", |(_, rest)| rest);
    let end = rest.find('/').unwrap_or_default();
    rest[..end].to_owned()
}

fn get(address: &str, path: &str) -> Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("at {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let end = end.context("an answer without a head")?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer)?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    match head.to_lowercase().contains("transfer-encoding: chunked") {
        true => Ok((status, unchunked(&body)?)),
        false => Ok((status, body)),
    }
}

/// The chunks of a body (RFC 9112, 7.1), together.
fn unchunked(mut body: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let line = body
            .windows(2)
            .position(|bytes| bytes == b"\r\n")
            .context("a chunk's size")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..line])?, 16)?;
        let rest = &body[line + 2..];
        if size == 0 {
            return Ok(whole);
        }
        whole.extend(rest.get(..size).context("a chunk that is cut")?);
        body = rest.get(size + 2..).context("a chunk that is cut")?;
    }
}

fn read_folder(folder: &Path, written: &mut Vec<Written>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            read_folder(&path, written)?;
        } else if path.extension().is_some_and(|end| end == "gz") {
            let read = read_profile(&path);
            written.push(read.with_context(|| path.display().to_string())?);
        }
    }
    Ok(())
}

fn read_profile(path: &Path) -> Result<Written> {
    let mut bytes = Vec::new();
    GzDecoder::new(fs::File::open(path)?).read_to_end(&mut bytes)?;
    let profile = proto::Profile::decode(&*bytes)?;
    let text = |index: i64| profile.string_table[index as usize].clone();
    let comments = profile.comment.iter().map(|&comment| text(comment));
    let labels = comments.filter_map(|comment| {
        let (name, value) = comment.strip_prefix("label ")?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    Ok(Written {
        labels: labels.collect(),
        functions: profile
            .function
            .iter()
            .map(|function| text(function.name))
            .collect(),
        samples: profile
            .sample
            .iter()
            .map(|sample| sample.value[0] as u64)
            .sum(),
    })
}
