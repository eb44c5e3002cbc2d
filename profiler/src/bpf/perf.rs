//! Perf events: one CPU clock per CPU that runs the kernel program, with a period that wobbles so
//! that no program keeps in step with it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail};
use perf_event_open_sys::{self as sys, bindings::perf_event_attr};

/// Kernel list of CPUs that are online, such as `0-3,8`.
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// Those that this machine could have.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// Most CPUs that a kernel can have (`NR_CPUS` of x86-64 with MAXSMP).
const CPUS_MAX: u32 = 8192;

/// Opens an event that the kernel itself counts (`PERF_COUNT_SW_*`), of all processes on one CPU.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn software_event(
    cpu: u32,
    kind: sys::bindings::perf_sw_ids,
    set: impl FnOnce(&mut perf_event_attr),
) -> Result<OwnedFd> {
    let mut attr = perf_event_attr {
        size: u32::try_from(size_of::<perf_event_attr>()).expect("a small struct"),
        type_: sys::bindings::PERF_TYPE_SOFTWARE,
        config: kind.into(),
        ..perf_event_attr::default()
    };
    set(&mut attr);
    let cpu = i32::try_from(cpu).context("a CPU number")?;
    let flags = sys::bindings::PERF_FLAG_FD_CLOEXEC.into();
    // SAFETY: `attr` is a valid attribute of the size that it states; the other arguments are
    // numbers, and a returned descriptor is ours alone.
    unsafe {
        let fd = sys::perf_event_open(&mut attr, -1, cpu, -1, flags);
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("perf_event_open");
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// An open CPU clock on one CPU. Dropping it stops it.
pub(super) struct Event {
    fd: OwnedFd,
}

impl Event {
    /// Opens a clock that fires every `period` nanoseconds while `cpu` is not idle, and runs
    /// `program` each time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn open(cpu: u32, period: u64, program: &impl AsFd) -> Result<Event> {
        let fd = software_event(cpu, sys::bindings::PERF_COUNT_SW_CPU_CLOCK, |attr| {
            attr.__bindgen_anon_1.sample_period = period;
            attr.set_disabled(1);
            // The kernel then skips the idle task, which is never a target.
            attr.set_exclude_idle(1);
        })
        .with_context(|| format!("cannot open a CPU clock on CPU {cpu}"))?;
        let program = program.as_fd().as_raw_fd();
        // SAFETY: both descriptors are open.
        if unsafe { sys::ioctls::SET_BPF(fd.as_raw_fd(), program as _) } < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot attach the program to the clock of CPU {cpu}"));
        }
        // SAFETY: the descriptor is open.
        if unsafe { sys::ioctls::ENABLE(fd.as_raw_fd(), 0) } < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot start the clock of CPU {cpu}"));
        }
        Ok(Event { fd })
    }

    /// Changes the sampling period, in nanoseconds.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn set_period(&self, period: u64) -> Result<()> {
        // SAFETY: the descriptor is open, and the kernel copies the number during the call.
        if unsafe { sys::ioctls::PERIOD(self.fd.as_raw_fd(), &raw const period as _) } < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot set a sampling period of {period} ns"));
        }
        Ok(())
    }
}

/// A sampling period in nanoseconds, 4 to 15 % off the nominal one.
///
/// A program with a rhythm of its own would, on a fixed grid, always be caught at the same beat.
/// A period that is a few per cent off walks through all of the rhythm's phases in a fraction of a
/// second, evenly, which a period drawn anew each time does not. Longer and shorter rounds
/// alternate with nearly equal weight, so the average rate stays the nominal one.
pub(super) fn wobble(rate: u32, cpu: u32, round: u32) -> u64 {
    let nominal = 1e9 / f64::from(rate.max(1));
    // The golden ratio's multiples cover [0, 1) evenly, whatever the starting point.
    let pair = f64::from(round / 2) + 17.0 * f64::from(cpu);
    let off = 0.04 + 0.11 * (pair * 0.618_033_988_749_895).fract();
    let longer = round.wrapping_add(cpu).is_multiple_of(2);
    // In one pair of rounds of equal length the rates 1 + off and 1 - off average to the nominal.
    let factor = if longer { 1.0 - off } else { 1.0 + off };
    (nominal / factor) as u64
}

/// The CPUs that are online.
///
/// # Errors
/// When the kernel's list can't be read or is not a list.
pub(super) fn online_cpus() -> Result<Vec<u32>> {
    read_list(ONLINE)
}

/// One more than the highest number of a CPU that this machine could have.
///
/// # Errors
/// As for [`online_cpus`].
pub(super) fn possible_cpus() -> Result<u32> {
    let highest = read_list(POSSIBLE)?.into_iter().max();
    Ok(highest.unwrap_or(0) + 1)
}

fn read_list(path: &str) -> Result<Vec<u32>> {
    let list = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    parse_list(list.trim()).with_context(|| format!("in {path}"))
}

fn parse_list(list: &str) -> Result<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse().with_context(|| format!("not a CPU: {text:?}"));
        let (first, last): (u32, u32) = (number(first)?, number(last)?);
        if first > last || last >= CPUS_MAX {
            bail!("not a range of CPUs: {part:?}");
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lists_of_cpus() {
        assert_eq!(parse_list("0-3,8").unwrap(), [0, 1, 2, 3, 8]);
        assert_eq!(parse_list("5").unwrap(), [5]);
        for bad in ["", "a", "3-1", "0-99999", "1-", "-1"] {
            assert!(parse_list(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn periods_wobble_around_the_nominal_one() {
        for cpu in 0..8 {
            let periods: Vec<f64> = (0..200)
                .map(|round| wobble(100, cpu, round) as f64)
                .collect();
            for period in &periods {
                let off = (1e7 / period - 1.0).abs();
                assert!((0.039..0.151).contains(&off), "{period}");
            }
            let rate = periods.iter().map(|period| 1e9 / period).sum::<f64>() / 200.0;
            assert!((rate - 100.0).abs() < 0.01, "an average rate of {rate}");
        }
    }
}
