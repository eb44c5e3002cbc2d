//! How sending to one place goes, for whoever asks: each place keeps one of these, `serve` shows it.

use std::collections::BTreeMap;

/// What became of the profiles of one place. Numbers count from the agent's start.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// As its section of the settings is called: `folder`, `pyroscope`, `parca`, `otlp`.
    pub name: &'static str,
    /// Profiles that it has taken.
    pub sent: u64,
    /// Attempts to send that it refused, or that did not reach it; a profile may fail several times.
    pub failed: u64,
    /// Profiles that it will never have, by reason in a word or two, as in `spool_full`, `refused`.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Profiles that wait, in memory and in the spool, and their bytes.
    pub waiting: u64,
    pub waiting_bytes: u64,
    /// Why the last attempt failed; `None` when it did not.
    pub last_error: Option<String>,
}
