//! The ring that a perf event shares with us: the kernel writes at the head, we read from the tail
//! and say how far we have come (include/uapi/linux/perf_event.h, `struct perf_event_mmap_page`).
//! Gives whole records, copied out; what they say is `record`'s.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use perf_event_open_sys::bindings::perf_event_mmap_page;

/// Bytes of records that a ring holds: some hundred. A power of two.
pub(super) const DATA_BYTES: usize = 64 << 10;
/// The page before them, which has the head and the tail.
const CONTROL_BYTES: usize = 4096;
/// Bytes of a record's header, whose last two are its size.
const HEADER: usize = 8;

/// Longest record that is asked for: a mapping with the longest path.
const RECORD_MAX: u64 = 4096 + 128;

/// A perf event with its ring. Dropping it ends both.
pub(super) struct Ring {
    fd: OwnedFd,
    control: NonNull<perf_event_mmap_page>,
    /// Working memory: one record.
    record: Vec<u8>,
}

impl Ring {
    /// Maps the ring of the event `fd`.
    ///
    /// # Errors
    /// When the kernel refuses: its limit on locked memory is spent.
    pub(super) fn map(fd: OwnedFd) -> io::Result<Ring> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                CONTROL_BYTES + DATA_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let control = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Ring {
            fd,
            control,
            record: Vec::new(),
        })
    }

    /// Gives each record that is there now to `take`; false when some may be lost: the ring was full
    /// (the kernel says so itself only with its next record, which may be a long time), or broken.
    pub(super) fn read(&mut self, take: &mut impl FnMut(&[u8])) -> bool {
        let control = self.control.as_ptr();
        // SAFETY: both words lie in the mapped page, are aligned, and the kernel writes the first
        // and reads the second as we do: whole, in this order.
        let (head, tail) = unsafe {
            (
                AtomicU64::from_ptr(&raw mut (*control).data_head),
                AtomicU64::from_ptr(&raw mut (*control).data_tail),
            )
        };
        // SAFETY: the data begin with the page after the control page, in the same mapping.
        let data = unsafe { self.control.as_ptr().cast::<u8>().add(CONTROL_BYTES) };
        let from = tail.load(Ordering::Relaxed);
        // Acquire: what lies before the head was written before the head.
        let to = head.load(Ordering::Acquire);
        // SAFETY: the kernel does not write between tail and head.
        let whole = unsafe { records(data, from, to, &mut self.record, take) };
        // Release: what we have read was read before the kernel may write over it.
        tail.store(to, Ordering::Release);
        whole && to.wrapping_sub(from) <= DATA_BYTES as u64 - RECORD_MAX
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping of `map`, to which nothing refers any more.
        unsafe { libc::munmap(self.control.as_ptr().cast(), CONTROL_BYTES + DATA_BYTES) };
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Gives each record between `from` and `to` of the ring at `data` to `take`, by way of `record`;
/// false when a size in it is absurd.
///
/// # Safety
/// `data` is the beginning of [`DATA_BYTES`] readable bytes, and nobody writes those between `from`
/// and `to`.
unsafe fn records(
    data: *const u8,
    mut from: u64,
    to: u64,
    record: &mut Vec<u8>,
    take: &mut impl FnMut(&[u8]),
) -> bool {
    if to.wrapping_sub(from) > DATA_BYTES as u64 {
        return false;
    }
    while from != to {
        let left = to.wrapping_sub(from) as usize;
        if left < HEADER {
            return false;
        }
        // SAFETY: of the caller, and `left` bytes lie before `to`.
        unsafe { copy(data, from, HEADER, record) };
        let size = usize::from(u16::from_ne_bytes([record[6], record[7]]));
        if size < HEADER || size > left {
            return false;
        }
        // SAFETY: as above.
        unsafe { copy(data, from, size, record) };
        take(record);
        from = from.wrapping_add(size as u64);
    }
    true
}

/// Copies `length` bytes from the ring at `data`, from `at` on, round its end.
///
/// # Safety
/// As for [`records`]; `length` is at most [`DATA_BYTES`].
unsafe fn copy(data: *const u8, at: u64, length: usize, into: &mut Vec<u8>) {
    let at = at as usize & (DATA_BYTES - 1);
    let first = length.min(DATA_BYTES - at);
    into.clear();
    into.resize(length, 0);
    // SAFETY: both parts lie in the ring, by the mask and by `first`; `into` has `length` bytes.
    unsafe {
        ptr::copy_nonoverlapping(data.add(at), into.as_mut_ptr(), first);
        ptr::copy_nonoverlapping(data, into.as_mut_ptr().add(first), length - first);
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    fn read(data: &[u8], from: u64, to: u64) -> (bool, Vec<Vec<u8>>) {
        assert_eq!(data.len(), DATA_BYTES);
        let (mut found, mut scratch) = (Vec::new(), Vec::new());
        // SAFETY: `data` is a slice of that length.
        let whole = unsafe {
            records(data.as_ptr(), from, to, &mut scratch, &mut |bytes| {
                found.push(bytes.to_vec());
            })
        };
        (whole, found)
    }

    #[test]
    fn records_are_given_whole_round_the_end() {
        let wanted = [record(9, 1, &[1; 24]), record(8, 2, &[2; 8])];
        let stream = wanted.concat();
        for from in [0, DATA_BYTES - 4, DATA_BYTES - 20, 5 * DATA_BYTES - 36] {
            let mut data = vec![0xee; DATA_BYTES];
            for (at, byte) in stream.iter().enumerate() {
                data[(from + at) % DATA_BYTES] = *byte;
            }
            let to = (from + stream.len()) as u64;
            assert_eq!(read(&data, from as u64, to), (true, wanted.to_vec()));
            assert_eq!(read(&data, to, to), (true, vec![]));
        }
    }

    #[test]
    fn absurd_sizes_end_the_reading() {
        let mut data = vec![0; DATA_BYTES];
        let good = record(9, 1, &[1; 8]);
        data[..16].copy_from_slice(&good);
        // A size of 0 follows.
        assert_eq!(read(&data, 0, 40), (false, vec![good.clone()]));
        // A size beyond the head, and a head that cuts a header.
        data[22] = 0xff;
        assert_eq!(read(&data, 0, 40), (false, vec![good.clone()]));
        assert_eq!(read(&data, 0, 20), (false, vec![good]));
        assert_eq!(read(&data, 0, DATA_BYTES as u64 + 1), (false, vec![]));
        assert_eq!(read(&data, 8, 0), (false, vec![]));
    }

    #[test]
    fn any_bytes_are_read_within_bounds() {
        let mut state = 1_u64;
        let mut data = vec![0; DATA_BYTES];
        for round in 0..200 {
            for byte in &mut data {
                // xorshift64: the same bytes on every machine.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state as u8;
            }
            let from = round * 7919;
            let (_, found) = read(&data, from, from + state % DATA_BYTES as u64);
            for bytes in found {
                let _ = super::super::record::parse(&bytes);
            }
        }
    }
}
