//! What the agent may cost. It watches its own CPU time, the kernel program's and its memory, lowers the
//! rate before they exceed what they may, and raises it again.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Display,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    cost::Cost,
    settings::{Bytes, as_text},
};

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

/// Over how long costs are averaged: profiles are sent once in an interval, and that is a part of them.
const WINDOW: Duration = Duration::from_secs(15);
/// The part of the budget up to which the rate may stay, and the one from which it is raised.
const HIGH: f64 = 0.8;
const LOW: f64 = 0.5;
/// How much a rate is raised at once, at most.
const RAISE: f64 = 1.5;

/// Decides the rate.
#[derive(Debug)]
pub struct Budget {
    pub settings: Settings,
    cpus: f64,
    asked: u32,
    rate: u32,
    /// Readings of the last [`WINDOW`] at this rate, oldest first.
    readings: VecDeque<(Instant, Cost)>,
    /// How often the rate was lowered, and why.
    pub lowered: BTreeMap<&'static str, u64>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    Stay,
    /// Take so many samples per second and CPU from now on.
    Rate(u32),
}

impl Budget {
    /// Of a node of so many CPUs, where `asked` samples per second and CPU are wanted.
    pub fn new(settings: Settings, cpus: usize, asked: u32) -> Budget {
        Budget {
            settings,
            cpus: cpus.max(1) as f64,
            asked,
            rate: asked,
            readings: VecDeque::new(),
            lowered: BTreeMap::new(),
        }
    }

    /// Takes a reading, about once a second. `memory` is all that the agent has, in bytes.
    pub fn read(&mut self, now: Instant, cost: Cost, memory: u64) -> Advice {
        self.readings.push_back((now, cost));
        while self
            .readings
            .front()
            .is_some_and(|(then, _)| now.duration_since(*then) > WINDOW)
        {
            self.readings.pop_front();
        }
        let max_memory = self.settings.max_memory.0 as f64;
        let memory = memory as f64 / max_memory.max(1.0);
        let cpu = self.used() / self.settings.max_cpu.0;
        let (reason, used) = match cpu >= memory {
            true => ("cpu", cpu),
            false => ("memory", memory),
        };
        let lasted = self.lasted().as_secs_f64() / WINDOW.as_secs_f64();
        let rate = if used > HIGH && self.rate > 1 {
            *self.lowered.entry(reason).or_default() += 1;
            ((f64::from(self.rate) * LOW / used).floor() as u32).max(1)
        } else if lasted > 0.6 && memory.max(cpu / lasted) < LOW && self.rate < self.asked {
            let raised = (f64::from(self.rate) * RAISE).ceil() as u32;
            raised.min(self.asked)
        } else {
            return Advice::Stay;
        };
        self.rate = rate.min(self.rate.max(self.asked));
        // What was measured at another rate says nothing of this one.
        self.readings.clear();
        self.readings.push_back((now, cost));
        Advice::Rate(self.rate)
    }

    /// The CPU time that was used in the window, in percent of what the node has in all of it: a peak
    /// counts for as much as it takes of that.
    pub fn used(&self) -> f64 {
        let (Some((_, first)), Some((_, last))) = (self.readings.front(), self.readings.back())
        else {
            return 0.0;
        };
        let used = (last.cpu + last.kernel).saturating_sub(first.cpu + first.kernel);
        100.0 * used.as_secs_f64() / (WINDOW.as_secs_f64() * self.cpus)
    }

    fn lasted(&self) -> Duration {
        match (self.readings.front(), self.readings.back()) {
            (Some((first, _)), Some((last, _))) => last.duration_since(*first),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A budget of 1 % and 256 MiB on 2 CPUs, and what it says when each second costs so much.
    struct Node {
        budget: Budget,
        now: Instant,
        cost: Cost,
    }

    impl Node {
        fn new() -> Node {
            let settings = Settings {
                max_cpu: Percent(1.0),
                max_memory: Bytes(256 << 20),
            };
            Node {
                budget: Budget::new(settings, 2, 19),
                now: Instant::now(),
                cost: Cost::default(),
            }
        }

        /// The rate after so many seconds, in each of which the process takes `fixed` milliseconds and
        /// the kernel program `sample` for each sample of a second and CPU.
        fn run(&mut self, seconds: u32, fixed: f64, sample: f64, memory: u64) -> u32 {
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                self.cost.cpu += Duration::from_secs_f64(fixed / 1e3);
                let kernel = sample * f64::from(self.budget.rate);
                self.cost.kernel += Duration::from_secs_f64(kernel / 1e3);
                self.budget.read(self.now, self.cost, memory);
            }
            self.budget.rate
        }

        fn used(&self) -> f64 {
            self.budget.used()
        }
    }

    #[test]
    fn what_is_within_the_budget_keeps_its_rate() {
        let mut node = Node::new();
        assert_eq!(node.run(120, 2.0, 0.3, 100 << 20), 19);
        assert!((node.used() - 0.385).abs() < 0.001, "{}", node.used());
        assert!(node.budget.lowered.is_empty());
    }

    #[test]
    fn the_rate_falls_before_the_budget_is_used_up_and_rises_again() {
        let mut node = Node::new();
        // 0.1 % and 0.04 % for each sample: 0.9 % at 19.
        let rate = node.run(120, 2.0, 0.84, 0);
        assert!(rate < 19 && node.used() < 0.8, "{rate}, {}", node.used());
        assert_eq!(node.budget.lowered.keys().collect::<Vec<_>>(), [&"cpu"]);
        assert_eq!(node.run(300, 2.0, 0.1, 0), 19);
    }

    #[test]
    fn memory_counts_as_time_does() {
        let mut node = Node::new();
        assert!(node.run(60, 0.0, 0.0, 250 << 20) < 19);
        assert_eq!(node.budget.lowered.keys().collect::<Vec<_>>(), [&"memory"]);
        assert_eq!(node.run(300, 0.0, 0.0, 60 << 20), 19);
    }

    #[test]
    fn it_never_stops_and_never_goes_above_what_was_asked() {
        let mut node = Node::new();
        assert_eq!(node.run(200, 100.0, 9.0, 0), 1);
        assert_eq!(node.run(600, 0.0, 0.0, 0), 19);
        assert!("0%".parse::<Percent>().is_err() && "101".parse::<Percent>().is_err());
        assert_eq!("0.5 %".parse::<Percent>().unwrap().to_string(), "0.5%");
    }
}
