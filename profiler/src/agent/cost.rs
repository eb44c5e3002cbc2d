//! What the agent costs: CPU time of its own process, of the kernel program, and memory, that of the
//! kernel for its maps included.

use std::{collections::BTreeMap, fs, time::Duration};

/// A reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Of the process, in user space and in system calls.
    pub cpu: Duration,
    /// Of walks, in whatever process they were.
    pub kernel: Duration,
    /// Resident memory of the process, bytes.
    pub memory: u64,
}

impl Cost {
    /// What it is now; walks have taken `kernel` until now.
    pub fn now(kernel: Duration) -> Cost {
        Cost {
            cpu: cpu(),
            kernel,
            memory: resident(),
        }
    }
}

fn cpu() -> Duration {
    // SAFETY: all-zero is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a `rusage` of ours.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let time = |time: libc::timeval| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        Duration::from_secs(seconds) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// The second number of `/proc/self/statm` (proc_pid_statm(5)), in bytes; 0 where there is none.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    // SAFETY: no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0u64) * u64::try_from(page).unwrap_or(4096)
}

/// Bytes that the kernel holds for our maps, each map once (`bpf_map_show_fdinfo`,
/// kernel/bpf/syscall.c). They do not change while the agent runs.
pub fn of_maps() -> u64 {
    let Ok(files) = fs::read_dir("/proc/self/fdinfo") else {
        return 0;
    };
    let texts = files.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok());
    let maps: BTreeMap<u64, u64> = texts
        .filter_map(|text| Some((field(&text, "map_id:")?, field(&text, "memlock:")?)))
        .collect();
    maps.values().sum()
}

fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_time_and_memory() {
        let before = Cost::now(Duration::ZERO);
        let until = before.cpu + Duration::from_millis(20);
        while Cost::now(Duration::ZERO).cpu < until {}
        assert!(before.memory > 1 << 20 && before.memory < 1 << 40);
    }

    #[test]
    fn a_map_is_told_by_its_descriptor() {
        let text = "pos:\t0\nmap_type:\t2\nmemlock:\t4096\nmap_id:\t7\n";
        assert_eq!(
            (field(text, "map_id:"), field(text, "memlock:")),
            (Some(7), Some(4096))
        );
        assert_eq!(field(text, "nothing:"), None);
    }
}
