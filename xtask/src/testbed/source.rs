//! CPython's source as Debian's archive has it: one tarball in `sources` of the cache folder, found
//! through package lists of our own, so that those of this machine stay as they are. And what every
//! build from it does alike: unpack, make, put in place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, mirror};
use crate::process::{find, quietly, say};

/// A release whose CPython is new enough to be built without a GIL, and stays what it is.
const SUITE: &str = "trixie";
const PACKAGE: &str = "python3.13";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Folders of the source that running it does not need.
const REMOVED: [&str; 4] = ["Doc", "Misc", "Lib/test", "Lib/idlelib"];

/// Unpacks the tarball to `new`, without what an earlier attempt left there.
pub(super) fn unpack(tarball: &Path, new: &Path) -> Result<()> {
    if new.exists() {
        fs::remove_dir_all(new).with_context(|| format!("cannot remove {}", new.display()))?;
    }
    fs::create_dir_all(new).with_context(|| format!("cannot make {}", new.display()))?;
    let mut unpack = Command::new("tar");
    unpack.args(["--extract", "--strip-components=1", "--file"]);
    quietly(unpack.arg(tarball).arg("--directory").arg(new))
}

/// Makes the interpreter and its modules where the source was configured.
pub(super) fn build(new: &Path) -> Result<()> {
    let make = find("make").context("there is no make")?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut build = politely(&make);
    build.args([&format!("--jobs={jobs}"), "--silent", "sharedmods"]);
    quietly(build.current_dir(new))?;
    for inner in REMOVED {
        // What is missing is gone already.
        let _gone = fs::remove_dir_all(new.join(inner));
    }
    Ok(())
}

/// Puts what was made and tried in its place.
pub(super) fn keep(new: &Path, folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::rename(new, folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// A command that leaves the processors to others who want them.
pub(super) fn politely(program: &Path) -> Command {
    let mut command = Command::new("nice");
    command.arg(program);
    command
}

/// The tarball of CPython 3.13, fetched unless it is there.
pub(super) fn tarball(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join("sources");
    if let Some(tarball) = found(&folder) {
        return Ok(tarball);
    }
    if !Apt::is_here() {
        bail!("the source of {PACKAGE} comes from Debian's archive, and this is no Debian");
    }
    let mirror = mirror().context("apt-get indextargets names no mirror of Debian")?;
    say(&format!("fetching the source of {PACKAGE} from {SUITE}"));
    let lists = folder.join("lists");
    for inner in ["state/lists/partial", "cache/archives/partial"] {
        let inner = lists.join(inner);
        fs::create_dir_all(&inner).with_context(|| format!("cannot make {}", inner.display()))?;
    }
    write(&lists.join("status"), "")?;
    let source = format!("deb-src [signed-by={KEYRING}] {mirror} {SUITE} main\n");
    write(&lists.join("sources.list"), &source)?;
    write(&lists.join("apt.conf"), &settings(&lists))?;
    quietly(apt_get(&lists).arg("update"))?;
    quietly(
        apt_get(&lists)
            .args(["source", "--download-only", PACKAGE])
            .current_dir(&folder),
    )?;
    // Lists of 40 MB that nobody needs any more.
    fs::remove_dir_all(&lists).with_context(|| format!("cannot remove {}", lists.display()))?;
    found(&folder).with_context(|| format!("apt-get source left no tarball of {PACKAGE}"))
}

fn found(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let mut tarballs: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(PACKAGE) && name.ends_with(".orig.tar.xz")
        })
        .collect();
    tarballs.sort();
    tarballs.pop()
}

fn apt_get(lists: &Path) -> Command {
    let mut command = Command::new("apt-get");
    command
        .arg("--quiet")
        .env("APT_CONFIG", lists.join("apt.conf"));
    command
}

/// Everything that apt keeps goes below `lists`.
fn settings(lists: &Path) -> String {
    let lists = lists.display();
    format!(
        "Dir::Etc \"{lists}/\";\n\
         Dir::Etc::sourcelist \"{lists}/sources.list\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::State \"{lists}/state/\";\n\
         Dir::State::status \"{lists}/status\";\n\
         Dir::Cache \"{lists}/cache/\";\n\
         Acquire::Languages \"none\";\n\
         APT::Sandbox::User \"\";\n"
    )
}

pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
