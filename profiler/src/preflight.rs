//! What this machine and this process must have before the kernel program can be loaded, and for
//! each thing that is missing the command that mends it.

use std::{ffi::CStr, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::bpf;

/// First kernel with `bpf_loop`.
const KERNEL_MIN: (u32, u32) = (5, 17);
/// Upper bound of sampling rates that the administrator allows.
const MAX_RATE: &str = "/proc/sys/kernel/perf_event_max_sample_rate";
/// Inode of the initial PID namespace: `PROC_PID_INIT_INO`, include/linux/proc_ns.h.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
/// Capabilities by bit number: include/uapi/linux/capability.h.
const CAPABILITIES: [(u32, &str); 3] =
    [(39, "CAP_BPF"), (38, "CAP_PERFMON"), (19, "CAP_SYS_PTRACE")];
const CAP_SYS_ADMIN: u32 = 21;

/// What the checks look at.
#[derive(Clone, Debug)]
struct Facts {
    /// As `uname -r` prints it.
    release: String,
    /// Bit set of effective capabilities.
    capabilities: u64,
    user: u32,
    has_btf: bool,
    pid_namespace: String,
}

/// Checks the machine and this process.
///
/// # Errors
/// The first thing that is missing, with what was seen and the command that mends it.
pub fn check() -> Result<()> {
    Facts::gather()?.check()
}

/// Checks a sampling rate in hertz against the kernel's limit.
///
/// # Errors
/// When the rate is above it.
pub fn check_rate(rate: u32) -> Result<()> {
    let text = fs::read_to_string(MAX_RATE).with_context(|| format!("cannot read {MAX_RATE}"))?;
    let limit = text
        .trim()
        .parse()
        .with_context(|| format!("in {MAX_RATE}"))?;
    within_limit(rate, limit)
}

fn within_limit(rate: u32, limit: u32) -> Result<()> {
    if rate > limit {
        bail!(
            "a rate of {rate} Hz is above the kernel's limit of {limit} Hz \
             (perf_event_max_sample_rate): ask for less with `--rate {limit}`, or raise the limit \
             with `sudo sysctl kernel.perf_event_max_sample_rate={rate}`"
        );
    }
    Ok(())
}

impl Facts {
    fn gather() -> Result<Facts> {
        let status = fs::read_to_string("/proc/self/status").context(
            "cannot read /proc/self/status; is /proc mounted? `mount -t proc proc /proc`",
        )?;
        let capabilities = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
            .context("no CapEff in /proc/self/status")?;
        Ok(Facts {
            release: release(),
            capabilities,
            // SAFETY: a system call without arguments that cannot fail.
            user: unsafe { libc::geteuid() },
            has_btf: Path::new(bpf::KERNEL_BTF).exists(),
            pid_namespace: fs::read_link("/proc/self/ns/pid")
                .map(|link| link.to_string_lossy().into_owned())
                .unwrap_or_default(),
        })
    }

    fn check(&self) -> Result<()> {
        self.check_capabilities()?;
        self.check_kernel()?;
        if !self.has_btf {
            bail!(
                "the kernel {} does not show its type information ({} is missing): pyebpf needs a \
                 kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of Debian 12, Ubuntu 20.10, \
                 Fedora 31 and RHEL 8.2 and later are: check with `grep BTF /boot/config-$(uname -r)`",
                self.release,
                bpf::KERNEL_BTF
            );
        }
        if self.pid_namespace != INITIAL_PID_NAMESPACE {
            bail!(
                "pyebpf runs in a PID namespace of its own ({}), where process ids mean something \
                 else than to the kernel: run it on the host, or in a container with the host's \
                 (`docker run --pid=host`, `hostPID: true`)",
                self.pid_namespace
            );
        }
        Ok(())
    }

    fn check_capabilities(&self) -> Result<()> {
        let has = |bit: u32| self.capabilities >> bit & 1 != 0;
        let missing: Vec<&str> = CAPABILITIES
            .iter()
            // CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON, not CAP_SYS_PTRACE.
            .filter(|&&(bit, _)| !(has(bit) || bit != 19 && has(CAP_SYS_ADMIN)))
            .map(|&(_, name)| name)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        bail!(
            "pyebpf needs root, or CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE; user {} lacks {}: run \
             `sudo pyebpf …`",
            self.user,
            missing.join(", ")
        )
    }

    fn check_kernel(&self) -> Result<()> {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
        let (Some(major), Some(minor)) = (number(), number()) else {
            bail!("cannot tell the kernel's version from {:?}", self.release);
        };
        if (major, minor) < KERNEL_MIN {
            let (need_major, need_minor) = KERNEL_MIN;
            bail!(
                "the kernel {} is too old: pyebpf needs {need_major}.{need_minor} or later \
                 (bpf_loop); on Debian 11 `sudo apt install -t bullseye-backports \
                 linux-image-amd64` gives one",
                self.release
            );
        }
        Ok(())
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

    fn good() -> Facts {
        Facts {
            release: "6.1.0-28-amd64".to_owned(),
            capabilities: u64::MAX,
            user: 0,
            has_btf: true,
            pid_namespace: INITIAL_PID_NAMESPACE.to_owned(),
        }
    }

    fn refusal(facts: &Facts) -> String {
        facts.check().unwrap_err().to_string()
    }

    #[test]
    fn a_usual_machine_passes() {
        good().check().unwrap();
        let mut facts = good();
        facts.capabilities = 1 << 39 | 1 << 38 | 1 << 19;
        facts.check().unwrap();
        facts.capabilities = 1 << CAP_SYS_ADMIN | 1 << 19;
        facts.check().unwrap();
    }

    #[test]
    fn missing_privileges_are_named() {
        let mut facts = good();
        facts.user = 1000;
        facts.capabilities = 1 << 38;
        let text = refusal(&facts);
        assert!(
            text.contains("user 1000 lacks CAP_BPF, CAP_SYS_PTRACE"),
            "{text}"
        );
        assert!(text.contains("sudo pyebpf"), "{text}");
    }

    #[test]
    fn old_kernels_are_refused_with_their_version() {
        for release in ["5.10.0-32-amd64", "5.16.20", "4.19.0"] {
            let mut facts = good();
            facts.release = release.to_owned();
            let text = refusal(&facts);
            assert!(text.contains(release) && text.contains("5.17"), "{text}");
        }
        for release in ["5.17.0", "6.18.44-fc", "7.0.1"] {
            let mut facts = good();
            facts.release = release.to_owned();
            facts.check().unwrap();
        }
    }

    #[test]
    fn missing_btf_and_nested_namespaces_are_said() {
        let mut facts = good();
        facts.has_btf = false;
        let text = refusal(&facts);
        assert!(text.contains("/sys/kernel/btf/vmlinux") && text.contains("CONFIG_DEBUG_INFO_BTF"));
        let mut facts = good();
        facts.pid_namespace = "pid:[4026532299]".to_owned();
        let text = refusal(&facts);
        assert!(
            text.contains("4026532299") && text.contains("--pid=host"),
            "{text}"
        );
    }

    #[test]
    fn rates_above_the_limit_name_both() {
        within_limit(100, 100).unwrap();
        let text = within_limit(101, 100).unwrap_err().to_string();
        assert!(text.contains("101") && text.contains("sysctl"), "{text}");
    }
}
