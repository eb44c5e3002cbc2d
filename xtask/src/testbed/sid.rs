//! A root folder of Debian sid with the newest CPythons, `roots/sid` in the cache folder. They run
//! in it by chroot, because they need a newer C library than the host's.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, mirror};
use crate::process::{as_root, find, quietly, say};

const PYTHONS: [&str; 3] = ["python3.13", "python3.14", "python3.15"];

/// In the finished folder: which Pythons were asked for, so that one which sid has dropped is not
/// asked for again at every run.
const ASKED: &str = "pyebpf-asked-for";

/// Makes the folder unless it is there; fails, with names, when a Python is not in it.
pub(super) fn prepare(cache: &Path, apt: &mut Apt) -> Result<()> {
    let root = cache.join("roots/sid");
    let asked = fs::read_to_string(root.join(ASKED)).unwrap_or_default();
    if !missing(&root).is_empty() && asked != PYTHONS.join(" ") {
        make(&root, apt)?;
    }
    let missing = missing(&root);
    if !missing.is_empty() {
        bail!("{} has no {}", root.display(), missing.join(", "));
    }
    Ok(())
}

fn missing(root: &Path) -> Vec<&'static str> {
    PYTHONS
        .into_iter()
        .filter(|python| !root.join("usr/bin").join(python).is_file())
        .collect()
}

/// Makes it beside its place and moves it there when whole, so that an interrupted run leaves none.
fn make(root: &Path, apt: &mut Apt) -> Result<()> {
    if Apt::is_here() {
        apt.install(&["debootstrap"], "to make a Debian sid folder for tests")?;
    }
    let debootstrap = find("debootstrap").context("there is no debootstrap")?;
    say("making a Debian sid root folder with CPython 3.13 to 3.15 for tests (a minute or so)");
    let folder = root.parent().context("the root folder has no parent")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let new = folder.join("sid.new");
    // Root's own files: neither the old attempt nor the old folder can be removed by others.
    quietly(as_root("rm").args(["-rf", "--one-file-system"]).arg(&new))?;
    let mut command = as_root(debootstrap);
    command.args(["--variant=minbase", "sid"]).arg(&new);
    // Without one debootstrap takes Debian's own.
    quietly(command.args(mirror()))?;

    // One by one: a Python that sid does not have must not keep the others away. In namespaces of
    // its own, so that nothing which a package starts survives.
    let install = "apt-get update -q; export DEBIAN_FRONTEND=noninteractive; for p in $PYTHONS; \
                   do apt-get install -y -q --no-install-recommends $p || echo no $p; done";
    let script = format!(
        "mount -t proc proc \"$0/proc\"; PYTHONS='{}' chroot \"$0\" sh -c '{install}'; \
         printf %s '{}' > \"$0/{ASKED}\"",
        PYTHONS.join(" "),
        PYTHONS.join(" "),
    );
    let mut command = as_root("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"])
        .arg(script);
    quietly(command.arg(&new))?;
    if missing(&new).len() == PYTHONS.len() {
        bail!("no Python could be installed in {}", new.display());
    }
    quietly(as_root("rm").args(["-rf", "--one-file-system"]).arg(root))?;
    quietly(as_root("mv").arg(&new).arg(root))
}
