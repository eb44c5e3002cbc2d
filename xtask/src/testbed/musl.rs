//! CPython 3.13 on musl, `musl-3.13` in the cache folder: its threads are laid out otherwise than
//! glibc's. Debian has none, so it is made from its source, shared, and runs where it was built.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::source;
use crate::apt::Apt;
use crate::process::{quietly, say};

/// CPython's configure takes the compiler's word for Debian's folders, which are glibc's.
const COMPILER: &str = "#!/bin/sh\n\
    for flag; do [ \"$flag\" = --print-multiarch ] && exit 0; done\n\
    exec musl-gcc \"$@\"\n";

/// Modules that take time to build and that no workload imports; others need libraries that musl
/// has none of here.
const LEFT_OUT: &str = "*disabled*\n\
    _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw _decimal _elementtree \
    _lsprof _multibytecodec _zoneinfo pyexpat xxlimited xxlimited_35 xxsubtype _xxtestfuzz\n";

const FLAGS: [&str; 8] = [
    "--quiet",
    "--build=x86_64-linux-musl",
    "--enable-shared",
    "--disable-test-modules",
    "--without-ensurepip",
    "--without-doc-strings",
    "--with-pkg-config=no",
    "OPT=-O2 -DNDEBUG",
];

/// What it must be able to do to be of use.
const CHECK: &str = "import asyncio, json, socket, threading";

/// Builds it unless it is there.
pub(super) fn prepare(cache: &Path, apt: &mut Apt) -> Result<()> {
    let folder = cache.join("musl-3.13");
    if folder.join("python").is_file() {
        return Ok(());
    }
    let tarball = source::tarball(cache)?;
    if Apt::is_here() {
        let packages = ["gcc", "make", "xz-utils", "musl-tools"];
        apt.install(&packages, "to build CPython on musl")?;
    }
    say("building CPython 3.13 on musl for tests (two minutes or so)");
    let new = cache.join("musl-3.13.new");
    source::unpack(&tarball, &new)?;
    source::write(&new.join("Modules/Setup.local"), LEFT_OUT)?;
    let compiler = new.join("musl-cc");
    source::write(&compiler, COMPILER)?;
    fs::set_permissions(&compiler, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} a program", compiler.display()))?;

    let mut configure = source::politely(&new.join("configure"));
    configure
        .args(FLAGS)
        .arg(format!("CC={}", compiler.display()))
        // It finds its library where it will be in the end.
        .arg(format!("LDFLAGS=-Wl,-rpath,{}", folder.display()));
    quietly(configure.current_dir(&new))?;
    source::build(&new)?;
    let mut works = Command::new(new.join("python"));
    works.env("LD_LIBRARY_PATH", &new).args(["-c", CHECK]);
    if let Err(error) = quietly(&mut works) {
        bail!("the CPython that was built does not work: {error:#}");
    }
    source::keep(&new, &folder)
}
