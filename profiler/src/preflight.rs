//! What this machine and this process must have before the kernel program can be loaded, and for
//! each thing that is missing the command that mends it. `record` stops at the first, `doctor` shows
//! them all.

mod rights;

use std::{ffi::CStr, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::bpf::{self, namespace};

/// The oldest kernel that this was tried on. What it needs of one came with 5.8 (ring buffers,
/// CAP_BPF) and 5.10 (tail calls out of programs with functions).
const KERNEL_MIN: (u32, u32) = (5, 10);
/// Upper bound of sampling rates that the administrator allows.
const MAX_RATE: &str = "/proc/sys/kernel/perf_event_max_sample_rate";

pub use rights::{
    CAP_CHECKPOINT_RESTORE, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYSLOG, Capability,
    hidden_kernel_names,
};

/// What the checks look at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// As `uname -r` prints it.
    pub release: String,
    /// Bit set of effective capabilities.
    pub capabilities: u64,
    /// Bit set of those that a program started from here can have at most.
    pub bounding: u64,
    /// Whether a program started from here gets no more than we have: PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// Whether our user namespace is the machine's, in which capabilities count for all of it.
    pub initial_user_namespace: bool,
    /// The effective user.
    pub user: u32,
    pub has_btf: bool,
    /// Our own PID namespace, by its inode.
    pub pid_namespace: u32,
    /// Our own process ids: in the PID namespace that `/proc` is of, and in each from there inwards to
    /// our own.
    pub ids: Vec<u32>,
}

/// Something that is needed and not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{seen}: {mend}")]
pub struct Missing {
    /// What fails, with the value that was seen.
    pub seen: String,
    /// What to do, with the command.
    pub mend: String,
}

/// The result of one check.
pub type Checked = Result<(), Missing>;

/// Checks the machine and this process.
///
/// # Errors
/// The first thing that is missing, with what was seen and the command that mends it.
pub fn check() -> Result<()> {
    let facts = Facts::gather()?;
    facts
        .checks()
        .into_iter()
        .try_for_each(|(_, check)| Ok(check?))
}

/// Checks a sampling rate in hertz against the kernel's limit.
///
/// # Errors
/// When the rate is above it.
pub fn check_rate(rate: u32) -> Result<()> {
    Ok(within_limit(rate, rate_limit()?)?)
}

/// The highest sampling rate in hertz that the kernel takes.
///
/// # Errors
/// When it does not say.
pub fn rate_limit() -> Result<u32> {
    let text = fs::read_to_string(MAX_RATE).with_context(|| format!("cannot read {MAX_RATE}"))?;
    let limit = text.trim().parse();
    limit.with_context(|| format!("in {MAX_RATE}"))
}

/// Whether a rate is within the limit.
///
/// # Errors
/// When it is not.
pub fn within_limit(rate: u32, limit: u32) -> Checked {
    if rate <= limit {
        return Ok(());
    }
    Err(Missing {
        seen: format!(
            "a rate of {rate} Hz is above the kernel's limit of {limit} Hz \
             (perf_event_max_sample_rate)"
        ),
        mend: format!(
            "ask for less with `--rate {limit}`, or raise the limit with `sudo sysctl \
             kernel.perf_event_max_sample_rate={rate}`"
        ),
    })
}

impl Facts {
    /// Looks at this machine and this process.
    ///
    /// # Errors
    /// When `/proc` does not tell what it does on every Linux.
    pub fn gather() -> Result<Facts> {
        let status = fs::read_to_string("/proc/self/status").context(
            "cannot read /proc/self/status; is /proc mounted? `mount -t proc proc /proc`",
        )?;
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.with_context(|| format!("no {name} in /proc/self/status"))
        };
        let bits = |name: &str| {
            let value = field(name)?;
            u64::from_str_radix(value.trim(), 16).with_context(|| format!("{name}{value}"))
        };
        Ok(Facts {
            release: release(),
            capabilities: bits("CapEff:")?,
            bounding: bits("CapBnd:")?,
            no_new_privileges: field("NoNewPrivs:")?.trim() == "1",
            initial_user_namespace: rights::in_initial_user_namespace(),
            // SAFETY: a system call without arguments that cannot fail.
            user: unsafe { libc::geteuid() },
            has_btf: Path::new(bpf::KERNEL_BTF).exists(),
            pid_namespace: namespace::own()?,
            ids: field("NSpid:")?
                .split_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect(),
        })
    }

    /// Every check by its name, in the order in which they are best mended.
    pub fn checks(&self) -> [(&'static str, Checked); 4] {
        [
            ("privileges", self.check_capabilities()),
            ("kernel", self.check_kernel()),
            ("btf", self.check_btf()),
            ("pid_namespace", self.check_pid_namespace()),
        ]
    }

    fn check_btf(&self) -> Checked {
        if self.has_btf {
            return Ok(());
        }
        Err(Missing {
            seen: format!(
                "the kernel {} does not show its type information ({} is missing)",
                self.release,
                bpf::KERNEL_BTF
            ),
            mend:
                "pyebpf needs a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of Debian 12, \
                   Ubuntu 20.10, Fedora 31 and RHEL 8.2 and later are: check with `grep BTF \
                   /boot/config-$(uname -r)`"
                    .to_owned(),
        })
    }

    /// Pids are those of our own namespace everywhere, so `/proc` must be, too.
    fn check_pid_namespace(&self) -> Checked {
        let [outer, .., own] = self.ids[..] else {
            return Ok(());
        };
        Err(Missing {
            seen: format!(
                "/proc is of another PID namespace than pyebpf's own (pid:[{}]): process {own} is \
                 {outer} there",
                self.pid_namespace
            ),
            mend: "give it a /proc of its own, with `unshare --mount-proc pyebpf …`".to_owned(),
        })
    }

    fn check_kernel(&self) -> Checked {
        let (need_major, need_minor) = KERNEL_MIN;
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
        let (Some(major), Some(minor)) = (number(), number()) else {
            return Err(Missing {
                seen: format!("cannot tell the kernel's version from {:?}", self.release),
                mend: format!("pyebpf needs {need_major}.{need_minor} or later: see `uname -r`"),
            });
        };
        if (major, minor) >= KERNEL_MIN {
            return Ok(());
        }
        Err(Missing {
            seen: format!("the kernel {} is too old", self.release),
            mend: format!(
                "pyebpf needs {need_major}.{need_minor} or later; Debian 11, Ubuntu 22.04, RHEL 9 \
                 and what came after them have one, and on Amazon Linux 2 `sudo \
                 amazon-linux-extras install kernel-5.10` gives one"
            ),
        })
    }
}

fn release() -> String {
    // SAFETY: `uname` fills the struct that it is given; all its fields are NUL-terminated.
    unsafe {
        let mut names: libc::utsname = std::mem::zeroed();
        libc::uname(&mut names);
        CStr::from_ptr(names.release.as_ptr())
            .to_string_lossy()
            .into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn good() -> Facts {
        Facts {
            release: "6.1.0-28-amd64".to_owned(),
            capabilities: u64::MAX,
            bounding: u64::MAX,
            no_new_privileges: false,
            initial_user_namespace: true,
            user: 0,
            has_btf: true,
            pid_namespace: 0xefff_fffc,
            ids: vec![4242],
        }
    }

    fn check(facts: &Facts) -> Checked {
        facts.checks().into_iter().try_for_each(|(_, check)| check)
    }

    pub(super) fn refusal(facts: &Facts) -> String {
        check(facts).unwrap_err().to_string()
    }

    #[test]
    fn a_usual_machine_passes() {
        check(&good()).unwrap();
    }

    #[test]
    fn old_kernels_are_refused_with_their_version() {
        for release in ["5.9.16", "5.8.0-63-generic", "4.19.0"] {
            let mut facts = good();
            facts.release = release.to_owned();
            let text = refusal(&facts);
            assert!(text.contains(release) && text.contains("5.10"), "{text}");
        }
        for release in [
            "5.10.0-32-amd64",
            "5.15.0-91-generic",
            "6.18.44-fc",
            "7.0.1",
        ] {
            let mut facts = good();
            facts.release = release.to_owned();
            check(&facts).unwrap();
        }
    }

    #[test]
    fn missing_btf_is_said() {
        let mut facts = good();
        facts.has_btf = false;
        let text = refusal(&facts);
        assert!(text.contains("/sys/kernel/btf/vmlinux") && text.contains("CONFIG_DEBUG_INFO_BTF"));
    }

    #[test]
    fn a_nested_namespace_passes_and_a_proc_of_another_is_refused() {
        let mut facts = good();
        facts.pid_namespace = 4_026_532_299;
        check(&facts).unwrap();
        facts.ids = vec![4242, 17, 1];
        let text = refusal(&facts);
        for part in [
            "pid:[4026532299]",
            "process 1 is 4242 there",
            "unshare --mount-proc",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn rates_above_the_limit_name_both() {
        within_limit(100, 100).unwrap();
        let text = within_limit(101, 100).unwrap_err().to_string();
        assert!(text.contains("101") && text.contains("sysctl"), "{text}");
    }
}
