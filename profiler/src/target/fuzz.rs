//! The parsers of this folder for `crate::fuzz`.

/// `/proc/PID/stat`, in which a process writes its own name.
pub(crate) fn stat(bytes: &[u8]) {
    let _any = super::process::parse_stat(bytes);
}

/// `/proc/PID/cgroup`, in which names are whatever somebody made them.
pub(crate) fn cgroup(bytes: &[u8]) {
    let groups = super::Cgroups::parse(bytes);
    assert!(groups.shown().len() <= groups.path().len().min(1024 + '…'.len_utf8()));
    let path = groups.path();
    assert!(path.is_empty() || groups.is_within(path) && groups.is_within("/"));
    let innermost = groups.container();
    assert!(innermost.is_none_or(|id| id.len() == 64));
    assert_eq!(innermost.is_some(), groups.containers().next().is_some());
}

/// `/proc/PID/mountinfo`, in which file systems of users are named, too.
pub(crate) fn mounts(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _any = text.lines().filter_map(super::groups::parse_mount).count();
}
