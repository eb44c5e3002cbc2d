//! What the tests need beyond the build, made in the cache folder: one file per piece. A piece that
//! cannot be had is reported by name, and its tests skip; the others are made all the same.

mod containerd;
mod freethreaded;
mod frozen;
mod greenlets;
mod manifests;
mod musl;
mod packages;
mod readers;
mod sid;
mod source;
mod wheels;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::apt::Apt;
use crate::setup::{cache, turn};

/// A piece's name for the report, and how it is made. Quick and silent when it is there.
type Piece = (&'static str, fn(&Path, &mut Apt) -> Result<()>);

const PIECES: [Piece; 14] = [
    ("CPython 3.13, 3.14 and 3.15 of Debian sid", sid::prepare),
    (
        "runc, bubblewrap, a debug build and PyPy",
        packages::prepare,
    ),
    ("containerd", containerd::prepare),
    ("CPython 3.13 without a GIL", freethreaded::prepare),
    ("CPython 3.13 on musl", musl::prepare),
    ("greenlet and gevent", greenlets::prepare),
    ("programs of PyInstaller and Nuitka", frozen::prepare),
    ("py-spy", readers::py_spy),
    ("go tool pprof", readers::pprof),
    ("speedscope", readers::speedscope),
    ("a browser", readers::chromium),
    ("an OpenTelemetry collector", readers::collector),
    ("helm and kubectl", manifests::programs),
    ("the schemas of Kubernetes", manifests::schemas),
];

/// What could not be had.
#[derive(Debug, Default)]
pub(crate) struct Lacking {
    pieces: Vec<String>,
}

impl Lacking {
    /// Names the missing pieces on standard error; says nothing when there are none.
    pub(crate) fn report(&self) {
        for piece in &self.pieces {
            eprintln!("not available, its tests are skipped: {piece}");
        }
    }
}

/// py-spy alone, which the benchmark compares with; gives the program.
pub(crate) fn py_spy() -> Result<PathBuf> {
    let cache = cache()?;
    let _turn = turn(&cache)?;
    readers::py_spy(&cache, &mut Apt::default())?;
    Ok(cache.join("venv/bin/py-spy"))
}

/// The wheels of `cargo xtask unwind`; `tables`: those that are only read, too.
pub(crate) fn wheels(tables: bool) -> Result<()> {
    let cache = cache()?;
    let _turn = turn(&cache)?;
    wheels::prepare(&cache, tables)
}

/// Makes every piece that can be made.
pub(crate) fn prepare() -> Result<Lacking> {
    let cache = cache()?;
    let _turn = turn(&cache)?;
    let mut apt = Apt::default();
    let mut lacking = Lacking::default();
    for (name, make) in PIECES {
        if let Err(error) = make(&cache, &mut apt) {
            lacking.pieces.push(format!("{name}: {error:#}"));
        }
    }
    Ok(lacking)
}
