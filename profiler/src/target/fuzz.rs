//! The parsers of this folder for `crate::fuzz`.

/// `/proc/PID/stat`, in which a process writes its own name.
pub(crate) fn stat(bytes: &[u8]) {
    let _any = super::process::parse_stat(bytes);
}
