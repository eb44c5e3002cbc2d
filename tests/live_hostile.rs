//! Whether a target can make pyebpf itself take more than its share.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::pythons;
use pyebpf_tests::raw;
use pyebpf_tests::recording::{Running, pyebpf};
use pyebpf_tests::{can_profile, skip, turn};
use tempfile::TempDir;

/// Most memory that pyebpf may ever have had, in KiB.
const PEAK_MAX: u64 = 100 << 10;

#[test]
fn huge_line_tables_do_not_fill_the_memory() {
    const TEST: &str = "huge_line_tables_do_not_fill_the_memory";
    if !can_profile(TEST) {
        return;
    }
    let pythons = pythons::all(TEST);
    let Some(python) = pythons.iter().find(|python| python.minor >= 10) else {
        skip(TEST, "no CPython from 3.10 on is here");
        return;
    };
    let _turn = turn();
    let result = (|| -> Result<()> {
        let target = python.start(&["huge_tables.py"])?;
        let folder = TempDir::new()?;
        let path = folder.path().join("out.txt");
        let pid = target.pid.to_string();
        let mut command = pyebpf(&["record", "-r", "20", "-f", "raw", "-p", &pid, "-o"]);
        let running = Running::start(command.arg(&path))?;
        let mut peak = 0;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(8) {
            peak = peak_kib(running.pid())?;
            sleep(Duration::from_millis(200));
        }
        running.signal(libc::SIGINT)?;
        let ended = running.wait()?;
        ensure!(ended.status.success(), "{}", ended.stderr);
        let stacks = raw::parse(&std::fs::read_to_string(&path)?)?;
        let deepest = stacks.iter().map(|stack| stack.frames.len()).max();
        ensure!(
            deepest.is_some_and(|deepest| deepest > 500),
            "no deep stack was seen, the deepest has {deepest:?} frames\n{}",
            ended.stderr
        );
        ensure!(
            peak < PEAK_MAX,
            "at its peak pyebpf took {} MiB\n{}",
            peak >> 10,
            ended.stderr
        );
        Ok(())
    })();
    if let Err(error) = result {
        panic!("{}: {error:#}", python.name);
    }
}

/// The most memory that a process has had resident, in KiB (`VmHWM` of `/proc/PID/status`).
fn peak_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no peak")?;
    let kib = peak.trim().strip_suffix(" kB").context("not in kB")?;
    kib.parse().context("a peak is a number")
}
