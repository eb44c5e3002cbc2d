//! What the node agent uses on a node with many containers, and how large the profiles are that it makes:
//! of processes most of which wait, and of those that all take turns.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::measure;
use super::table::{Table, figure, verdict};
use super::workload::{Target, Work};
use super::{Plan, say};

const CONTAINERS: usize = 100;
const PROCESSES: usize = 500;
/// Until every process was looked at, and the names of those that work were read.
const WARM_UP: Duration = Duration::from_secs(15);
/// How long the agent is watched: four intervals.
const WATCHED: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(500);

/// What the agent used.
#[derive(Clone, Copy, Debug)]
struct Use {
    /// Percent of what the node has: of the agent's process, and of the kernel program.
    cpu: f64,
    program: f64,
    /// Bytes, the most that was seen, with the kernel's maps.
    memory: u64,
    /// Bytes of the largest profile, and how many there were.
    largest: u64,
    profiles: usize,
}

/// The table.
pub(super) fn measure(plan: &Plan) -> Result<Table> {
    let cpus = measure::cpus()?;
    let mut table = Table::new(
        &format!(
            "**The agent**, {PROCESSES} Pythons in {CONTAINERS} containers, 19 Hz, a profile for each \
             every 15 s: CPU in percent of the node, with the kernel program's, most memory in MB with \
             that of the kernel's maps, the largest profile in kB:"
        ),
        &[
            "that work",
            "CPU",
            "of it kernel program",
            "memory",
            "largest profile",
            "profiles",
            "to reach",
        ],
    );
    for (working, mode) in [(cpus, "busy"), (PROCESSES, "turns")] {
        say(&format!("the agent: {working} of {PROCESSES} Pythons work"));
        table.row(row(working, watch(plan, working, mode)?));
    }
    table.note(format!(
        "Of {} s after {} s. Containers are control groups with names as those of containers have, \
         which nobody is asked about. Where all work, each does for 2 ms of a second.",
        WATCHED.as_secs(),
        WARM_UP.as_secs()
    ));
    Ok(table)
}

fn watch(plan: &Plan, working: usize, mode: &'static str) -> Result<Use> {
    let groups = Groups::make()?;
    let start = |mode| {
        let work = Work {
            mode,
            depth: 40,
            each_its_own: true,
            cpu: None,
            real_time: false,
        };
        Target::start(&plan.python, work)
    };
    let mut targets = Vec::new();
    for number in 0..PROCESSES {
        let waits = number < PROCESSES - working;
        let target = start(if waits { "sleep" } else { mode })?;
        groups.take(number % CONTAINERS, target.pid())?;
        targets.push(target);
    }
    let folder = TempDir::new().context("cannot make a temporary folder")?;
    let _statistics = measure::Statistics::enable()?;
    let agent = Agent::start(&plan.tools.pyebpf, folder.path())?;
    thread::sleep(WARM_UP);
    let pid = agent.pid();
    let program = || measure::runs(pid).unwrap_or_default().time;
    let (begin, cpu, before) = (Instant::now(), measure::cpu_time(pid)?, program());
    let mut memory = 0;
    while begin.elapsed() < WATCHED {
        memory = memory.max(measure::memory(pid).unwrap_or(0));
        thread::sleep(LOOK);
    }
    let node = begin.elapsed().as_secs_f64() * measure::cpus()? as f64;
    let cpu = (measure::cpu_time(pid)? - cpu).as_secs_f64();
    let program = (program() - before) as f64 / 1e9;
    let maps = measure::map_memory(pid);
    agent.end()?;
    // Their groups can go then.
    drop(targets);
    let sizes = sizes(folder.path())?;
    Ok(Use {
        cpu: 100.0 * (cpu + program) / node,
        program: 100.0 * program / node,
        memory: memory + maps,
        largest: sizes.iter().copied().max().unwrap_or(0),
        profiles: sizes.len(),
    })
}

/// Bytes of each profile below a folder.
fn sizes(folder: &Path) -> Result<Vec<u64>> {
    let mut sizes = Vec::new();
    for container in fs::read_dir(folder)?.flatten() {
        for file in fs::read_dir(container.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            if file.path().extension().is_some_and(|end| end == "gz") {
                sizes.push(file.metadata()?.len());
            }
        }
    }
    Ok(sizes)
}

fn row(working: usize, used: Use) -> Vec<String> {
    let marks = [
        verdict("CPU ≤ 1", used.cpu <= 1.0),
        verdict("memory ≤ 150", used.memory <= 150_000_000),
        verdict("profile ≤ 100", used.largest <= 100_000),
    ];
    vec![
        working.to_string(),
        figure(Some(used.cpu), 2),
        figure(Some(used.program), 2),
        figure(Some(used.memory as f64 / 1e6), 0),
        figure(Some(used.largest as f64 / 1e3), 1),
        used.profiles.to_string(),
        marks.join("; "),
    ]
}

/// An agent that runs.
pub(super) struct Agent(Child);

impl Agent {
    pub(super) fn start(program: &Path, folder: &Path) -> Result<Agent> {
        let mut command = Command::new(program);
        command.args(["daemon", "--pods", "none", "--listen", "127.0.0.1:0"]);
        command
            .args(["--probes", "127.0.0.1:0", "--folder"])
            .arg(folder);
        let null = || Stdio::null();
        let child = command.stdin(null()).stdout(null()).stderr(null()).spawn();
        Ok(Agent(child.context("cannot start the agent")?))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Tells it to end, and waits.
    pub(super) fn end(mut self) -> Result<()> {
        let pid = libc::pid_t::try_from(self.0.id()).context("a pid fits")?;
        // SAFETY: kill takes no pointers; the child has not been waited for, so the pid is its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        self.0.wait().context("cannot wait for the agent")?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must be waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Control groups that are named as containers' are. They go when this is dropped, if they are empty.
pub(super) struct Groups(PathBuf);

impl Groups {
    /// Those of all containers.
    fn make() -> Result<Groups> {
        let groups = Groups::empty()?;
        (0..CONTAINERS).try_for_each(|number| groups.add(number).map(drop))?;
        Ok(groups)
    }

    /// None yet.
    pub(super) fn empty() -> Result<Groups> {
        // Where version 1 is in use as well, systemd mounts version 2 beside it.
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let mut roots = roots.into_iter();
        let root = roots.find(|root| root.join("cgroup.procs").exists());
        let root = root.context("no control groups of version 2 are mounted")?;
        let name = format!("pyebpf-bench-{}", std::process::id());
        Ok(Groups(root.join(name)))
    }

    /// Makes that of a container.
    pub(super) fn add(&self, number: usize) -> Result<PathBuf> {
        let path = self.of(number);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Removes that of a container, which has ended.
    pub(super) fn remove(&self, number: usize) {
        // One that is still busy goes with all others.
        let _ = fs::remove_dir(self.of(number));
    }

    fn of(&self, number: usize) -> PathBuf {
        // The first digits tell containers apart, as of ids that are drawn at random.
        self.0.join(format!("{number:08x}").repeat(8))
    }

    fn take(&self, number: usize, pid: u32) -> Result<()> {
        let path = self.of(number).join("cgroup.procs");
        fs::write(&path, pid.to_string())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for _ in 0..100 {
            for group in fs::read_dir(&self.0).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(group.path());
            }
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            // Who has just ended is in its group for a moment.
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mark_is_judged() {
        let used = Use {
            cpu: 0.456,
            program: 0.02,
            memory: 61_000_000,
            largest: 120_000,
            profiles: 400,
        };
        let expected = "2 | 0.46 | 0.02 | 61 | 120.0 | 400 | \
                        CPU ≤ 1 ok; memory ≤ 150 ok; profile ≤ 100 **MISSED**";
        assert_eq!(row(2, used).join(" | "), expected);
    }
}
