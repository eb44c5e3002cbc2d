//! The parsers of this folder for `crate::fuzz`.

/// `/proc/PID/stat`, in which a process writes its own name.
pub(crate) fn stat(bytes: &[u8]) {
    let _any = super::process::parse_stat(bytes);
}

/// `/proc/PID/cgroup`, in which names are whatever somebody made them.
pub(crate) fn cgroup(bytes: &[u8]) {
    let groups = super::Cgroups::parse(bytes);
    assert!(groups.shown().len() <= groups.path().len().min(1024 + '…'.len_utf8()));
    let innermost = groups.container();
    assert!(innermost.is_none_or(|id| id.len() == 64));
    assert_eq!(innermost.is_some(), groups.containers().next().is_some());
}
