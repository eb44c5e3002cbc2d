//! What was measured on: the machine, the Pythons, and the versions of the tools, in words.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::measure::cpus;
use super::profilers::Tools;
use crate::process::{find, text_of};

/// Minor versions of CPython 3 on which the kernel program is timed: each shape of frame chain, and
/// the oldest and the newest that pyenv tends to have.
const MINORS: [u32; 5] = [8, 10, 11, 12, 13];

/// pyenv's CPythons of [`MINORS`], by minor version, as far as they are here.
pub(super) fn pythons() -> BTreeMap<u32, PathBuf> {
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from);
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv"));
    let Some(root) = root.or_else(home) else {
        return BTreeMap::new();
    };
    let Ok(versions) = fs::read_dir(root.join("versions")) else {
        return BTreeMap::new();
    };
    versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let minor = minor(entry.file_name().to_str()?)?;
            let python = entry.path().join("bin/python3");
            (MINORS.contains(&minor) && python.is_file()).then_some((minor, python))
        })
        .collect()
}

/// The minor version in a name such as `3.12.1`.
fn minor(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("3.")?;
    let (minor, patch) = rest.split_once('.')?;
    patch.parse::<u32>().ok()?;
    minor.parse().ok()
}

/// Those of [`MINORS`] that are missing.
pub(super) fn missing(pythons: &BTreeMap<u32, PathBuf>) -> Vec<String> {
    let missing = MINORS.iter().filter(|minor| !pythons.contains_key(minor));
    missing.map(|minor| format!("3.{minor}")).collect()
}

/// The Python that is slowed down: the newest of pyenv's, or the system's.
pub(super) fn python(pythons: &BTreeMap<u32, PathBuf>) -> Result<PathBuf> {
    let newest = pythons.values().next_back().cloned();
    newest
        .or_else(|| find("python3"))
        .context("there is no python3: install one")
}

/// The machine, the versions and the load, in a sentence or two.
pub(super) fn describe(tools: &Tools, python: &Path, rounds: usize) -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let (model, guest) = cpu(&cpuinfo);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("cannot read /proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or("?");
    let version = |program: &Path| -> Result<String> {
        let text = text_of(Command::new(program).arg("--version"))?;
        Ok(text.trim().to_owned())
    };
    let date = text_of(Command::new("date").args(["--utc", "+%F"]))?;
    Ok(format!(
        "Measured on {}: {model}, {} CPUs{}, Linux {}; {}, {}, {}, {}; rounds: {rounds}; load \
         before: {load}.\n",
        date.trim(),
        cpus()?,
        if guest { " of a virtual machine" } else { "" },
        release.trim(),
        version(&tools.pyebpf)?,
        version(python)?,
        version(&tools.py_spy)?,
        version(&tools.perf)?,
    ))
}

/// The first CPU's model, and whether it is a guest's.
fn cpu(cpuinfo: &str) -> (&str, bool) {
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim())
    };
    let flags = field("flags").unwrap_or_default();
    let guest = flags.split(' ').any(|flag| flag == "hypervisor");
    (field("model name").unwrap_or("unknown CPU"), guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_releases_of_python_3_count() {
        assert_eq!(minor("3.12.1"), Some(12));
        for other in ["2.7.18", "3.13-dev", "pypy3.10-7.3", "3.13.0t", "system"] {
            assert_eq!(minor(other), None, "{other}");
        }
    }

    #[test]
    fn a_guest_is_told_by_its_flags() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t\t: fpu hypervisor lm\n";
        assert_eq!(cpu(text), ("A CPU @ 2 GHz", true));
        assert!(!cpu(&text.replace("hypervisor ", "")).1);
        assert_eq!(cpu(""), ("unknown CPU", false));
    }
}
