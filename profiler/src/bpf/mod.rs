//! The kernel program from the daemon's side: load and attach it, write its maps, read its records.
//! It knows bytes and numbers; what a record means is `sample`'s.

mod btf;
pub(crate) mod fuzz;
mod log;
mod memlock;
pub mod namespace;
mod perf;
mod programs;
mod registers;
mod sideband;
mod tables;

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::PerfEvent,
};
use profiler_ebpf::{COUNTERS, Counter, Frame, Layout, MAX_FRAMES, Outcome, Sample, Stack, Target};

pub use btf::KERNEL as KERNEL_BTF;
use perf::{online_cpus, possible_cpus, wobble};
pub use programs::Steps;
use programs::{Programs, program};
use sideband::Sideband;
pub use sideband::{FileId, Mapping};
pub use tables::{Tables, WORDS_MAX};

/// The kernel object, built by `build.rs`.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pyebpf-kernel"));

/// Bounds of the ring buffer's size in bytes; within them it holds half a second of the deepest
/// samples, each with a stack of its own.
const RING_MIN: u64 = 1 << 20;
const RING_MAX: u64 = 16 << 20;
/// The smallest and the largest ring buffer that can be asked for: several of the deepest samples,
/// and what the kernel takes (a power of two that fits 32 bits).
pub const RING_SMALLEST: u64 = 64 << 10;
pub const RING_LARGEST: u64 = 1 << 31;

/// How many sampling periods pass at least before a CPU gets a new one: setting it begins a period
/// anew, which loses half a one on average.
const PERIODS_PER_TUNE: u32 = 90;
/// What the kernel program is told when it is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Samples per second and CPU.
    pub rate: u32,
    /// Whether processes that nobody named are of interest.
    pub all_processes: bool,
    /// Whether the children of named processes are followed.
    pub follow_children: bool,
    /// Whether rare events are logged through aya-log.
    pub log: bool,
    /// Size of the ring buffer in bytes, a power of two and at least [`RING_SMALLEST`]; by rate and
    /// number of CPUs when `None`.
    pub ring: Option<u32>,
    /// How frames are stepped over.
    pub steps: Steps,
    /// Whether native frames are walked, too.
    pub native: bool,
    /// Whether the kernel's frames are taken, too.
    pub kernel: bool,
    /// Whether the program tells how long it takes: [`Counter::Nanoseconds`].
    pub timed: bool,
}

/// The loaded programs and their maps. Dropping it detaches everything.
pub struct Kernel {
    /// Samples per second and CPU.
    rate: u32,
    targets: HashMap<MapData, u32, Target>,
    layouts: Array<MapData, Layout>,
    counts: PerCpuArray<MapData, u64>,
    periods: Array<MapData, u64>,
    epoch: Array<MapData, u64>,
    records: RingBuf<MapData>,
    /// How often `tick` was called, and how often that changed the periods.
    ticks: u32,
    round: u32,
    /// By CPU.
    events: BTreeMap<u32, perf::Event>,
    sideband: Sideband,
    log: Option<log::Reader>,
    programs: Programs,
    /// Where native frames are walked.
    tables: Option<Tables>,
    ebpf: Ebpf,
}

impl Kernel {
    /// Loads the programs, attaches those that follow processes, and listens to new mappings. Sampling
    /// begins with [`start`](Self::start).
    ///
    /// # Errors
    /// When the kernel refuses: the verifier's log is in the error.
    pub fn load(settings: Settings) -> Result<Kernel> {
        let limit = memlock::Raised::raise();
        Self::load_within(settings).map_err(|error| match &limit {
            Some(limit) => limit.explain(error),
            None => error,
        })
    }

    fn load_within(settings: Settings) -> Result<Kernel> {
        let btf = btf::Btf::of_kernel()?;
        let fsbase =
            btf.offset("task_struct", "thread")? + btf.offset("thread_struct", "fsbase")?;
        let tgid = btf.offset("task_struct", "tgid")?;
        let signal = btf.offset("task_struct", "signal")?;
        let live = btf.offset("signal_struct", "live")?;
        let mut globals = namespace::globals(&btf)?;
        if settings.native {
            globals.append(&mut registers::globals(&btf)?);
        }
        drop(btf);
        let online = online_cpus()?;
        let cpus = possible_cpus()?;
        let ring = match settings.ring {
            Some(bytes) => bytes,
            None => ring_bytes(settings.rate, online.len()),
        };
        let all = u32::from(settings.all_processes);
        let follow = u32::from(settings.follow_children);
        let log_level = if settings.log { log::EVERYTHING } else { 0 };
        let mut loader = EbpfLoader::new();
        for (name, value) in &globals {
            loader.override_global(name, value, true);
        }
        if settings.native {
            for (name, size) in tables::SIZES {
                loader.map_max_entries(name, size);
            }
        }
        let native = u32::from(settings.native);
        let kernel = u32::from(settings.kernel);
        let mut ebpf = loader
            .override_global("TASK_FSBASE", &fsbase, true)
            .override_global("TASK_TGID", &tgid, true)
            .override_global("TASK_SIGNAL", &signal, true)
            .override_global("SIGNAL_LIVE", &live, true)
            .override_global("HALF_FULL", &(ring / 2), true)
            .override_global("CPUS", &cpus, true)
            .override_global("ALL_PROCESSES", &all, true)
            .override_global("FOLLOW_CHILDREN", &follow, true)
            .override_global("NATIVE", &native, true)
            .override_global("KERNEL", &kernel, true)
            .override_global("TIMED", &u32::from(settings.timed), true)
            .override_global(log::LEVEL, &log_level, true)
            .map_max_entries("RECORDS", ring)
            .map_max_entries("PERIODS", cpus)
            .load(OBJECT)
            .context("the kernel refused the program's maps")?;
        let programs = Programs::load(&mut ebpf, settings.steps)?;
        let tables = settings
            .native
            .then(|| Tables::take(&mut ebpf))
            .transpose()?;
        let mut sideband = Sideband::new()?;
        sideband.follow(&online)?;
        Ok(Kernel {
            rate: settings.rate,
            targets: HashMap::try_from(map(&mut ebpf, "TARGETS")?)?,
            layouts: Array::try_from(map(&mut ebpf, "LAYOUTS")?)?,
            counts: PerCpuArray::try_from(map(&mut ebpf, "COUNTS")?)?,
            periods: Array::try_from(map(&mut ebpf, "PERIODS")?)?,
            epoch: Array::try_from(map(&mut ebpf, "EPOCH")?)?,
            records: RingBuf::try_from(map(&mut ebpf, "RECORDS")?)?,
            ticks: 0,
            round: 0,
            events: BTreeMap::new(),
            sideband,
            log: settings
                .log
                .then(|| log::Reader::open(&mut ebpf))
                .transpose()?,
            programs,
            tables,
            ebpf,
        })
    }

    /// Samples per second and CPU.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Takes so many samples per second and CPU from now on.
    ///
    /// # Errors
    /// As for [`tick`](Self::tick).
    pub fn set_rate(&mut self, rate: u32) -> Result<()> {
        self.rate = rate.max(1);
        self.tune()
    }

    /// Whether native frames are walked.
    pub fn walks_native(&self) -> bool {
        self.tables.is_some()
    }

    /// The tables from which native frames are walked.
    ///
    /// # Errors
    /// When they are not.
    pub fn tables(&mut self) -> Result<&mut Tables> {
        self.tables.as_mut().context("native frames are not walked")
    }

    /// How the loaded program steps from frame to frame: by a loop or by calls.
    pub fn steps(&self) -> Steps {
        self.programs.steps
    }

    /// Prints to stderr what the program has logged, if that was asked for.
    pub fn flush_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// Starts sampling on every CPU that is online.
    ///
    /// # Errors
    /// When a perf event can't be opened.
    pub fn start(&mut self) -> Result<()> {
        self.follow_cpus()
    }

    /// Once a second: follows CPUs that have come or gone, and gives each its next sampling period
    /// near the nominal one (see [`wobble`]) when it is time to.
    ///
    /// # Errors
    /// When the kernel refuses a perf event or its period, as it does for a CPU that goes away at
    /// this moment: the rest goes on.
    pub fn tick(&mut self) -> Result<()> {
        self.ticks = self.ticks.wrapping_add(1);
        let apart = PERIODS_PER_TUNE.div_ceil(self.rate);
        if self.ticks.is_multiple_of(apart) {
            self.round = self.round.wrapping_add(1);
            self.tune()?;
        }
        self.follow_cpus()
    }

    fn tune(&mut self) -> Result<()> {
        for (&cpu, event) in &self.events {
            let period = wobble(self.rate, cpu, self.round);
            event.set_period(period)?;
            self.periods.set(cpu, period, 0)?;
        }
        Ok(())
    }

    fn follow_cpus(&mut self) -> Result<()> {
        let sample: &mut PerfEvent = program(&mut self.ebpf, self.programs.sample)?;
        let program = sample.fd()?;
        let online = online_cpus()?;
        // The clock of a CPU that went away stays dead when the CPU comes back.
        self.events.retain(|cpu, _| online.contains(cpu));
        for &cpu in &online {
            if !self.events.contains_key(&cpu) {
                let period = wobble(self.rate, cpu, self.round);
                self.periods.set(cpu, period, 0)?;
                let event = perf::Event::open(cpu, period, program)?;
                self.events.insert(cpu, event);
            }
        }
        self.sideband.follow(&online)
    }

    /// Stops sampling; what is in the ring buffer can still be read.
    pub fn stop(&mut self) {
        self.events.clear();
    }

    /// Makes `target` known under `pid`.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_target(&mut self, pid: u32, target: &Target) -> Result<()> {
        self.targets
            .insert(pid, target, 0)
            .with_context(|| format!("cannot add process {pid} to the kernel's map of targets"))
    }

    /// What the kernel has under `pid`.
    pub fn target(&self, pid: u32) -> Option<Target> {
        self.targets.get(&pid, 0).ok()
    }

    /// Forgets `pid`; it is no error when it is not there.
    pub fn remove_target(&mut self, pid: u32) {
        // The kernel's own exit program may have been quicker.
        let _ = self.targets.remove(&pid);
    }

    /// Sets the layout at `index`, below [`profiler_ebpf::MAX_LAYOUTS`].
    ///
    /// # Errors
    /// When the index is out of range.
    pub fn set_layout(&mut self, index: u32, layout: &Layout) -> Result<()> {
        self.layouts
            .set(index, layout, 0)
            .with_context(|| format!("cannot set layout {index}"))
    }

    /// Makes the kernel forget which stacks it has sent: none has the same hash in another `epoch`.
    ///
    /// # Errors
    /// When the kernel refuses, which it has no reason to.
    pub fn set_epoch(&mut self, epoch: u64) -> Result<()> {
        let set = self.epoch.set(0, epoch, 0);
        set.context("cannot make the kernel send its stacks anew")
    }

    /// The next record's bytes go to `take`; false when there is none.
    pub fn next_record(&mut self, take: &mut impl FnMut(&[u8])) -> bool {
        match self.records.next() {
            Some(record) => {
                take(&record);
                true
            }
            None => false,
        }
    }

    /// Moves the executable mappings that processes have made since the last call to `mappings`.
    pub fn read_mappings(&mut self, mappings: &mut Vec<Mapping>) {
        self.sideband.read(mappings);
    }

    /// How many events of processes did not reach us: mappings, and what the programs tell.
    ///
    /// # Errors
    /// When the map of counters can't be read.
    pub fn events_lost(&self) -> Result<u64> {
        let told = self.counts()?.counter(Counter::EventLost);
        Ok(told + self.sideband.lost())
    }

    /// A descriptor that is readable when new mappings want to be read before the daemon's own
    /// timer is due.
    ///
    /// # Errors
    /// When there are no more descriptors to be had.
    pub fn mappings_fd(&self) -> Result<OwnedFd> {
        let fd = self.sideband.as_fd().try_clone_to_owned();
        fd.context("cannot duplicate the descriptor of the mappings' rings")
    }

    /// A descriptor that is readable when a record wants to be read before the daemon's own timer
    /// is due.
    ///
    /// # Errors
    /// When there are no more descriptors to be had.
    pub fn records_fd(&self) -> Result<OwnedFd> {
        let fd = self.records.as_fd().try_clone_to_owned();
        fd.context("cannot duplicate the ring buffer's descriptor")
    }

    /// What the kernel counted until now, summed over the CPUs.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn counts(&self) -> Result<Counts> {
        let mut counts = Counts::default();
        for slot in 0..COUNTERS {
            let values = self.counts.get(&slot, 0)?;
            counts.slots[slot as usize] = values.iter().sum();
        }
        Ok(counts)
    }
}

/// A reading of the kernel's counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    slots: [u64; COUNTERS as usize],
}

impl Counts {
    /// How often this was counted.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.slots[counter as usize]
    }

    /// How many walks ended so.
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.slots[outcome as usize]
    }

    /// How many walks there were.
    pub fn walks(&self) -> u64 {
        let outcomes = Outcome::ALL.into_iter();
        outcomes.map(|outcome| self.outcome(outcome)).sum()
    }

    /// A reading with these values in these slots.
    #[cfg(test)]
    pub fn of(values: impl IntoIterator<Item = (u32, u64)>) -> Counts {
        let mut counts = Counts::default();
        for (slot, value) in values {
            counts.slots[slot as usize] = value;
        }
        counts
    }
}

fn ring_bytes(rate: u32, cpus: usize) -> u32 {
    let deepest =
        (size_of::<Stack>() + MAX_FRAMES * size_of::<Frame>() + size_of::<Sample>()) as u64;
    let wanted = deepest * u64::from(rate) * cpus as u64 / 2;
    let bytes = wanted.clamp(RING_MIN, RING_MAX).next_power_of_two();
    u32::try_from(bytes).expect("RING_MAX fits")
}

fn map(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .ok_or_else(|| anyhow!("the kernel object has no map {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_buffer_follows_rate_and_cpus_within_bounds() {
        assert_eq!(ring_bytes(1, 1), 1 << 20);
        assert_eq!(ring_bytes(99, 2), 2 << 20);
        assert_eq!(ring_bytes(999, 64), 16 << 20);
    }
}
