//! New executable mappings of every process, as the kernel tells them beside a perf event that counts
//! nothing: one event and one small ring for each CPU. Costs no system call of anybody anything; a
//! process is named by its pid in our own PID namespace. What a mapping means is `target`'s.

pub(super) mod record;
mod ring;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use perf_event_open_sys as sys;

pub use record::{FileId, Mapping};
use record::{Record, parse};
use ring::{DATA_BYTES, Ring};

use super::perf;

/// How full a ring is when the daemon is woken; until then it comes by itself.
const WAKE_AT: u32 = DATA_BYTES as u32 / 4;

/// The rings of all CPUs.
pub(super) struct Sideband {
    rings: BTreeMap<u32, Ring>,
    /// Readable when a ring fills up.
    epoll: OwnedFd,
    /// Records that were lost or not understood.
    lost: u64,
}

impl Sideband {
    /// Listens on no CPU yet.
    ///
    /// # Errors
    /// When there are no more descriptors to be had.
    pub(super) fn new() -> Result<Sideband> {
        // SAFETY: takes a number; a returned descriptor is ours alone.
        let epoll = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error()).context("cannot make an epoll descriptor");
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Sideband {
            rings: BTreeMap::new(),
            epoll,
            lost: 0,
        })
    }

    /// Listens on these CPUs, and no others. What a CPU told before it was listened to counts as
    /// lost, except at the first call.
    ///
    /// # Errors
    /// When the kernel refuses an event or its ring.
    pub(super) fn follow(&mut self, cpus: &[u32]) -> Result<()> {
        let first = self.rings.is_empty();
        self.rings.retain(|cpu, _| cpus.contains(cpu));
        for &cpu in cpus {
            if self.rings.contains_key(&cpu) {
                continue;
            }
            let ring = Ring::map(open(cpu)?).with_context(|| {
                format!(
                    "cannot map the ring of CPU {cpu}; \
                     `sudo sysctl kernel.perf_event_mlock_kb=516` sets the usual limit"
                )
            })?;
            self.wake_for(&ring)?;
            self.rings.insert(cpu, ring);
            self.lost += u64::from(!first);
        }
        Ok(())
    }

    fn wake_for(&self, ring: &Ring) -> Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: 0,
        };
        // SAFETY: both descriptors are open; `event` is read during the call. A ring that is
        // dropped closes its descriptor, which takes it out of the set.
        let added = unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                ring.as_fd().as_raw_fd(),
                &mut event,
            )
        };
        if added < 0 {
            return Err(io::Error::last_os_error()).context("cannot wait for a ring");
        }
        Ok(())
    }

    /// Moves what the rings hold to `mappings`: those of files, by user programs.
    pub(super) fn read(&mut self, mappings: &mut Vec<Mapping>) {
        let mut lost = 0;
        for ring in self.rings.values_mut() {
            let whole = ring.read(&mut |bytes| match parse(bytes) {
                Some(Record::Mapped(mapping)) => mappings.push(mapping),
                Some(Record::Lost(count)) => lost += count.max(1),
                Some(Record::Other) => {}
                None => lost += 1,
            });
            lost += u64::from(!whole);
        }
        self.lost += lost;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        // SAFETY: `events` is writable for its length; this takes back the readiness of rings that
        // were read just now, without waiting.
        unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as i32,
                0,
            )
        };
    }

    /// How many records did not arrive, at least, until now.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

impl AsFd for Sideband {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// An event that never fires on its own, on one CPU, for all processes.
fn open(cpu: u32) -> Result<OwnedFd> {
    perf::software_event(cpu, sys::bindings::PERF_COUNT_SW_DUMMY, |attr| {
        // `mmap` asks for executable mappings, `mmap2` for the longer record (kernel/events/core.c,
        // perf_event_mmap_match and perf_event_mmap_output).
        attr.set_mmap(1);
        attr.set_mmap2(1);
        attr.set_watermark(1);
        attr.__bindgen_anon_2.wakeup_watermark = WAKE_AT;
    })
    .with_context(|| format!("cannot listen to the mappings of CPU {cpu}"))
}
