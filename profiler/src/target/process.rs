//! What `/proc` says of a process: whether it runs, its name, its command line, its children.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// A process id in our own PID namespace.
pub type Pid = u32;

/// Most bytes of a command line that are kept.
const COMMAND_LINE_MAX: usize = 512;

/// Whether something runs under an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is no such process.
    Gone,
    /// It has ended, and its parent, of this id, has not asked for its exit status. An id of 0 is a
    /// parent outside of our own PID namespace.
    Ended {
        parent: Pid,
    },
    /// A thread of the kernel: no program, no memory of its own.
    Kernel,
    /// Stopped by a signal; or by the one that debugs it.
    Stopped {
        debugged: bool,
    },
    Runs,
}

impl Condition {
    /// That of process `pid` now.
    pub fn of(pid: Pid) -> Condition {
        stat(pid).map_or(Condition::Gone, |stat| stat.condition())
    }

    /// Why nothing of Python can run under that id, as the rest of a sentence; `None` when it can.
    pub fn obstacle(self) -> Option<String> {
        match self {
            Condition::Gone => Some("does not exist".to_owned()),
            Condition::Ended { parent: 0 } => {
                Some("has ended; its parent, outside of this PID namespace, must take note".into())
            }
            Condition::Ended { parent } => Some(format!(
                "has ended and waits for its parent, process {parent} ({}), to take note",
                name(parent)
            )),
            Condition::Kernel => Some("is a thread of the kernel, which runs no Python".into()),
            Condition::Stopped { .. } | Condition::Runs => None,
        }
    }

    /// That no sample of process `pid` can be taken now, and what mends it; `None` when one can.
    pub fn standstill(self, pid: Pid) -> Option<(&'static str, String)> {
        match self {
            Condition::Stopped { debugged: false } => Some((
                "stopped by a signal: it is not sampled while it is",
                format!("`kill -CONT {pid}` lets it go on"),
            )),
            Condition::Stopped { debugged: true } => Some((
                "stopped by its debugger: it is not sampled while it is",
                format!("let it go on: `grep TracerPid /proc/{pid}/status` tells by which"),
            )),
            _ => None,
        }
    }
}

/// Whether the process is there and has not ended as a zombie.
pub fn exists(pid: Pid) -> bool {
    !matches!(
        Condition::of(pid),
        Condition::Gone | Condition::Ended { .. }
    )
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
    /// As the kernel has them: `PF_…` of include/linux/sched.h.
    flags: u32,
}

/// The flag of a thread of the kernel: `PF_KTHREAD`, include/linux/sched.h, the same since 2.6.27.
const PF_KTHREAD: u32 = 0x0020_0000;

impl Stat {
    fn condition(&self) -> Condition {
        // The letters of proc_pid_stat(5). X and x: dead, seen while it is taken away.
        match self.state {
            'X' | 'x' => Condition::Gone,
            'Z' => Condition::Ended {
                parent: self.parent,
            },
            _ if self.flags & PF_KTHREAD != 0 => Condition::Kernel,
            'T' => Condition::Stopped { debugged: false },
            't' => Condition::Stopped { debugged: true },
            _ => Condition::Runs,
        }
    }
}

fn stat(pid: Pid) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The pid, the name in parentheses, the state, the parent's pid, four ids, the flags, and more
/// (proc_pid_stat(5)). A name may hold parentheses, blanks and bytes that are no text: what closes it is the last parenthesis.
pub(super) fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let text = String::from_utf8_lossy(bytes);
    let (head, rest) = text.rsplit_once(')')?;
    let (_, comm) = head.split_once('(')?;
    let mut fields = rest.split_ascii_whitespace();
    Some(Stat {
        comm: comm.to_owned(),
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        flags: fields.nth(4)?.parse().ok()?,
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
        let stat = parse_stat(b"7 (a) b (\xff) S 3 7 7 0 -1 4194560 0\n").unwrap();
        assert_eq!(stat.comm, "a) b (\u{fffd}");
        assert_eq!((stat.state, stat.parent, stat.flags), ('S', 3, 4194560));
        // The kernel writes whole lines; whatever else it wrote would be no process.
        for cut in [
            &b""[..],
            b"7",
            b"7 (a",
            b"7 (a)",
            b"7 (a) S",
            b")(",
            b"7 (a) S -1",
            b"7 (a) S 3 7 7 0 -1",
        ] {
            assert_eq!(parse_stat(cut), None, "{cut:?}");
        }
    }

    #[test]
    fn a_state_is_told_apart_from_running() {
        let condition = |rest: &str| {
            let line = format!("7 (a) {rest} 0\n");
            parse_stat(line.as_bytes()).unwrap().condition()
        };
        for (rest, expected) in [
            ("R 3 7 7 0 -1 4194560", Condition::Runs),
            ("D 3 7 7 0 -1 4194560", Condition::Runs),
            ("Z 3 7 7 0 -1 4194560", Condition::Ended { parent: 3 }),
            ("X 3 7 7 0 -1 4194560", Condition::Gone),
            (
                "T 3 7 7 0 -1 4194560",
                Condition::Stopped { debugged: false },
            ),
            (
                "t 3 7 7 0 -1 4194560",
                Condition::Stopped { debugged: true },
            ),
            // kthreadd and one of its children.
            ("S 0 0 0 0 -1 2129984", Condition::Kernel),
            ("I 2 0 0 0 -1 69238880", Condition::Kernel),
        ] {
            assert_eq!(condition(rest), expected, "{rest}");
        }
        assert_eq!(Condition::of(u32::MAX), Condition::Gone);
        assert_eq!(Condition::of(std::process::id()), Condition::Runs);
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
