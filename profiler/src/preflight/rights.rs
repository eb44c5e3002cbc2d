//! The capabilities that pyebpf needs, which of them it lacks, and what gives them: sudo, flags of a
//! container's engine, or nothing from here. Changes none.

use std::fs;

use super::{Checked, Facts, Missing};

/// A capability: its bit's number, and its name.
pub type Capability = (u32, &'static str);

// include/uapi/linux/capability.h.
pub const CAP_DAC_READ_SEARCH: Capability = (2, "CAP_DAC_READ_SEARCH");
pub const CAP_SYS_PTRACE: Capability = (19, "CAP_SYS_PTRACE");
const CAP_SYS_ADMIN: Capability = (21, "CAP_SYS_ADMIN");
pub const CAP_SYSLOG: Capability = (34, "CAP_SYSLOG");
const CAP_PERFMON: Capability = (38, "CAP_PERFMON");
const CAP_BPF: Capability = (39, "CAP_BPF");
pub const CAP_CHECKPOINT_RESTORE: Capability = (40, "CAP_CHECKPOINT_RESTORE");

const NEEDED: [Capability; 3] = [CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE];
/// What CAP_SYS_ADMIN includes: `perfmon_capable`, `bpf_capable` and `checkpoint_restore_ns_capable`,
/// include/linux/capability.h.
const WITHIN_SYS_ADMIN: [Capability; 3] = [CAP_BPF, CAP_PERFMON, CAP_CHECKPOINT_RESTORE];

/// Who sees addresses of the kernel: Documentation/admin-guide/sysctl/kernel.rst.
const KPTR_RESTRICT: &str = "/proc/sys/kernel/kptr_restrict";

/// The inode of the initial user namespace: `PROC_USER_INIT_INO`, include/linux/proc_ns.h.
const INITIAL_USER: &str = "user:[4026531837]";

/// Whether our user namespace is the machine's own. A kernel without user namespaces has no other.
pub(super) fn in_initial_user_namespace() -> bool {
    fs::read_link("/proc/self/ns/user").is_ok_and(|link| link.as_os_str() == INITIAL_USER)
        || !fs::exists("/proc/self/ns/user").unwrap_or(true)
}

impl Facts {
    /// Whether pyebpf has the capability, or one that includes it.
    pub fn has(&self, capability: Capability) -> bool {
        has(self.capabilities, capability)
    }

    /// What gives pyebpf these capabilities, which it lacks: the command.
    pub fn way_to(&self, lacks: &[Capability]) -> String {
        if !self.initial_user_namespace {
            return "run `sudo pyebpf …` outside of that namespace: nothing within it can get \
                    more; a container then must not be one of the rootless kind"
                .to_owned();
        }
        let allowed = lacks.iter().all(|&lack| has(self.bounding, lack));
        if allowed && self.user != 0 && !self.no_new_privileges {
            return "run `sudo pyebpf …`".to_owned();
        }
        let flags: Vec<String> = lacks
            .iter()
            .map(|(_, name)| format!("--cap-add {}", name.trim_start_matches("CAP_")))
            .collect();
        format!(
            "sudo can't give them here: start the container with `docker run {} …` (in \
             Kubernetes, `securityContext.capabilities.add`), or run pyebpf as root on the host",
            flags.join(" ")
        )
    }

    pub(super) fn check_capabilities(&self) -> Checked {
        let missing = |seen: String, lacks: &[Capability]| {
            Err(Missing {
                seen,
                mend: self.way_to(lacks),
            })
        };
        if !self.initial_user_namespace {
            // CAP_BPF and CAP_PERFMON are asked for in the initial one: `capable`, kernel/capability.c.
            let seen = "this is a user namespace within the machine's, as in a rootless container, \
                        where not even root may load a BPF program";
            return missing(seen.to_owned(), &NEEDED);
        }
        let lacks: Vec<Capability> = NEEDED.into_iter().filter(|&one| !self.has(one)).collect();
        if lacks.is_empty() {
            return Ok(());
        }
        let who = match self.user {
            0 => "root here".to_owned(),
            user => format!("user {user}"),
        };
        let names: Vec<&str> = lacks.iter().map(|&(_, name)| name).collect();
        let seen = format!(
            "recording needs root, or CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE; {who} lacks {}",
            names.join(", ")
        );
        // What is of use beyond that is best given along with it.
        let all = NEEDED.into_iter().chain([CAP_DAC_READ_SEARCH]);
        let all: Vec<Capability> = all.filter(|&one| !self.has(one)).collect();
        missing(seen, &all)
    }
}

/// Why `/proc/kallsyms` has no addresses for us, and what mends it: `kallsyms_show_value`,
/// kernel/ksyms_common.c.
pub fn hidden_kernel_names(facts: &Facts) -> Missing {
    let setting = fs::read_to_string(KPTR_RESTRICT).unwrap_or_default();
    hidden_by(setting.trim(), facts)
}

fn hidden_by(setting: &str, facts: &Facts) -> Missing {
    const HIDDEN: &str = "the kernel's frames have no names: it hides where its functions are";
    if setting.parse().is_ok_and(|setting: u32| setting >= 2) {
        return Missing {
            seen: format!("{HIDDEN}, as kernel.kptr_restrict is {setting}"),
            mend: "`sudo sysctl kernel.kptr_restrict=1` shows them to those with CAP_SYSLOG"
                .to_owned(),
        };
    }
    Missing {
        seen: format!("{HIDDEN} from those without CAP_SYSLOG"),
        mend: facts.way_to(&[CAP_SYSLOG]),
    }
}

fn has(capabilities: u64, one: Capability) -> bool {
    let bit = |(number, _): Capability| capabilities >> number & 1 != 0;
    bit(one) || WITHIN_SYS_ADMIN.contains(&one) && bit(CAP_SYS_ADMIN)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{good, refusal};
    use super::*;

    /// What a default container of Docker has: moby's oci/caps/defaults.go.
    const DOCKER: u64 = 0xa804_25fb;

    #[test]
    fn the_capabilities_do_and_so_does_one_that_includes_them() {
        let mut facts = good();
        facts.capabilities = 1 << 39 | 1 << 38 | 1 << 19;
        facts.check_capabilities().unwrap();
        facts.capabilities = 1 << 21 | 1 << 19;
        facts.check_capabilities().unwrap();
        assert!(facts.has(CAP_CHECKPOINT_RESTORE) && !facts.has(CAP_DAC_READ_SEARCH));
    }

    #[test]
    fn a_user_who_may_become_root_is_told_to() {
        let mut facts = good();
        facts.user = 1000;
        facts.capabilities = 1 << 38;
        let text = refusal(&facts);
        let lacks = "user 1000 lacks CAP_BPF, CAP_SYS_PTRACE";
        assert!(text.contains(lacks), "{text}");
        assert!(text.ends_with(": run `sudo pyebpf …`"), "{text}");
    }

    #[test]
    fn where_sudo_gives_nothing_the_container_s_flags_are_named() {
        let mut root = good();
        (root.capabilities, root.bounding) = (DOCKER, DOCKER);
        let mut user = root.clone();
        (user.user, user.capabilities) = (1000, 0);
        let mut bound = good();
        (bound.user, bound.capabilities, bound.no_new_privileges) = (1000, 0, true);
        let flags = "`docker run --cap-add BPF --cap-add PERFMON --cap-add SYS_PTRACE --cap-add \
                     DAC_READ_SEARCH …`";
        for facts in [root, user, bound] {
            let text = refusal(&facts);
            assert!(text.contains(flags), "{text}");
            assert!(!text.contains("`sudo"), "{text}");
        }
    }

    #[test]
    fn hidden_kernel_names_are_said_with_what_shows_them() {
        let text = hidden_by("2", &good()).to_string();
        assert!(text.contains("kptr_restrict is 2"), "{text}");
        assert!(text.contains("`sudo sysctl kernel.kptr_restrict=1`"));
        let mut facts = good();
        (facts.user, facts.capabilities) = (1000, 1 << 39 | 1 << 38 | 1 << 19);
        let text = hidden_by("1", &facts).to_string();
        assert!(
            text.contains("without CAP_SYSLOG: run `sudo pyebpf"),
            "{text}"
        );
        facts.bounding = DOCKER;
        let text = hidden_by("", &facts).to_string();
        assert!(text.contains("--cap-add SYSLOG"), "{text}");
    }

    #[test]
    fn root_of_another_user_namespace_is_none() {
        let mut facts = good();
        facts.initial_user_namespace = false;
        let text = refusal(&facts);
        for part in ["user namespace", "not even root", "outside"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
