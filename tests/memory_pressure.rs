//! Swaps a process's memory out: a swap file of our own for as long as it is wanted, and the advice
//! to the kernel that the process's pages are not.

use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// Size of the swap file: some small processes.
const MEBIBYTES: u32 = 128;

/// Swap space. What was made for it goes away with it.
#[derive(Debug)]
pub struct Swap {
    /// The folder of our own file; none where the machine has swap space.
    made: Option<(TempDir, PathBuf)>,
}

impl Swap {
    /// Uses the swap space of the machine, or makes some.
    ///
    /// # Errors
    ///
    /// When there is none and none can be made.
    pub fn on() -> Result<Swap> {
        if fs::read_to_string("/proc/swaps")?.lines().count() > 1 {
            return Ok(Swap { made: None });
        }
        let folder = TempDir::new()?;
        let path = folder.path().join("swap");
        let bytes = vec![0; 1 << 20];
        let mut file = fs::File::create(&path)?;
        for _ in 0..MEBIBYTES {
            std::io::Write::write_all(&mut file, &bytes)?;
        }
        file.sync_all()?;
        for program in ["mkswap", "swapon"] {
            run(program, &path)?;
        }
        Ok(Swap {
            made: Some((folder, path)),
        })
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.made
            && let Err(error) = run("swapoff", path)
        {
            eprintln!("{} is left behind as swap space: {error:#}", path.display());
        }
    }
}

fn run(program: &str, path: &PathBuf) -> Result<()> {
    let mut command = Command::new(program);
    let output = command.arg(path).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", said.trim());
    Ok(())
}

/// Has the kernel take away what memory of its own the process has (`MADV_PAGEOUT`).
///
/// # Errors
///
/// When the process is gone, or the kernel is older than 5.10 or refuses.
pub fn page_out(pid: u32) -> Result<()> {
    // SAFETY: pidfd_open takes numbers alone; the descriptor that it returns is ours.
    let process = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        ensure!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as i32)
    };
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    for line in maps.lines() {
        let mut fields = line.split(' ');
        let range = fields.next().and_then(|range| range.split_once('-'));
        let writable = fields.next().is_some_and(|flags| flags.starts_with("rw-p"));
        // The program's stack is in use all the time.
        let Some((start, end)) = range.filter(|_| writable && !line.ends_with("[stack]")) else {
            continue;
        };
        let start = usize::from_str_radix(start, 16)?;
        let length = usize::from_str_radix(end, 16)?.saturating_sub(start);
        let range = libc::iovec {
            iov_base: start as *mut libc::c_void,
            iov_len: length,
        };
        // SAFETY: the one range lives until the call returns; its addresses are the other process's,
        // and only the kernel looks at them.
        let done = unsafe {
            let (fd, range) = (process.as_raw_fd(), &raw const range);
            libc::syscall(
                libc::SYS_process_madvise,
                fd,
                range,
                1,
                libc::MADV_PAGEOUT,
                0,
            )
        };
        ensure!(
            done >= 0,
            "process_madvise: {}",
            std::io::Error::last_os_error()
        );
    }
    Ok(())
}

/// How much of a process is swapped out, in KiB.
///
/// # Errors
///
/// When the process is gone, or the kernel does not say.
pub fn swapped_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.context("no VmSwap")?
        .parse()
        .context("a size is a number")
}
