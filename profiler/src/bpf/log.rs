//! Rare events that the kernel program logs, to stderr. Off unless asked for.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;

/// Global of the kernel program: the least severe level that is logged; 0 is none.
pub(super) const LEVEL: &str = aya_log::LEVEL;
/// All levels.
pub(super) const EVERYTHING: u8 = log::Level::Trace as u8;

/// Passes the kernel program's log on.
pub(super) struct Reader(EbpfLogger<Stderr>);

impl Reader {
    /// # Errors
    /// When the object has no log, or its ring buffer can't be mapped.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Reader> {
        let logger = EbpfLogger::init_with_logger(ebpf, Stderr);
        Ok(Reader(
            logger.context("cannot read the kernel program's log")?,
        ))
    }

    /// Prints what was logged since the last call.
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }
}

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // A closed stderr must not end a recording.
        let _ = writeln!(
            std::io::stderr(),
            "kernel program: {}: {}",
            record.level(),
            record.args()
        );
    }

    fn flush(&self) {}
}
