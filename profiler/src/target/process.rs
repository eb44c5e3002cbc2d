//! What `/proc` says of a process: whether it runs, its name, its command line, its children.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use procfs::process::{ProcState, Stat};

/// A process id in the initial PID namespace.
pub type Pid = u32;

/// Most bytes of a command line that are kept.
const COMMAND_LINE_MAX: usize = 512;

/// Whether the process runs: it is there and has not ended as a zombie.
pub fn exists(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| {
        !matches!(
            stat.state(),
            Ok(ProcState::Zombie | ProcState::Dead) | Err(_)
        )
    })
}

/// The process's name as `ps` shows it, or `?` when it is gone.
pub(super) fn name(pid: Pid) -> String {
    let name = stat(pid).map_or_else(|| "?".to_owned(), |stat| stat.comm);
    // A process chooses its name, and it goes to the user's terminal.
    name.replace(char::is_control, "?")
}

/// The process that `tid` is a thread of, if it is not its first one.
pub(super) fn process_of_thread(tid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    let process = process.trim().parse().ok()?;
    (process != tid).then_some(process)
}

/// The arguments, separated by spaces; the name when there are none to see.
pub(super) fn command_line(pid: Pid) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let end = bytes.len().min(COMMAND_LINE_MAX);
    let line = String::from_utf8_lossy(&bytes[..end]).replace('\0', " ");
    match line.trim_end() {
        "" => name(pid),
        line if end < bytes.len() => format!("{line}…"),
        line => line.to_owned(),
    }
}

/// Every process id that `/proc` lists.
///
/// # Errors
/// When `/proc` can't be read.
pub(super) fn all() -> Result<Vec<Pid>> {
    let entries = fs::read_dir(Path::new("/proc")).context("cannot list /proc")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// The children of `pid`, their children, and so on.
///
/// # Errors
/// When `/proc` can't be read.
pub(super) fn descendants(pid: Pid) -> Result<Vec<Pid>> {
    let parents: Vec<(Pid, Pid)> = all()?
        .into_iter()
        .filter_map(|child| Some((child, u32::try_from(stat(child)?.ppid).ok()?)))
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let children = parents.iter().filter(|&&(_, of)| of == parent);
        let new: Vec<Pid> = children
            .map(|&(child, _)| child)
            .filter(|child| !found.contains(child))
            .collect();
        found.extend(new);
        next += 1;
    }
    found.remove(0);
    Ok(found)
}

fn stat(pid: Pid) -> Option<Stat> {
    let process = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?;
    process.stat().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A child that has begun to run its program: until then its arguments are not to be seen.
    fn sleeper(argument: &str) -> Child {
        let child = Command::new("sleep")
            .args(["60", argument])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while command_line(child.id()) == "sleep" {
            std::thread::yield_now();
        }
        child
    }

    #[test]
    fn sees_a_child_until_it_ends_even_as_a_zombie() {
        let mut child = sleeper("0");
        let pid = child.id();
        assert!(exists(pid));
        assert!(descendants(std::process::id()).unwrap().contains(&pid));
        assert_eq!(command_line(pid), "sleep 60 0");
        child.kill().unwrap();
        // SAFETY: waits for our own child without reaping it.
        unsafe {
            let mut info = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid, &mut info, libc::WEXITED | libc::WNOWAIT);
        }
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "a zombie");
        assert!(!exists(pid));
        child.wait().unwrap();
        assert!(!exists(pid));
    }

    #[test]
    fn long_command_lines_are_cut() {
        let mut child = sleeper(&"0".repeat(4000));
        let line = command_line(child.id());
        assert!(
            line.starts_with("sleep 60 000") && line.ends_with('…'),
            "{line}"
        );
        assert!(line.len() <= COMMAND_LINE_MAX + '…'.len_utf8());
        let _ = child.kill();
        child.wait().unwrap();
    }
}
