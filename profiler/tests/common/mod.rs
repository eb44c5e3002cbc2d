//! Where the Pythons of tests are, and what is said of one that isn't.

use std::io::Write as _;
use std::path::PathBuf;

/// Makes a test that can't run visible: on stderr, and in the file that CI collects skips in.
pub(crate) fn skip(what: &str) {
    eprintln!("skipped: {what}");
    if let Some(path) = std::env::var_os("PYEBPF_SKIPPED") {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path);
        file.and_then(|mut file| writeln!(file, "{what}")).unwrap();
    }
}

pub(crate) fn home() -> PathBuf {
    PathBuf::from(std::env::var_os("HOME").unwrap_or_default())
}

/// The Pythons under `~/.pyenv/versions`.
pub(crate) fn pyenv(version: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir(home().join(".pyenv/versions")).ok()?;
    let found = versions
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(version))?;
    Some(found.path())
}
