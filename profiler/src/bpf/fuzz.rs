//! The parsers of this folder for `crate::fuzz`.

use super::sideband::record::{PATH_MAX, Record, parse};

/// A record beside a perf event, in which a process has a say in the path.
pub(crate) fn sideband(bytes: &[u8]) {
    if let Some(Record::Mapped(mapping)) = parse(bytes) {
        assert!(mapping.start < mapping.end && mapping.file.inode != 0);
        // Each byte that is no text is shown by a character of three.
        assert!(mapping.path.len() <= 3 * PATH_MAX.min(bytes.len()));
    }
}
