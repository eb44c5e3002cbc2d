//! Reads the memory of another process with `process_vm_readv`, which neither stops nor touches it.
//! Addresses come from that process and are not trusted: a bad one is an absence, never a fault.

use std::io;

use profiler_ebpf::python::Memory;

/// The memory of one process, by its pid in our own PID namespace. Holds no descriptor: a process
/// that is gone reads as absent memory.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory {
    pid: libc::pid_t,
}

impl ProcessMemory {
    /// The memory of process `pid`; nothing is read or checked yet.
    pub fn new(pid: u32) -> ProcessMemory {
        // A pid above i32::MAX does not exist; 0 would be ourselves, so it is made invalid too.
        let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0);
        ProcessMemory {
            pid: pid.unwrap_or(-1),
        }
    }

    /// Fills `into` from `address`, or says why it could not; a part of it is not enough.
    pub fn try_read(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
        if into.is_empty() {
            return Ok(());
        }
        let local = libc::iovec {
            iov_base: into.as_mut_ptr().cast(),
            iov_len: into.len(),
        };
        let remote = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: into.len(),
        };
        // SAFETY: `local` describes `into`, which is ours to write for the whole call; `remote` is
        // only interpreted by the kernel, in the other process's address space.
        let read = unsafe { libc::process_vm_readv(self.pid, &local, 1, &remote, 1, 0) };
        match usize::try_from(read) {
            Ok(read) if read == into.len() => Ok(()),
            Ok(_) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

impl Memory for ProcessMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        self.try_read(address, into).is_ok()
    }
}

/// The `u32` at `address`.
pub fn read_u32(memory: &impl Memory, address: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    memory
        .read(address, &mut bytes)
        .then(|| u32::from_le_bytes(bytes))
}

/// The `u64` or pointer at `address`.
pub fn read_u64(memory: &impl Memory, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory
        .read(address, &mut bytes)
        .then(|| u64::from_le_bytes(bytes))
}

/// The `length` bytes at `address`; none of them when there are more than `limit`, so that a wrong
/// length can't make us allocate.
pub fn read_bytes(
    memory: &impl Memory,
    address: u64,
    length: u64,
    limit: usize,
) -> Option<Vec<u8>> {
    let length = usize::try_from(length).ok().filter(|n| *n <= limit)?;
    let mut bytes = vec![0; length];
    (length == 0 || memory.read(address, &mut bytes)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ProcessMemory {
        ProcessMemory::new(std::process::id())
    }

    #[test]
    fn what_is_there_is_read_as_it_is() {
        let words = [0x0123_4567_89ab_cdef_u64, u64::MAX];
        let address = words.as_ptr() as u64;
        assert_eq!(read_u64(&own(), address), Some(words[0]));
        assert_eq!(read_u32(&own(), address), Some(0x89ab_cdef));
        assert_eq!(read_bytes(&own(), address + 8, 8, 8), Some(vec![0xff; 8]));
    }

    #[test]
    fn what_is_not_there_is_absent() {
        assert_eq!(read_u64(&own(), 0), None);
        assert_eq!(read_u64(&own(), u64::MAX), None);
        assert_eq!(read_u64(&own(), u64::MAX - 4095), None);
        for no_such_pid in [0, u32::MAX] {
            let words = [1_u64];
            let memory = ProcessMemory::new(no_such_pid);
            assert_eq!(read_u64(&memory, words.as_ptr() as u64), None);
        }
    }

    #[test]
    fn more_than_the_limit_is_not_even_tried() {
        let words = [1_u64; 2];
        let address = words.as_ptr() as u64;
        assert_eq!(read_bytes(&own(), address, 16, 15), None);
        assert_eq!(read_bytes(&own(), address, u64::MAX, usize::MAX >> 8), None);
        assert_eq!(read_bytes(&own(), 0, 0, 0), Some(vec![]));
    }

    #[test]
    fn a_part_is_not_taken_for_the_whole() {
        let (read_write, private) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping of two pages at an address of the kernel's choice.
        let pages = unsafe { libc::mmap(std::ptr::null_mut(), 8192, read_write, private, -1, 0) };
        assert_ne!(pages, libc::MAP_FAILED);
        let address = pages as u64;
        // SAFETY: the second page of the mapping above, which nothing refers to.
        let ended = unsafe { libc::munmap((address + 4096) as *mut libc::c_void, 4096) };
        assert_eq!(ended, 0);
        assert_eq!(
            read_bytes(&own(), address + 4080, 16, 16),
            Some(vec![0; 16])
        );
        assert_eq!(read_bytes(&own(), address + 4088, 16, 16), None);
        // SAFETY: the first page, likewise.
        unsafe { libc::munmap(pages, 4096) };
    }
}
