//! What the agent may cost. It watches its own CPU time, the kernel program's and its memory, lowers the
//! rate before they exceed what they may, and raises it again.

use std::{fmt::Display, str::FromStr};

use anyhow::{Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::settings::{Bytes, as_text};

/// What the agent may cost.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Most CPU time, in percent of what the node has: all its CPUs together
    #[arg(
        id = "budget_max_cpu",
        long = "max-cpu",
        env = "PYEBPF_MAX_CPU",
        value_name = "PERCENT",
        default_value = "1%"
    )]
    pub max_cpu: Percent,

    /// Most memory, with what the kernel has for the agent
    #[arg(
        id = "budget_max_memory",
        long = "max-memory",
        env = "PYEBPF_MAX_MEMORY",
        value_name = "SIZE",
        default_value = "256MiB"
    )]
    pub max_memory: Bytes,
}

/// A part of a hundred, as people write it: `1%`, `0.5%`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Percent(pub f64);

impl FromStr for Percent {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Percent> {
        match text.trim_end_matches('%').trim().parse() {
            Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Percent(percent)),
            _ => bail!("{text:?} is not a percentage such as 1% or 0.5%, above 0 and at most 100"),
        }
    }
}

impl Display for Percent {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}%", self.0)
    }
}

as_text!(Percent);
