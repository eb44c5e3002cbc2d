//! How sending to one place goes, for whoever asks: each place keeps one of these, `serve` shows it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::talk::say;

/// What became of the profiles of one place. Numbers count from the agent's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// As its section of the settings is called: `folder`, `pyroscope`, `parca`, `otlp`.
    pub name: &'static str,
    /// Where it is: an address without credentials, or a path.
    pub url: String,
    /// Profiles that it has taken.
    pub sent: u64,
    /// Attempts to send that it refused, or that did not reach it; a profile may fail several times.
    pub failed: u64,
    /// Those of them that were made again, or will be.
    pub retried: u64,
    /// Profiles that it will never have, by reason in a word or two: see [`Reason`].
    pub dropped: BTreeMap<&'static str, u64>,
    /// Profiles that wait, in memory and in the spool, and their bytes.
    pub waiting: u64,
    pub waiting_bytes: u64,
    /// Why the last attempt failed; `None` when it did not.
    pub last_error: Option<String>,
    /// Why the spool could not be written, when it was tried last; `None` when it could.
    pub spool_error: Option<String>,
}

/// Why a place will never have a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Profiles come faster than they are encoded.
    Behind,
    /// More waited than memory has room for, and there is no spool.
    MemoryFull,
    /// More waited than the spool has room for.
    SpoolFull,
    /// More waited than memory has room for, and the spool can't be written.
    SpoolFailed,
    /// What was read back from the spool is not what was written.
    SpoolBroken,
    /// The place can't take it, now or ever: too large, too old, malformed.
    Refused,
    /// The profile could not be encoded.
    Unencodable,
    /// The agent ended, and there is no spool.
    Ended,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Reason::Behind => "behind",
            Reason::MemoryFull => "memory_full",
            Reason::SpoolFull => "spool_full",
            Reason::SpoolFailed => "spool_failed",
            Reason::SpoolBroken => "spool_broken",
            Reason::Refused => "refused",
            Reason::Unencodable => "unencodable",
            Reason::Ended => "ended",
        }
    }
}

/// A state that its place changes and others read.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Mutex<State>>);

impl Shared {
    pub(super) fn new(name: &'static str, url: String) -> Shared {
        Shared(Arc::new(Mutex::new(State {
            name,
            url,
            ..State::default()
        })))
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Why the last attempt to send failed, or `None`. A change is said.
    pub(super) fn set_error(&self, error: Option<String>) {
        self.change(|state| {
            let name = state.name;
            match (&state.last_error, &error) {
                (None, Some(why)) => say(format_args!("{name}: profiles are not taken: {why}")),
                (Some(_), None) => say(format_args!("{name}: profiles are taken again")),
                _ => {}
            }
            state.last_error = error;
        });
    }

    /// Why the spool could not be written, or `None`. A change is said.
    pub(super) fn set_spool_error(&self, error: Option<String>) {
        self.change(|state| {
            let name = state.name;
            match (&state.spool_error, &error) {
                (None, Some(why)) => say(format_args!("{name}: profiles wait in memory: {why}")),
                (Some(_), None) => say(format_args!("{name}: profiles wait in the spool again")),
                _ => {}
            }
            state.spool_error = error;
        });
    }

    /// Profiles are there that were not before.
    pub(super) fn wait(&self, profiles: u64, bytes: u64) {
        self.change(|state| {
            state.waiting += profiles;
            state.waiting_bytes += bytes;
        });
    }

    /// One that waited has got there.
    pub(super) fn sent(&self, bytes: u64) {
        self.change(|state| {
            state.sent += 1;
            state.leave(bytes);
        });
    }

    /// One that waited is lost.
    pub(super) fn lose(&self, reason: Reason, bytes: u64) {
        self.change(|state| {
            *state.dropped.entry(reason.name()).or_default() += 1;
            state.leave(bytes);
        });
    }

    /// Profiles are lost before they could wait.
    pub(super) fn never_had(&self, reason: Reason, profiles: u64) {
        self.change(|state| *state.dropped.entry(reason.name()).or_default() += profiles);
    }

    pub(super) fn read(&self) -> State {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl State {
    fn leave(&mut self, bytes: u64) {
        self.waiting -= 1;
        self.waiting_bytes -= bytes;
    }
}
