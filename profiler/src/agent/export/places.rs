//! A place that profiles go to, whichever it is, and what it answers.

use std::time::Duration;

use super::{
    folder::Folder,
    item::{Format, Item},
    otlp::Otlp,
    parca::Parca,
    pyroscope::Pyroscope,
};

pub(super) enum Place {
    Folder(Folder),
    Pyroscope(Pyroscope),
    Parca(Parca),
    Otlp(Otlp),
}

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Taken,
    /// It can't take this one, whenever it is asked.
    Refused(String),
    /// It may take it later: not before `after`, if it says so.
    Later {
        why: String,
        after: Option<Duration>,
    },
}

impl Place {
    pub(super) fn format(&self) -> Format {
        match self {
            Place::Folder(_) | Place::Pyroscope(_) | Place::Parca(_) => Format::Pprof,
            Place::Otlp(otlp) => otlp.format(),
        }
    }

    pub(super) async fn send(&self, item: &Item) -> Sent {
        match self {
            Place::Folder(folder) => folder.send(item).await,
            Place::Pyroscope(pyroscope) => pyroscope.send(item).await,
            Place::Parca(parca) => parca.send(item).await,
            Place::Otlp(otlp) => otlp.send(item).await,
        }
    }
}

impl Sent {
    /// For what is not the profile's fault.
    pub(super) fn later(why: impl Into<String>) -> Sent {
        let (why, after) = (why.into(), None);
        Sent::Later { why, after }
    }
}
