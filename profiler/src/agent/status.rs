//! What the agent knows of itself and of the processes that it profiles, once a second, for whoever
//! asks: the loop publishes it, `serve` shows it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Serialize;

use super::labels::Labels;

/// All of it. Numbers count from the agent's start.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// For how long the agent has sampled.
    pub up: Duration,
    /// Samples a second and CPU, now and as they were asked for.
    pub rate: u32,
    pub rate_asked: u32,
    /// Samples that were read, by outcome, as `--stats` names them.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Samples that are in no profile, by reason, as `--stats` names them.
    pub losses: BTreeMap<&'static str, u64>,
    /// The time of all walks, as the kernel program counts it, and how many there were.
    pub kernel_time: Duration,
    pub kernel_runs: u64,
    /// CPU time of the agent's own process.
    pub cpu: Duration,
    /// Memory of its own, and of the kernel for its maps and buffers, bytes.
    pub memory: u64,
    pub kernel_memory: u64,
    /// How often the rate was lowered, by what was about to be exceeded: `cpu`, `memory`.
    pub lowered: BTreeMap<&'static str, u64>,
    /// Profiles that were made.
    pub portions: u64,
    /// Samples that settings or annotations left out.
    pub excluded: u64,
    pub processes: Vec<Arc<Process>>,
}

/// A process that runs Python.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Process {
    pub pid: u32,
    pub command: String,
    /// As in `3.12.1`, `3.13.0t`.
    pub python: String,
    pub labels: Arc<Labels>,
    /// Whether settings or annotations leave it out.
    pub excluded: bool,
    /// Its samples, and how many of them have a complete stack.
    pub samples: u64,
    pub complete: u64,
}
