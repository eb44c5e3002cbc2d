//! How long the kernel program takes for a sample: the kernel's own statistics of eBPF programs,
//! read from the descriptors of a running `pyebpf`.

use std::fs;
use std::os::fd::{FromRawFd as _, OwnedFd};

use anyhow::{Result, ensure};

/// `BPF_PROG_TYPE_PERF_EVENT` (include/uapi/linux/bpf.h).
const PERF_EVENT_PROGRAM: u64 = 7;

/// While this lives the kernel times eBPF programs.
#[derive(Debug)]
pub struct Statistics(#[expect(dead_code, reason = "it is there to be closed")] OwnedFd);

/// How often a program has run, and for how long altogether.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// Altogether.
    pub nanoseconds: u64,
    /// How often, whatever it found.
    pub count: u64,
}

impl Statistics {
    /// Asks for run times.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn enable() -> Result<Statistics> {
        // `BPF_ENABLE_STATS` of enum bpf_cmd and its `BPF_STATS_RUN_TIME`, from 5.8 on.
        let (command, run_time): (libc::c_int, u32) = (32, 0);
        // SAFETY: the attribute of this command is one number, whose address and size we pass; a
        // descriptor that is returned is ours alone.
        let fd = unsafe {
            let size = size_of::<u32>();
            let fd = libc::syscall(libc::SYS_bpf, command, &raw const run_time, size);
            ensure!(
                fd >= 0,
                "no times of eBPF programs: {}",
                std::io::Error::last_os_error()
            );
            OwnedFd::from_raw_fd(fd as i32)
        };
        Ok(Statistics(fd))
    }
}

/// The runs so far of the program that samples: of those that process `pid` holds for perf events,
/// the one that ran most.
pub fn runs(pid: u32) -> Option<Runs> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?;
    let texts = files.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok());
    texts
        .filter(|text| field(text, "prog_type:") == Some(PERF_EVENT_PROGRAM))
        .filter_map(|text| {
            Some(Runs {
                nanoseconds: field(&text, "run_time_ns:")?,
                count: field(&text, "run_cnt:")?,
            })
        })
        .max_by_key(|runs| runs.count)
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
