//! A profile on its way: its labels and its bytes in the format of a place. It is made once for each
//! format that a place wants; what is kept of it in the spool is in `spool`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::otlp;
use crate::{
    agent::labels::{Labels, Portion},
    output::pprof,
};

/// In which bytes a place takes profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// gzipped, with the labels as comments.
    Pprof,
    /// A request to an OTLP collector, as it is or gzipped.
    Otlp { gzip: bool },
}

/// What is known of a profile beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) labels: Arc<Labels>,
    /// When it began, since 1970.
    pub(super) started: Duration,
    pub(super) duration: Duration,
}

/// A profile for one place.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Tells it from every other one of its place; later ones have greater ones.
    pub(super) number: u64,
    pub(super) head: Head,
    pub(super) body: Bytes,
    /// Bytes that it takes in the spool.
    pub(super) size: u64,
}

impl Head {
    pub(super) fn of(portion: &Portion) -> Head {
        let meta = portion.profile.meta();
        Head {
            labels: portion.labels.clone(),
            started: meta.started.duration_since(UNIX_EPOCH).unwrap_or_default(),
            duration: meta.duration,
        }
    }

    /// When it began.
    pub(super) fn started(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(self.started).unwrap_or(UNIX_EPOCH)
    }
}

impl Format {
    /// The profile's bytes. Takes as long as a profile is large: milliseconds.
    ///
    /// # Errors
    /// When it can't be written, which no profile is known to bring about.
    pub(super) fn encode(self, portion: &Portion, node: &str) -> Result<Bytes> {
        let bytes = match self {
            Format::Pprof => {
                let mut bytes = Vec::new();
                pprof::write_labelled(&portion.profile, &portion.labels, &mut bytes)?;
                bytes
            }
            Format::Otlp { gzip: false } => otlp::encode(portion, node),
            Format::Otlp { gzip: true } => {
                use std::io::Write as _;
                let level = flate2::Compression::default();
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
                gzip.write_all(&otlp::encode(portion, node))
                    .and_then(|()| gzip.finish())
                    .context("cannot compress the profile")?
            }
        };
        Ok(bytes.into())
    }
}
