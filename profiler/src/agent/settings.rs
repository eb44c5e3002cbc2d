//! What the agent can be told: as a flag, as an environment variable, in a file, in this order; each
//! setting is declared once, below or in the room that it is about. `--print-config` shows them all.

use std::{fmt::Display, fs, path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{ArgMatches, Args, parser::ValueSource};
use serde::{Deserialize, Serialize};

use super::{export, pods, serve};
use crate::cli::Native;

/// Every setting. A section of the file is a struct of its own; there the field `url` of the section
/// `parca` is `url`, as a flag `--parca-url`, in the environment `PYEBPF_PARCA_URL`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Samples per second and CPU
    #[arg(short, long, value_name = "HZ", env = "PYEBPF_RATE", default_value_t = 19,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,

    /// How long a profile lasts: as in 15s, 1m
    #[arg(
        long,
        value_name = "TIME",
        env = "PYEBPF_INTERVAL",
        default_value = "15s"
    )]
    pub interval: Span,

    /// Show what Python calls outside of Python, too
    #[arg(short, long, value_name = "WHICH", env = "PYEBPF_NATIVE", num_args = 0..=1,
          require_equals = true, default_missing_value = "folded")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native: Option<Native>,

    /// The name of this node [default: the host's name]
    #[arg(long, value_name = "NAME", env = "PYEBPF_NODE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,

    #[command(flatten)]
    pub labels: super::labels::Settings,
    #[command(flatten)]
    pub select: super::selection::Settings,
    #[command(flatten)]
    pub pods: pods::Settings,
    #[command(flatten)]
    pub serve: serve::Settings,
    #[command(flatten)]
    pub budget: super::budget::Settings,
    #[command(flatten)]
    pub folder: export::settings::Folder,
    #[command(flatten)]
    pub pyroscope: export::settings::Pyroscope,
    #[command(flatten)]
    pub parca: export::settings::Parca,
    #[command(flatten)]
    pub otlp: export::settings::Otlp,
    #[command(flatten)]
    pub spool: export::settings::Spool,
}

/// What is about one start and not about how the agent works: flags alone.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Start {
    /// Read settings from this file, too (TOML); flags and environment variables go before it
    #[arg(short, long, value_name = "FILE", env = "PYEBPF_CONFIG")]
    config: Option<PathBuf>,

    /// Print every setting as it would be used, as such a file, and end
    #[arg(long)]
    pub print_config: bool,
}

impl Settings {
    /// These, as the command line and the environment have them, with those of the file that `start`
    /// names.
    ///
    /// # Errors
    /// When the file can't be read, or has what is no setting.
    pub fn with_file(self, start: &Start, said: &ArgMatches) -> Result<Settings> {
        let Some(path) = &start.config else {
            return Ok(self);
        };
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the settings in {}", path.display()))?;
        let settings = self.over(said, &text);
        settings.with_context(|| format!("in the settings in {}", path.display()))
    }

    /// These with what `file` says, where neither a flag nor a variable says otherwise.
    fn over(&self, arguments: &ArgMatches, file: &str) -> Result<Settings> {
        // For its complaints: they show the line.
        let _: Settings = toml::from_str(file)?;
        let mut merged = toml::Table::try_from(self).context("settings are no table")?;
        for (name, value) in toml::from_str::<toml::Table>(file)? {
            match value {
                toml::Value::Table(section) => {
                    let known = merged
                        .entry(&name)
                        .or_insert_with(|| toml::Table::new().into());
                    let toml::Value::Table(known) = known else {
                        bail!("{name} is no section");
                    };
                    for (key, value) in section {
                        if !is_said(arguments, &format!("{name}_{key}")) {
                            known.insert(key, value);
                        }
                    }
                }
                value if !is_said(arguments, &name) => {
                    merged.insert(name, value);
                }
                _ => {}
            }
        }
        Ok(merged.try_into()?)
    }

    /// All of them, as a file.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("settings are tables of text and numbers")
    }
}

/// Whether a flag or a variable says what this setting is.
fn is_said(arguments: &ArgMatches, id: &str) -> bool {
    let source = arguments.value_source(id);
    source.is_some_and(|source| source != ValueSource::DefaultValue)
}

/// A time, as people write it: `15s`, `1m 30s`, or a number of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Span> {
        let duration = match text.parse::<u32>() {
            Ok(seconds) => Duration::from_secs(seconds.into()),
            Err(_) => humantime::parse_duration(text)
                .with_context(|| format!("{text:?} is not a time such as 15s, 5m or 1h30m"))?,
        };
        Ok(Span(duration))
    }
}

impl Display for Span {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        humantime::format_duration(self.0).fmt(out)
    }
}

/// A number of bytes, as people write it: `256MiB`, `64K`, `1G`, each in powers of 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

const UNITS: [(&str, u32); 4] = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];

impl FromStr for Bytes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Bytes> {
        let short = text.trim_end_matches("iB").trim_end_matches('B');
        let unit = UNITS
            .iter()
            .find(|(unit, _)| short.to_uppercase().ends_with(unit));
        let (number, shift) = match unit {
            Some((unit, shift)) => (&short[..short.len() - unit.len()], *shift),
            None => (short, 0),
        };
        let number = number.trim().parse::<u64>().ok();
        let bytes = number.and_then(|number| number.checked_mul(1 << shift));
        Ok(Bytes(bytes.with_context(|| {
            format!("{text:?} is not a size such as 256MiB, 64K or 1G")
        })?))
    }
}

impl Display for Bytes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole =
            |(_, shift): &&(&str, u32)| self.0 >> shift > 0 && self.0.trailing_zeros() >= *shift;
        match UNITS.iter().rev().find(whole) {
            Some((unit, shift)) => write!(out, "{}{unit}iB", self.0 >> shift),
            None => write!(out, "{}", self.0),
        }
    }
}

macro_rules! as_text {
    ($($name:ident),+) => {$(
        impl TryFrom<String> for $name {
            type Error = anyhow::Error;

            fn try_from(text: String) -> Result<$name> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    )+};
}

as_text!(Span, Bytes);
pub(super) use as_text;

#[cfg(test)]
mod tests;
