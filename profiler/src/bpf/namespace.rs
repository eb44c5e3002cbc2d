//! The PID namespace that pyebpf runs in: which one it is, and what the kernel program must know to
//! give the ids of that one. In the initial namespace the kernel does so by itself.

use std::fs;

use anyhow::{Context as _, Result};

use super::btf::Btf;

/// Where the kernel tells our own namespace, as `pid:[INODE]`.
const OWN: &str = "/proc/self/ns/pid";
/// Inode of the initial one: `PROC_PID_INIT_INO`, include/linux/proc_ns.h.
const INITIAL: u32 = 0xefff_fffc;
/// Index of a process's id in `signal_struct.pids`: `PIDTYPE_TGID`, include/linux/pid.h (`pid_types.h`
/// from 6.8 on). Each is a pointer.
const PIDTYPE_TGID: u32 = 1;
const POINTER: u32 = size_of::<u64>() as u32;

/// The inode of our own PID namespace: never 0, and no two have the same at a time.
///
/// # Errors
/// When `/proc` does not tell it.
pub fn own() -> Result<u32> {
    let link = fs::read_link(OWN).with_context(|| format!("cannot read {OWN}"))?;
    let link = link.to_string_lossy();
    inode(&link).with_context(|| format!("{OWN} is {link:?}, not a PID namespace"))
}

fn inode(link: &str) -> Option<u32> {
    let digits = link.strip_prefix("pid:[")?.strip_suffix(']')?;
    digits.parse().ok()
}

/// Whether the namespace of this inode is the one that the kernel's own ids are of.
pub fn is_initial(inode: u32) -> bool {
    inode == INITIAL
}

/// The kernel program's numbers by their names: none in the initial namespace.
///
/// # Errors
/// When `/proc` does not tell the namespace, or the kernel not how it keeps ids.
pub(super) fn globals(btf: &Btf) -> Result<Vec<(&'static str, u32)>> {
    let own = own()?;
    if is_initial(own) {
        return Ok(Vec::new());
    }
    let process = btf.offset("signal_struct", "pids")? + PIDTYPE_TGID * POINTER;
    let inum = btf.offset("pid_namespace", "ns")? + btf.offset("ns_common", "inum")?;
    Ok(vec![
        ("PID_NAMESPACE", own),
        ("TASK_PID", btf.offset("task_struct", "thread_pid")?),
        ("SIGNAL_PID", process),
        ("PID_LEVEL", btf.offset("pid", "level")?),
        ("PID_NUMBERS", btf.offset("pid", "numbers")?),
        ("UPID_SIZE", btf.size("upid")?),
        ("UPID_NR", btf.offset("upid", "nr")?),
        ("UPID_NS", btf.offset("upid", "ns")?),
        ("NAMESPACE_INUM", inum),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_known_by_its_inode() {
        assert_eq!(inode("pid:[4026531836]"), Some(INITIAL));
        assert!(is_initial(INITIAL) && !is_initial(4_026_532_299));
        for other in ["", "pid:[]", "mnt:[7]", "pid:[7", "pid:[99999999999]"] {
            assert_eq!(inode(other), None, "{other}");
        }
        assert!(own().unwrap() > 1 << 31);
    }
}
