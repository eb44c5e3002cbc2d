//! Kernels before 5.11 count eBPF maps and programs as locked memory, of which a process may have
//! little (`RLIMIT_MEMLOCK`). Raises that limit while programs are loaded, and says what is wrong
//! where it can't be raised.

use std::io;

use anyhow::anyhow;
use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use libc::{RLIM_INFINITY, rlimit};

/// The limit as high as it may be. Dropping it puts it back, so that a command which is started later
/// has the user's own; what is loaded stays.
#[derive(Debug)]
pub(super) struct Raised {
    before: rlimit,
    now: rlimit,
}

impl Raised {
    /// Raises it where the kernel counts; elsewhere there is nothing to raise.
    pub(super) fn raise() -> Option<Raised> {
        // Maps are counted by memory cgroups instead since the release that brought this helper. An
        // error says nothing about that; loading will say what is wrong.
        let counts = is_helper_supported(
            ProgramType::PerfEvent,
            BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
        );
        if counts.unwrap_or(true) {
            return None;
        }
        let before = limit()?;
        let unlimited = of(RLIM_INFINITY);
        // Without CAP_SYS_RESOURCE only up to what is allowed already.
        if !set(&unlimited) {
            set(&of(before.rlim_max));
        }
        let now = limit()?;
        Some(Raised { before, now })
    }

    /// What a refusal to load means under this limit.
    pub(super) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let refused = error.chain().any(|cause| {
            let io_error = cause.downcast_ref::<io::Error>();
            io_error.and_then(io::Error::raw_os_error) == Some(libc::EPERM)
        });
        if !refused || self.now.rlim_cur == RLIM_INFINITY {
            return error;
        }
        anyhow!(
            "{error:#}: this kernel counts eBPF maps as locked memory, of which this process may \
             have {} KiB, and without CAP_SYS_RESOURCE it can't raise that: run `ulimit -l \
             unlimited` as root first, or set `LimitMEMLOCK=infinity` in a systemd unit, \
             `--ulimit memlock=-1` for docker",
            self.now.rlim_cur / 1024
        )
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        set(&self.before);
    }
}

fn of(value: u64) -> rlimit {
    rlimit {
        rlim_cur: value,
        rlim_max: value,
    }
}

fn limit() -> Option<rlimit> {
    let mut limit = of(0);
    // SAFETY: getrlimit fills the struct that it is given.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (done == 0).then_some(limit)
}

fn set(limit: &rlimit) -> bool {
    // SAFETY: setrlimit reads the struct during the call.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, limit) == 0 }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_refusal_names_the_limit_and_what_raises_it() {
        let now = of(64 << 10);
        // What is put back in the end is what is.
        let before = limit().unwrap();
        let low = Raised { before, now };
        let error = |code| {
            let error = Err::<(), _>(io::Error::from_raw_os_error(code));
            error.context("cannot make a map").unwrap_err()
        };
        let text = low.explain(error(libc::EPERM)).to_string();
        assert!(text.starts_with("cannot make a map: "), "{text}");
        for part in ["64 KiB", "CAP_SYS_RESOURCE", "ulimit -l unlimited"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let other = format!("{:#}", low.explain(error(libc::EINVAL)));
        assert!(!other.contains("KiB"), "{other}");
        let now = of(RLIM_INFINITY);
        let unlimited = Raised { before, now };
        let other = format!("{:#}", unlimited.explain(error(libc::EPERM)));
        assert!(!other.contains("KiB"), "{other}");
    }
}
