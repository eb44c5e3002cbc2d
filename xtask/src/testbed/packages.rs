//! What comes from the distribution's packages: runc and bubblewrap, to start Pythons in containers,
//! and two Pythons that pyebpf refuses: a debug build and PyPy.

use std::path::Path;

use anyhow::{Result, bail};

use crate::apt::Apt;
use crate::process::find;

/// Each program and the package that has it.
const PROGRAMS: [(&str, &str); 4] = [
    ("runc", "runc"),
    ("bwrap", "bubblewrap"),
    ("python3-dbg", "python3-dbg"),
    ("pypy3", "pypy3"),
];

/// Installs those that are missing.
pub(super) fn prepare(_cache: &Path, apt: &mut Apt) -> Result<()> {
    let missing = PROGRAMS
        .iter()
        .filter(|(program, _)| find(program).is_none());
    let packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    if !Apt::is_here() {
        bail!(
            "install {} with your package manager",
            packages.join(" and ")
        );
    }
    apt.install(
        &packages,
        "to start Pythons in containers, and for Pythons to refuse, in tests",
    )
}
