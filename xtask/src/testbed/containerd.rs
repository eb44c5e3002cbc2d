//! containerd of this Debian, unpacked into the folder `containerd` of the cache folder rather than
//! installed: as a service of the machine it would start by itself. Tests start it in their folders.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::Apt;
use crate::process::{find, quietly, say};

const PACKAGE: &str = "containerd";
/// What is there when it has been unpacked.
const PROGRAM: &str = "usr/bin/containerd";

/// Unpacks it unless that has been done.
pub(super) fn prepare(cache: &Path, apt: &mut Apt) -> Result<()> {
    let folder = cache.join(PACKAGE);
    if folder.join(PROGRAM).is_file() {
        return Ok(());
    }
    if !Apt::is_here() || find("dpkg-deb").is_none() {
        bail!("it comes from Debian's archive, through apt, which is not here");
    }
    if !apt.offers(PACKAGE) {
        bail!("apt has no package {PACKAGE}");
    }
    say("unpacking containerd for tests (26 MB)");
    let archives = tempfile::tempdir().context("no temporary folder")?;
    let mut download = Command::new("apt-get");
    download.args(["--quiet", "download", PACKAGE]);
    quietly(download.current_dir(archives.path()))?;
    let list = fs::read_dir(archives.path()).context("cannot list what apt has fetched")?;
    let archive = list.filter_map(Result::ok).next();
    let archive = archive.context("apt has fetched nothing")?.path();
    // Moved to its place when whole.
    let new = cache.join("containerd.new");
    let _ = fs::remove_dir_all(&new);
    let mut extract = Command::new("dpkg-deb");
    quietly(extract.arg("--extract").arg(archive).arg(&new))?;
    fs::rename(&new, &folder).with_context(|| format!("cannot make {}", folder.display()))
}
