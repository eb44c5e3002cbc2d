//! The machine, and what this process may do on it. Reads `/proc` and `/sys` and tries the kernel
//! program; what preflight demands is checked by preflight.

use std::fs;

use serde_json::json;

use super::{Finding, Section, program, surroundings};
use crate::bpf::namespace;
use crate::preflight::{self, Checked, Facts};
use crate::symbolize::kernel::kallsyms::{Fault, Kallsyms};

/// The rate of a recording where none is asked for.
const USUAL_RATE: u32 = 99;
/// Yama's setting of who may look into whom: Documentation/admin-guide/LSM/Yama.rst.
const PTRACE_SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";

/// Looks at all of it.
///
/// # Errors
/// When `/proc` does not tell what it does on every Linux.
pub fn look() -> anyhow::Result<Section> {
    let facts = Facts::gather()?;
    let checks = facts.checks();
    let ready = checks.iter().all(|(_, check)| check.is_ok());
    let mut findings: Vec<Finding> = checks
        .into_iter()
        .map(|(key, check)| preflight_finding(key, check, &facts))
        .collect();
    findings.push(other_users(&facts));
    findings.push(kernel_names(Kallsyms::read(), &facts));
    let scope = fs::read_to_string(PTRACE_SCOPE).ok();
    findings.push(ptrace_scope(scope.as_deref()));
    findings.push(lockdown());
    findings.push(max_sample_rate());
    findings.extend([
        setting(
            "perf_cpu_time",
            "/proc/sys/kernel/perf_cpu_time_max_percent",
            |value| match value {
                0 | 100 => "the kernel never lowers the sampling rate".to_owned(),
                percent => format!("the kernel lowers its limit of the rate when sampling takes {percent} % of a CPU"),
            },
        ),
        setting(
            "perf_paranoid",
            "/proc/sys/kernel/perf_event_paranoid",
            |value| format!("perf_event_paranoid is {value}: of no matter to root and CAP_PERFMON"),
        ),
        setting(
            "unprivileged_bpf",
            "/proc/sys/kernel/unprivileged_bpf_disabled",
            |value| match value {
                0 => "allowed, which pyebpf does not need".to_owned(),
                _ => "off, which pyebpf does not need".to_owned(),
            },
        ),
    ]);
    findings.push(bpf_jit());
    findings.push(memory_lock());
    findings.extend(surroundings::look());
    findings.extend(program::look(ready));
    Ok(Section {
        title: "this machine".to_owned(),
        findings,
    })
}

/// What was seen where a check passes; else what it says.
fn preflight_finding(key: &'static str, check: Checked, facts: &Facts) -> Finding {
    let seen = match key {
        "privileges" => match facts.user {
            0 => "root".to_owned(),
            user => format!("user {user} with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE"),
        },
        "kernel" => facts.release.clone(),
        "btf" => format!("type information at {}", crate::bpf::KERNEL_BTF),
        _ if namespace::is_initial(facts.pid_namespace) => "the initial one".to_owned(),
        _ => format!(
            "pid:[{}]: only processes within it are seen",
            facts.pid_namespace
        ),
    };
    let value = match key {
        "privileges" => json!({
            "user": facts.user,
            "capabilities": format!("{:016x}", facts.capabilities),
        }),
        "kernel" => json!(facts.release),
        "btf" => json!(facts.has_btf),
        _ => json!(format!("pid:[{}]", facts.pid_namespace)),
    };
    match check {
        Ok(()) => Finding::ok(key, seen),
        Err(missing) => Finding::fail(key, missing.seen, missing.mend),
    }
    .with(value)
}

/// What is needed for the files of other users' processes.
fn other_users(facts: &Facts) -> Finding {
    const KEY: &str = "other_users";
    let mut lacks = vec![
        preflight::CAP_DAC_READ_SEARCH,
        preflight::CAP_CHECKPOINT_RESTORE,
    ];
    lacks.retain(|&one| !facts.has(one));
    if lacks.is_empty() {
        return Finding::ok(KEY, "their processes and files can be looked at");
    }
    let names: Vec<&str> = lacks.iter().map(|&(_, name)| name).collect();
    Finding::warn(
        KEY,
        format!(
            "without {} processes of other users, or whose files were replaced, may not be \
             recognised",
            names.join(" and ")
        ),
        facts.way_to(&lacks),
    )
}

/// Whether `record --kernel` can name functions of the kernel.
fn kernel_names(functions: Result<Kallsyms, Fault>, facts: &Facts) -> Finding {
    const KEY: &str = "kernel_names";
    match functions {
        Ok(_) => Finding::ok(KEY, "`record --kernel` has them"),
        Err(Fault::Hidden) => {
            let missing = preflight::hidden_kernel_names(facts);
            Finding::warn(KEY, missing.seen, missing.mend)
        }
        Err(fault) => Finding::unknown(KEY, fault.to_string()),
    }
}

/// Whether Yama lets a process with CAP_SYS_PTRACE read others' memory.
fn ptrace_scope(setting: Option<&str>) -> Finding {
    const KEY: &str = "ptrace_scope";
    let Some(text) = setting.map(str::trim) else {
        return Finding::ok(KEY, format!("no {PTRACE_SCOPE}: nothing is forbidden"));
    };
    match text.parse::<u32>() {
        Ok(scope @ 0..=2) => {
            Finding::ok(KEY, format!("{scope}: of no matter to CAP_SYS_PTRACE")).with(scope)
        }
        Ok(scope) => Finding::fail(
            KEY,
            format!("{scope}: nobody may read another process's memory, not even root"),
            "it can't be lowered: set `kernel.yama.ptrace_scope=2` or less in `/etc/sysctl.d` and \
             reboot",
        )
        .with(scope),
        Err(_) => Finding::unknown(KEY, format!("{PTRACE_SCOPE} says {text:?}")),
    }
}

fn lockdown() -> Finding {
    const KEY: &str = "lockdown";
    const FILE: &str = "/sys/kernel/security/lockdown";
    let Ok(text) = fs::read_to_string(FILE) else {
        return Finding::info(
            KEY,
            format!("no {FILE}: none, or securityfs is not mounted"),
        );
    };
    match in_brackets(&text) {
        // LOCKDOWN_BPF_READ_KERNEL and LOCKDOWN_PERF are of this level: include/linux/security.h.
        Some("confidentiality") => Finding::fail(
            KEY,
            "the kernel is locked down to `confidentiality`, which forbids BPF programs to read",
            "boot with `lockdown=integrity`, or without `lockdown=` and Secure Boot",
        ),
        Some(level) => Finding::ok(KEY, level),
        None => Finding::unknown(KEY, format!("{FILE} says {:?}", text.trim())),
    }
}

/// The word that is chosen among `none [integrity] confidentiality`.
fn in_brackets(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

fn max_sample_rate() -> Finding {
    const KEY: &str = "max_sample_rate";
    match preflight::rate_limit() {
        Err(error) => Finding::unknown(KEY, format!("{error:#}")),
        Ok(limit) => match preflight::within_limit(USUAL_RATE, limit) {
            Ok(()) => Finding::ok(KEY, format!("up to {limit} Hz on each CPU")),
            Err(missing) => Finding::fail(KEY, missing.seen, missing.mend),
        }
        .with(limit),
    }
}

/// A number that the administrator set.
fn setting(key: &'static str, file: &str, say: impl Fn(i64) -> String) -> Finding {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return Finding::unknown(key, format!("cannot read {file}: {error}")),
    };
    match text.trim().parse() {
        Ok(value) => Finding::info(key, say(value)).with(value),
        Err(_) => Finding::unknown(key, format!("{file} says {:?}", text.trim())),
    }
}

fn bpf_jit() -> Finding {
    const KEY: &str = "bpf_jit";
    const FILE: &str = "/proc/sys/net/core/bpf_jit_enable";
    // The file belongs to root, and is not there in other network namespaces.
    match fs::read_to_string(FILE).as_deref().map(str::trim) {
        Ok("0") => Finding::warn(
            KEY,
            "off: the kernel program is interpreted, at several times its cost",
            "`sudo sysctl net.core.bpf_jit_enable=1`",
        )
        .with(false),
        Ok(_) => Finding::ok(KEY, "on").with(true),
        Err(error) => Finding::unknown(KEY, format!("cannot read {FILE}: {error}")),
    }
}

/// Up to 5.10 the maps count against this limit; later kernels charge the memory cgroup.
fn memory_lock() -> Finding {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable; the resource exists on every Linux.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    let seen = match limit.rlim_cur {
        libc::RLIM_INFINITY => "no limit".to_owned(),
        bytes => format!("{} KiB: counts up to Linux 5.10 only", bytes >> 10),
    };
    Finding::info("locked_memory", seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn the_chosen_word_is_the_one_in_brackets() {
        let text = "none [integrity] confidentiality\n";
        assert_eq!(in_brackets(text), Some("integrity"));
        assert_eq!(in_brackets("none"), None);
        assert_eq!(in_brackets("no]ne["), None);
    }

    #[test]
    fn only_yama_s_highest_setting_binds_root() {
        let verdict = |setting| ptrace_scope(setting).verdict;
        assert_eq!(verdict(None), Verdict::Ok);
        assert_eq!(verdict(Some("2\n")), Verdict::Ok);
        assert_eq!(verdict(Some("3\n")), Verdict::Fail);
        assert_eq!(verdict(Some("x")), Verdict::Unknown);
    }

    #[test]
    fn what_preflight_refuses_fails_with_its_words() {
        let facts = Facts {
            release: "4.19.0".to_owned(),
            capabilities: 0,
            bounding: 0,
            no_new_privileges: false,
            initial_user_namespace: true,
            user: 1000,
            has_btf: false,
            pid_namespace: 7,
            ids: vec![4242, 1],
        };
        for (key, check) in facts.checks() {
            let finding = preflight_finding(key, check.clone(), &facts);
            let missing = check.unwrap_err();
            assert_eq!(finding.verdict, Verdict::Fail, "{key}");
            assert_eq!(
                (finding.seen, finding.mend),
                (missing.seen, Some(missing.mend))
            );
        }
        assert_eq!(other_users(&facts).verdict, Verdict::Warn);
        let hidden = kernel_names(Err(Fault::Hidden), &facts);
        assert_eq!(
            (hidden.verdict, hidden.mend.is_some()),
            (Verdict::Warn, true)
        );
    }
}
