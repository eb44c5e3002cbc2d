//! Profiles on their way to where the user wants them: a folder, or stores of continuous profiles.

pub mod settings;
pub mod state;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};

use super::{labels::Portion, settings::Settings};
use crate::{output::Format, talk::say};
use state::State;

/// All places.
pub struct Export {
    folder: PathBuf,
}

impl Export {
    /// Begins to send to where the settings say.
    ///
    /// # Errors
    /// When a place can't be used.
    pub fn start(settings: &Settings, _node: &str) -> Result<Export> {
        let folder = settings.folder.path.clone();
        let folder = folder.unwrap_or_else(|| PathBuf::from("/var/lib/pyebpf/profiles"));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Export { folder })
    }

    /// Where profiles go, for people.
    pub fn places(&self) -> Vec<String> {
        vec![format!("the folder {}", self.folder.display())]
    }

    /// Takes profiles; never waits.
    pub fn send(&self, portions: Vec<Arc<Portion>>) {
        for portion in portions {
            let label = |name| portion.labels.get(name).map_or("", String::as_str);
            let id = label("container_id");
            let started = humantime::format_rfc3339_seconds(portion.profile.meta().started);
            let name = format!(
                "{}-{}-{started}.pb.gz",
                label("service"),
                &id[..id.len().min(12)]
            );
            let mut bytes = Vec::new();
            let written = Format::Pprof.write(&portion.profile, &mut bytes);
            let path = self.folder.join(name.replace('/', "_"));
            let written = written.and_then(|()| Ok(std::fs::write(path, bytes)?));
            if let Err(error) = written {
                say(format_args!("a profile was not written: {error:#}"));
            }
        }
    }

    /// How that goes.
    pub fn state(&self) -> Vec<State> {
        Vec::new()
    }

    /// Sends what is left.
    pub async fn end(&self, _patience: Duration) {}
}
