//! What the kernel tells of a process: its CPU time, its memory, its events, and the run times of
//! the eBPF programs that it holds. Text of `/proc` in, numbers out; and medians of them.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// `BPF_PROG_TYPE_PERF_EVENT` (include/uapi/linux/bpf.h): of pyebpf's programs only `sample` is one.
const PERF_EVENT_PROGRAM: u64 = 7;

/// How often a program has run, and for how long altogether.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    /// Nanoseconds.
    pub(super) time: u64,
    pub(super) count: u64,
}

/// CPU time that a process has used until now, user and system, all its threads. Also of one that
/// has ended and was not waited for.
///
/// # Errors
/// When there is no such process.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let ticks = ticks(&text).with_context(|| format!("{path} has another form: {text:?}"))?;
    // SAFETY: sysconf has no preconditions.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let hertz = u64::try_from(hertz).ok().filter(|&hertz| hertz > 0);
    let hertz = hertz.context("the kernel tells no clock tick")?;
    Ok(Duration::from_secs_f64(ticks as f64 / hertz as f64))
}

/// Fields 14 and 15 of `/proc/PID/stat`, `utime` and `stime` (proc_pid_stat(5)).
fn ticks(stat: &str) -> Option<u64> {
    // The second field, the name, may hold blanks and parentheses; the last one closes it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut field = || fields.next()?.parse::<u64>().ok();
    field()?.checked_add(field()?)
}

/// Whether a child has ended and was not waited for.
pub(super) fn has_ended(pid: u32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(')')
        .is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Proportional set size in bytes; none when the process has gone.
pub(super) fn memory(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    field(&text, "Pss:").map(|kilobytes| kilobytes * 1024)
}

/// How often a process has slept until now, by its first thread.
///
/// # Errors
/// When there is no such process.
pub(super) fn waits(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    field(&text, "voluntary_ctxt_switches:").with_context(|| format!("{path} tells no switches"))
}

/// How many processes and threads were ever begun on this machine.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn forks() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    field(&text, "processes").context("/proc/stat tells no processes")
}

/// How many perf events a process holds.
pub(super) fn perf_events(pid: u32) -> usize {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return 0;
    };
    let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    links
        .filter(|link| link.as_os_str() == "anon_inode:[perf_event]")
        .count()
}

/// Bytes that the kernel holds for the maps of a process, each map once.
pub(super) fn map_memory(pid: u32) -> u64 {
    let maps: BTreeMap<u64, u64> = descriptors(pid)
        .iter()
        .filter_map(|text| Some((field(text, "map_id:")?, field(text, "memlock:")?)))
        .collect();
    maps.values().sum()
}

/// How many files a process has code from.
///
/// # Errors
/// When there is no such process.
pub(super) fn mapped_code(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(code_files(&text))
}

/// The files in lines of `/proc/PID/maps` that are mapped as code (proc_pid_maps(5)).
fn code_files(maps: &str) -> usize {
    let files = maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let code = fields.next()?.contains('x');
        let path = fields.nth(3)?;
        (code && path.starts_with('/')).then_some(path)
    });
    files.collect::<std::collections::BTreeSet<_>>().len()
}

/// The runs of the process's perf-event program so far; all zero without [`Statistics`].
pub(super) fn runs(pid: u32) -> Option<Runs> {
    descriptors(pid).iter().find_map(|text| runs_of(text))
}

fn runs_of(text: &str) -> Option<Runs> {
    if field(text, "prog_type:")? != PERF_EVENT_PROGRAM {
        return None;
    }
    Some(Runs {
        time: field(text, "run_time_ns:")?,
        count: field(text, "run_cnt:")?,
    })
}

/// How many descriptors a process has open.
pub(super) fn descriptors_of(pid: u32) -> usize {
    descriptors(pid).len()
}

/// What the kernel tells of each open file of a process.
fn descriptors(pid: u32) -> Vec<String> {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return Vec::new();
    };
    files
        .filter_map(|file| fs::read_to_string(file.ok()?.path()).ok())
        .collect()
}

/// How many CPUs the machine has online.
pub(super) fn cpus() -> Result<usize> {
    // SAFETY: sysconf has no preconditions.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(count).context("the kernel tells no number of CPUs")
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The middle value, or the mean of the two middle ones; none of nothing.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some((lower + upper) / 2.0)
}

/// The mean of the smaller half. Of units of work the slower ones are mostly slow for reasons that
/// have nothing to do with what is compared, and on most machines those come and go in bursts; a
/// cost that recurs within each unit shifts the quick ones just as far.
pub(super) fn quicker_half(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.truncate(sorted.len().div_ceil(2));
    (!sorted.is_empty()).then(|| sorted.iter().sum::<f64>() / sorted.len() as f64)
}

/// While this lives the kernel times eBPF programs; it stops when the descriptor is closed, however
/// we end.
#[derive(Debug)]
pub(super) struct Statistics {
    _fd: std::os::fd::OwnedFd,
}

impl Statistics {
    /// Asks for run times.
    ///
    /// # Errors
    /// When the kernel refuses: it is older than 5.8, or we are not root.
    pub(super) fn enable() -> Result<Statistics> {
        use std::os::fd::{FromRawFd as _, OwnedFd};

        /// `BPF_ENABLE_STATS` of enum bpf_cmd, and its attribute `BPF_STATS_RUN_TIME`
        /// (include/uapi/linux/bpf.h).
        const ENABLE_STATS: libc::c_int = 32;
        let run_time: u32 = 0;
        // SAFETY: the attribute of this command is one number, whose address and size we pass; a
        // descriptor that is returned is ours alone.
        let fd = unsafe {
            let fd = libc::syscall(
                libc::SYS_bpf,
                ENABLE_STATS,
                &raw const run_time,
                size_of::<u32>(),
            );
            if fd < 0 {
                return Err(std::io::Error::last_os_error())
                    .context("the kernel does not time eBPF programs: run this as root");
            }
            OwnedFd::from_raw_fd(fd as i32)
        };
        Ok(Statistics { _fd: fd })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) 1 (b) R 1 7 7 0 -1 4194304 90 0 0 0 250 31 9 9 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(281));
        assert_eq!(ticks("7 (a) R 1"), None);
        assert!(cpu_time(std::process::id()).is_ok());
    }

    #[test]
    fn each_file_of_code_counts_once() {
        let maps = "1-2 r-xp 00000000 fe:00 7 /usr/lib/a.so\n2-3 r--p 00001000 fe:00 7 /usr/lib/b.so\n\
                    3-4 r-xp 00002000 fe:00 7 /usr/lib/a.so\n4-5 r-xp 00000000 00:00 0 [vdso]\n\
                    5-6 rwxp 00000000 00:00 0\n";
        assert_eq!(code_files(maps), 1);
    }

    #[test]
    fn only_the_sampling_program_is_timed() {
        let sample = "pos:\t0\nprog_type:\t7\nmemlock:\t4096\nrun_time_ns:\t900\nrun_cnt:\t3\n";
        let runs = Runs {
            time: 900,
            count: 3,
        };
        assert_eq!(runs_of(sample), Some(runs));
        assert_eq!(runs_of(&sample.replace("\t7", "\t17")), None);
        assert_eq!(runs_of("pos:\t0\n"), None);
    }

    #[test]
    fn middles_are_not_moved_by_outliers() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 900.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 900.0]), Some(3.0));
        assert_eq!(quicker_half(&[]), None);
        assert_eq!(quicker_half(&[5.0]), Some(5.0));
        assert_eq!(quicker_half(&[3.0, 900.0, 1.0, 5.0]), Some(2.0));
    }
}
