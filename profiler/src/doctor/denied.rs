//! A process that could not be looked at: what helps, which is not always sudo. Changes nothing.

use std::io;

use crate::{
    preflight::{CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, Facts},
    target::{Pid, exists},
};

const MODULE: &str = "pyebpf has CAP_SYS_PTRACE, so a security module must keep it out (SELinux, \
     AppArmor, Landlock, a BPF program): `dmesg | tail` may tell which; in a container \
     `docker run --security-opt apparmor=unconfined …` lifts AppArmor";

/// What to do about `error`, met when process `pid` was looked at. `facts` is of pyebpf itself, where
/// they could be had.
pub(super) fn mend(pid: Pid, error: &anyhow::Error, facts: Option<&Facts>) -> String {
    let denied = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
    let Some(facts) = facts.filter(|_| denied) else {
        return match exists(pid) {
            true => format!("look again with `pyebpf doctor --pid {pid}`"),
            false => "it has ended meanwhile".to_owned(),
        };
    };
    let mut lacks = vec![CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH];
    lacks.retain(|&one| !facts.has(one));
    match lacks.is_empty() && facts.initial_user_namespace {
        true => MODULE.to_owned(),
        false => facts.way_to(&lacks),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn told(errno: i32, change: impl Fn(&mut Facts)) -> String {
        let error = Err::<(), _>(io::Error::from_raw_os_error(errno));
        let error = error.context("cannot read /proc/7/maps").unwrap_err();
        let mut facts = Facts::gather().unwrap();
        (
            facts.user,
            facts.no_new_privileges,
            facts.initial_user_namespace,
        ) = (0, false, true);
        (facts.capabilities, facts.bounding) = (u64::MAX, u64::MAX);
        change(&mut facts);
        mend(std::process::id(), &error, Some(&facts))
    }

    #[test]
    fn what_is_denied_to_root_is_not_mended_by_sudo() {
        for errno in [libc::EACCES, libc::EPERM] {
            let text = told(errno, |_| {});
            assert!(
                text.contains("security module") && !text.contains("sudo"),
                "{text}"
            );
            let text = told(errno, |facts| (facts.capabilities, facts.bounding) = (0, 0));
            assert!(text.contains("--cap-add SYS_PTRACE"), "{text}");
            let text = told(errno, |facts| (facts.user, facts.capabilities) = (1000, 0));
            assert_eq!(text, "run `sudo pyebpf …`");
            let text = told(errno, |facts| facts.initial_user_namespace = false);
            assert!(text.contains("outside of that namespace"), "{text}");
        }
    }

    #[test]
    fn what_is_not_denied_is_no_matter_of_rights() {
        assert!(told(libc::ESRCH, |_| {}).starts_with("look again"));
    }
}
