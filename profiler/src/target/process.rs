//! What `/proc` says of a process: whether it runs, its name, its command line, its children.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// A process id in our own PID namespace.
pub type Pid = u32;

/// Most bytes of a command line that are kept.
const COMMAND_LINE_MAX: usize = 512;

/// Whether the process runs: it is there and has not ended as a zombie.
pub fn exists(pid: Pid) -> bool {
    // Z: ended, not waited for yet; X: dead (proc_pid_stat(5)).
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// The process's name as `ps` shows it, or `?` when it is gone.
pub(super) fn name(pid: Pid) -> String {
    let name = stat(pid).map_or_else(|| "?".to_owned(), |stat| stat.comm);
    // A process chooses its name, and it goes to the user's terminal.
    name.replace(char::is_control, "?")
}

/// The process that `tid` is a thread of, if it is not its first one.
pub fn process_of_thread(tid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    let process = process.trim().parse().ok()?;
    (process != tid).then_some(process)
}

/// The arguments, separated by spaces; the name when there are none to see.
pub fn command_line(pid: Pid) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let end = bytes.len().min(COMMAND_LINE_MAX);
    let line = String::from_utf8_lossy(&bytes[..end]).replace('\0', " ");
    match line.trim_end() {
        "" => name(pid),
        line if end < bytes.len() => format!("{line}…"),
        line => line.to_owned(),
    }
}

/// The children of `pid`, as its threads have them; none where the kernel does not say
/// (CONFIG_PROC_CHILDREN).
pub(super) fn children(pid: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for thread in threads.flatten() {
        let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let pids = list.split_ascii_whitespace();
        found.extend(pids.filter_map(|pid| pid.parse::<Pid>().ok()));
    }
    found
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
        .filter_map(|child| Some((child, stat(child)?.parent)))
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

/// What is used of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// The name that the process gave itself.
    comm: String,
    state: char,
    parent: Pid,
}

fn stat(pid: Pid) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The pid, the name in parentheses, the state, the parent's pid, and more (proc_pid_stat(5)). A name
/// may hold parentheses, blanks and bytes that are no text: what closes it is the last parenthesis.
pub(super) fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let text = String::from_utf8_lossy(bytes);
    let (head, rest) = text.rsplit_once(')')?;
    let (_, comm) = head.split_once('(')?;
    let mut fields = rest.split_ascii_whitespace();
    Some(Stat {
        comm: comm.to_owned(),
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
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
        assert!(children(std::process::id()).contains(&pid));
        assert!(children(pid).is_empty());
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
    fn a_name_is_whatever_the_process_says() {
        let stat = parse_stat(b"7 (a) b (\xff) S 3 7 7 0\n").unwrap();
        assert_eq!(stat.comm, "a) b (\u{fffd}");
        assert_eq!((stat.state, stat.parent), ('S', 3));
        // The kernel writes whole lines; whatever else it wrote would be no process.
        for cut in [
            &b""[..],
            b"7",
            b"7 (a",
            b"7 (a)",
            b"7 (a) S",
            b")(",
            b"7 (a) S -1",
        ] {
            assert_eq!(parse_stat(cut), None, "{cut:?}");
        }
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
