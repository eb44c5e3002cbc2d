//! Debian's packages: which are installed, which could be, and installing them through sudo. The
//! lists are refreshed once, and only when something is missing.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{as_root, find, quietly, say, text_of};

/// The package manager of this machine, and whether its lists are fresh.
#[derive(Debug, Default)]
pub(crate) struct Apt {
    fresh: bool,
}

impl Apt {
    /// Whether this machine has apt at all.
    pub(crate) fn is_here() -> bool {
        find("apt-get").is_some() && find("dpkg-query").is_some()
    }

    /// Whether a package of this name is installed and configured.
    pub(crate) fn has(package: &str) -> bool {
        let mut query = Command::new("dpkg-query");
        query.args(["--show", "--showformat=${db:Status-Status}", package]);
        text_of(&mut query).is_ok_and(|status| status == "installed")
    }

    /// Whether the package could be installed from the sources of this machine.
    pub(crate) fn offers(&mut self, package: &str) -> bool {
        self.refresh();
        let policy = text_of(Command::new("apt-cache").args(["policy", package]));
        policy.is_ok_and(|text| candidate(&text))
    }

    /// Installs those of `packages` that are missing; says which, and `why`.
    pub(crate) fn install(&mut self, packages: &[&str], why: &str) -> Result<()> {
        let missing: Vec<&str> = packages
            .iter()
            .copied()
            .filter(|package| !Self::has(package))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names = missing.join(" ");
        self.refresh();
        say(&format!("apt-get install {names} ({why})"));
        // All of them by name: one that is installed may have to move to its partner's version.
        let mut install = apt_get("install");
        install.args(["--yes", "--no-install-recommends"]);
        quietly(install.args(packages)).with_context(|| {
            format!("cannot install {names}, needed {why}: install them as root, then run again")
        })
    }

    /// The packages whose names begin with `prefix` among what `packages` need, themselves included.
    pub(crate) fn closure(&mut self, packages: &[&str], prefix: &str) -> Result<BTreeSet<String>> {
        self.refresh();
        let mut waiting: Vec<String> = packages.iter().map(|&name| name.to_owned()).collect();
        let mut seen = BTreeSet::new();
        while let Some(package) = waiting.pop() {
            let text = text_of(Command::new("apt-cache").args(["depends", &package]))?;
            waiting.extend(
                depends(&text)
                    .filter(|name| name.starts_with(prefix) && !seen.contains(*name))
                    .map(str::to_owned),
            );
            seen.insert(package);
        }
        Ok(seen)
    }

    /// The names that `package` depends on directly.
    pub(crate) fn needs(&mut self, package: &str) -> Result<Vec<String>> {
        self.refresh();
        let text = text_of(Command::new("apt-cache").args(["depends", package]))?;
        Ok(depends(&text).map(str::to_owned).collect())
    }

    fn refresh(&mut self) {
        if self.fresh {
            return;
        }
        self.fresh = true;
        say("apt-get update (packages are missing)");
        if let Err(error) = quietly(&mut apt_get("update")) {
            // The lists that are there may do; if they do not, installing says so.
            say(&format!(
                "going on with the package lists as they are: {error:#}"
            ));
        }
    }
}

/// The mirror that this Debian uses, if it is one.
pub(crate) fn mirror() -> Option<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(LABEL) $(REPO_URI)"]);
    first_mirror(&text_of(&mut command).ok()?)
}

fn first_mirror(targets: &str) -> Option<String> {
    targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian http"))
        .map(|rest| format!("http{rest}"))
}

/// An apt-get that asks nothing and waits a while for another one to end.
fn apt_get(verb: &str) -> Command {
    let mut command = as_root("env");
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"])
        .args(["-o", "DPkg::Lock::Timeout=300", verb]);
    command
}

fn candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate: "))
        .any(|version| version != "(none)")
}

fn depends(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| {
            line.trim_start_matches([' ', '|'])
                .strip_prefix("Depends: ")
        })
        // Virtual packages are written in angle brackets.
        .filter(|name| !name.starts_with('<'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_a_candidate_is_not_offered() {
        assert!(candidate("x:\n  Installed: (none)\n  Candidate: 1.96.0\n"));
        assert!(!candidate("x:\n  Installed: 1.0\n  Candidate: (none)\n"));
        assert!(!candidate(""));
    }

    #[test]
    fn dependencies_are_read_without_virtual_ones() {
        let text = "rustc-web\n  Depends: libc6\n |Depends: gcc\n  Depends: <libc-dev>\n    \
                    libc6-dev\n  Conflicts: rustc\n";
        assert_eq!(depends(text).collect::<Vec<_>>(), ["libc6", "gcc"]);
    }

    #[test]
    fn the_mirror_is_debians_own() {
        let targets = "Debian-Security http://a.test/debian-security/\n\
                       Debian Backports http://b.test/debian/\nDebian https://c.test/debian/\n";
        assert_eq!(
            first_mirror(targets).as_deref(),
            Some("https://c.test/debian/")
        );
        assert_eq!(first_mirror("Docker https://d.test/\n"), None);
    }
}
