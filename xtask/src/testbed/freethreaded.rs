//! CPython 3.13 built without a GIL, `freethreaded-3.13` in the cache folder: Debian has none, so it
//! is made from its source, with the modules that our workloads import and no others. It runs where
//! it was built.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::source;
use crate::apt::Apt;
use crate::process::{quietly, say};

/// What the modules that workloads need are built with, besides the compiler.
const LIBRARIES: [&str; 2] = ["zlib1g-dev", "libffi-dev"];

/// Modules that take time to build and that no workload imports.
const LEFT_OUT: &str = "*disabled*\n\
    _bz2 _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw _curses \
    _curses_panel _dbm _decimal _elementtree _gdbm _hashlib _lsprof _lzma _multibytecodec _sqlite3 \
    _ssl _tkinter _uuid _zoneinfo pyexpat readline xxlimited xxlimited_35 xxsubtype _xxtestfuzz\n";

const FLAGS: [&str; 6] = [
    "--quiet",
    "--disable-gil",
    "--disable-test-modules",
    "--without-ensurepip",
    "--without-doc-strings",
    "OPT=-O2 -DNDEBUG",
];

/// What it must be able to do to be of use.
const CHECK: &str = "import sys, asyncio, ctypes, hashlib, json, socket, threading, zlib\n\
                     assert not sys._is_gil_enabled()\n\
                     exec('é = 1')";

/// Builds it unless it is there.
pub(super) fn prepare(cache: &Path, apt: &mut Apt) -> Result<()> {
    let folder = cache.join("freethreaded-3.13");
    if folder.join("python").is_file() {
        return Ok(());
    }
    let tarball = source::tarball(cache)?;
    if Apt::is_here() {
        apt.install(
            &["gcc", "make", "xz-utils"],
            "to build CPython without a GIL",
        )?;
        apt.install(&LIBRARIES, "to build CPython without a GIL")?;
    }
    say("building CPython 3.13 without a GIL for tests (three minutes or so)");
    let new = cache.join("freethreaded-3.13.new");
    source::unpack(&tarball, &new)?;
    source::write(&new.join("Modules/Setup.local"), LEFT_OUT)?;

    quietly(
        source::politely(&new.join("configure"))
            .args(FLAGS)
            .current_dir(&new),
    )?;
    source::build(&new)?;
    let python = new.join("python");
    if let Err(error) = quietly(Command::new(&python).args(["-c", CHECK])) {
        bail!("the CPython that was built does not work: {error:#}");
    }
    source::keep(&new, &folder)
}
