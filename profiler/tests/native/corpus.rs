//! Our walk, framehop's and gdb's over the same stops of running programs: whether they give the same
//! addresses, and where they part, at which function of which file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use profiler_ebpf::NativeEnd;
use pyebpf::unwind::Modules;

use super::common::{home, skip};
use super::framehop::{Framehop, is_beyond};
use super::gdb::Gdb;
use super::programs::{self, Program, Running};
use super::stop::{Held, Registers, Stop, threads};
use super::tables::Tables;

/// How often and how long in between a program is stopped.
const PAUSE: Duration = Duration::from_millis(7);

/// How often a program is stopped by us and by gdb, and how long it takes to be at its work.
#[derive(Clone, Copy)]
struct Plan {
    ours: u32,
    gdb: u32,
    warm_up: Duration,
}

/// Equal stacks among those that were compared.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    equal: u32,
    of: u32,
}

impl Share {
    fn note(&mut self, equal: bool) {
        self.of += 1;
        self.equal += u32::from(equal);
    }

    fn add(&mut self, other: Share) {
        self.equal += other.equal;
        self.of += other.of;
    }
}

/// What was seen of a program.
#[derive(Debug, Default)]
struct Seen {
    samples: u32,
    frames: u32,
    ends: BTreeMap<NativeEnd, u32>,
    framehop: Share,
    /// Stacks with a frame that framehop can't follow; they are not compared.
    beyond: u32,
    gdb: Share,
    /// Where stacks part or end too soon, and how often.
    differences: BTreeMap<String, u32>,
}

/// The three walks, for one program.
#[derive(Default)]
struct Walks {
    ours: Tables,
    framehop: Framehop,
    modules: Modules,
    seen: Seen,
}

impl Walks {
    /// Compares at a stop of a thread of process `pid`; `gdb` is what that has found there.
    fn compare(&mut self, pid: u32, registers: Registers, gdb: Option<&[u64]>) {
        let Some(stop) = Stop::of(pid, &registers) else {
            return;
        };
        if self.ours.look(pid) {
            self.framehop.look(pid, &self.ours.code);
            self.modules = self.ours.modules();
        }
        let (ours, end) = self.ours.walk(&stop, &registers);
        let seen = &mut self.seen;
        seen.samples += 1;
        seen.frames += ours.len() as u32;
        *seen.ends.entry(end).or_default() += 1;
        if !matches!(end, NativeEnd::Complete | NativeEnd::TooDeep) {
            let last = ours.last().map(|&it| place(&self.modules, it));
            let what = format!("ends at {} with {end:?}", last.unwrap_or_default());
            *seen.differences.entry(what).or_default() += 1;
        }
        let theirs = self.framehop.walk(&stop, &registers);
        let beyond = ours != theirs
            && (0..shared(&ours, &theirs)).any(|at| {
                let rule = self.ours.rule(ours[at] - u64::from(at > 0));
                rule.is_some_and(|rule| is_beyond(&rule))
            });
        let differences = &mut seen.differences;
        let mut compare = |share: &mut Share, name: &str, theirs: &[u64]| {
            share.note(ours == theirs);
            if ours != theirs {
                let what = parting(&self.modules, &ours, end, theirs);
                *differences.entry(format!("{name}: {what}")).or_default() += 1;
            }
        };
        if beyond {
            seen.beyond += 1;
        } else {
            compare(&mut seen.framehop, "framehop", &theirs);
        }
        if let Some(gdb) = gdb {
            compare(&mut seen.gdb, "gdb", gdb);
        }
    }

    /// Stops every thread of a program, `stops` times.
    fn hold(&mut self, running: &mut Running, stops: u32) {
        for _ in 0..stops {
            std::thread::sleep(PAUSE);
            for thread in threads(running.pid()) {
                let held = Held::stop(thread);
                if let Some(registers) = held.as_ref().ok().and_then(|it| it.registers().ok()) {
                    self.compare(running.pid(), registers, None);
                }
            }
            if running.is_over() {
                break;
            }
        }
    }

    /// Likewise, with gdb.
    fn hold_with_gdb(&mut self, running: &Running, stops: u32) -> std::io::Result<()> {
        let mut gdb = Gdb::attach(running.pid())?;
        for _ in 0..stops {
            let Some(threads) = gdb.stop(|| std::thread::sleep(PAUSE)) else {
                break;
            };
            for (registers, frames) in threads {
                self.compare(running.pid(), registers, Some(&frames));
            }
        }
        Ok(())
    }
}

/// How many of their newest frames two stacks share.
fn shared(ours: &[u64], theirs: &[u64]) -> usize {
    let pairs = ours.iter().zip(theirs);
    pairs.take_while(|(one, other)| one == other).count()
}

/// A place in a file, or an address.
fn place(modules: &Modules, address: u64) -> String {
    match modules.find(address) {
        Some(module) => {
            let offset = address - module.start + module.offset;
            format!("{}+{offset:#x}", module.name())
        }
        None => format!("{address:#x}"),
    }
}

/// Where two stacks part: the last frame that they share, and what each says is its caller.
fn parting(modules: &Modules, ours: &[u64], end: NativeEnd, theirs: &[u64]) -> String {
    let same = shared(ours, theirs);
    let named = |address: Option<&u64>| address.map(|&it| place(modules, it));
    let last = named(same.checked_sub(1).and_then(|at| ours.get(at))).unwrap_or_default();
    let we = named(ours.get(same)).unwrap_or_else(|| format!("{end:?}"));
    let it = named(theirs.get(same)).unwrap_or_else(|| "nothing".to_owned());
    format!("at {last} we say {we}, it {it}")
}

/// Compares over a program, begun anew where it ends too soon.
fn of_program(command: &str, python: &Path, folder: &Path, plan: Plan) -> Seen {
    let mut walks = Walks::default();
    for (gdb, stops) in [(false, plan.ours), (true, plan.gdb)] {
        let before = walks.seen.samples;
        for _ in 0..4 {
            let left = stops.saturating_sub(walks.seen.samples - before);
            if left == 0 {
                break;
            }
            let mut running = Running::start(command, python, folder).unwrap();
            running.warm_up(plan.warm_up);
            if !gdb {
                walks.hold(&mut running, left);
            } else if walks.hold_with_gdb(&running, left).is_err() {
                break;
            }
        }
    }
    walks.seen
}

#[test]
fn stacks_of_programs_are_those_that_framehop_finds() {
    let folder = tempfile::tempdir().unwrap();
    programs::write_files(folder.path()).unwrap();
    for (name, command) in programs::SMALL {
        let which = Command::new("which").arg(name).output().unwrap();
        if !which.status.success() {
            skip(&format!("native stacks of {name}: it is not here"));
            continue;
        }
        let plan = Plan {
            ours: 20,
            gdb: 0,
            warm_up: Duration::from_millis(500),
        };
        let seen = of_program(command, Path::new("python3"), folder.path(), plan);
        let complete = seen.ends.get(&NativeEnd::Complete).copied();
        assert!(seen.samples >= 20, "{name}: {seen:?}");
        assert!(complete >= Some(18), "{name}: {seen:#?}");
        // Where a file says nothing framehop guesses.
        let guesses = |what: &String| what.contains("NoRule");
        assert!(seen.differences.keys().all(guesses), "{name}: {seen:#?}");
    }
}

/// The virtual environment in which `cargo xtask unwind` has installed wheels.
pub(crate) fn wheels() -> PathBuf {
    home().join(".cache/pyebpf/wheels")
}

/// `cargo xtask unwind`: `PYEBPF_ONLY` names programs, `PYEBPF_STOPS` says how often each is stopped.
#[test]
#[ignore = "takes minutes, gdb and wheels"]
fn corpus() {
    let folder = tempfile::tempdir().unwrap();
    programs::write_files(folder.path()).unwrap();
    let only = std::env::var("PYEBPF_ONLY").unwrap_or_default();
    let stops = std::env::var("PYEBPF_STOPS")
        .ok()
        .and_then(|it| it.parse().ok());
    let stops: u32 = stops.unwrap_or(60);
    let plan = Plan {
        ours: stops,
        gdb: stops,
        warm_up: Duration::from_secs(3),
    };
    let programs = programs::SMALL.iter().chain(programs::SYSTEM);
    let programs = programs.map(|&(name, command): &Program| (name, command.to_owned()));
    let pythons = programs::WHEELS.iter().map(|(name, setup, work)| {
        fs::write(
            folder.path().join(name),
            format!("{setup}\nwhile True:\n    {work}\n"),
        )
        .unwrap();
        let program = folder.path().join(name);
        (*name, format!("exec $WHEELS '{}'", program.display()))
    });
    println!("| program | samples | frames | complete | as framehop | beyond it | as gdb |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut all = Seen::default();
    let mut differences = Vec::new();
    for (name, command) in programs.chain(pythons) {
        if !only.is_empty() && !only.split(',').any(|it| it == name) {
            continue;
        }
        let seen = of_program(&command, &wheels().join("bin/python"), folder.path(), plan);
        if seen.samples == 0 {
            let said = fs::read_to_string(folder.path().join("stderr")).unwrap_or_default();
            println!(
                "| {name} | did not work: {} |",
                said.lines().last().unwrap_or_default()
            );
            continue;
        }
        println!("{}", row(name, &seen));
        differences.extend(
            seen.differences
                .iter()
                .map(|(what, often)| format!("{name}: {often} × {what}")),
        );
        all.samples += seen.samples;
        all.frames += seen.frames;
        for (&end, often) in &seen.ends {
            *all.ends.entry(end).or_default() += often;
        }
        all.framehop.add(seen.framehop);
        all.beyond += seen.beyond;
        all.gdb.add(seen.gdb);
    }
    println!("{}\n", row("all", &all));
    println!("{:?}\n", all.ends);
    for difference in differences {
        println!("- {difference}");
    }
    let complete = all.ends.get(&NativeEnd::Complete).copied().unwrap_or(0);
    let marks = [
        ("complete", complete, all.samples, 0.99),
        ("as framehop", all.framehop.equal, all.framehop.of, 0.999),
        ("as gdb", all.gdb.equal, all.gdb.of, 0.999),
    ];
    for (what, part, of, mark) in marks {
        assert!(
            f64::from(part) >= mark * f64::from(of),
            "{what}: {part} of {of}"
        );
    }
}

fn row(name: &str, seen: &Seen) -> String {
    let percent = |part: u32, of: u32| match of {
        0 => "–".to_owned(),
        _ => format!("{:.2} % of {of}", 100.0 * f64::from(part) / f64::from(of)),
    };
    let complete = seen.ends.get(&NativeEnd::Complete).copied().unwrap_or(0);
    format!(
        "| {name} | {} | {} | {} | {} | {} | {} |",
        seen.samples,
        seen.frames / seen.samples.max(1),
        percent(complete, seen.samples),
        percent(seen.framehop.equal, seen.framehop.of),
        seen.beyond,
        percent(seen.gdb.equal, seen.gdb.of)
    )
}
