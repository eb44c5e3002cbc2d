//! Whether to believe what a file tells of the code that a process has made. JITs write such files to
//! `/tmp`, where anyone can write, under a name with their pid, and pids come again: only a file of the
//! process's own user, or of root, is believed, and none that was last written before the process began.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Reason;

/// A process, for its files.
pub(super) struct Teller {
    pid: u32,
    /// In its own PID namespace: its files are named after it.
    pub(super) own_pid: u32,
    user: u32,
}

impl Teller {
    /// Process `pid`.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn new(pid: u32) -> Result<Teller, Reason> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        let status = status.map_err(|error| Reason::unreadable(&error))?;
        let (own_pid, user) = own(&status).ok_or(Reason::Damaged("the process's status"))?;
        Ok(Teller { pid, own_pid, user })
    }

    /// Checks that a file at `path` is to be believed.
    ///
    /// # Errors
    /// When it is somebody else's or too old, or the process is gone.
    pub(super) fn check(&self, path: &Path, file: &Metadata) -> Result<(), Reason> {
        let path = path.display();
        let began = began(self.pid).map_err(|error| Reason::unreadable(&error))?;
        if file.mtime() < began {
            let why = format!("{path} is older than the process");
            return Err(Reason::Unreadable(why));
        }
        let (owner, user) = (file.uid(), self.user);
        if owner != user && owner != 0 {
            let why = format!("{path} belongs to user {owner}, the process to {user}");
            return Err(Reason::Unreadable(why));
        }
        Ok(())
    }
}

/// When a process began, seconds since 1970, at most two too early: `btime` of `/proc/stat` is
/// rounded, and ticks, a hundredth of a second for user space on x86-64, are since boot.
fn began(pid: u32) -> io::Result<i64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let boot = fs::read_to_string("/proc/stat")?;
    let boot = boot
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.parse().ok());
    let ticks = ticks(&stat);
    let since = ticks
        .zip(boot)
        .map(|(ticks, boot): (i64, i64)| boot.saturating_add(ticks / 100));
    let since = since.ok_or(io::ErrorKind::InvalidData)?;
    Ok(since.saturating_sub(2))
}

/// The field `starttime` of `/proc/PID/stat` (proc(5)): the twentieth after the process's name, which
/// is in brackets and may have any letters.
fn ticks(stat: &str) -> Option<i64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The innermost pid and the effective user of `/proc/PID/status`.
fn own(status: &str) -> Option<(u32, u32)> {
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    let pid = field("NSpid")?.split_whitespace().next_back()?;
    let user = field("Uid")?.split_whitespace().nth(1)?;
    Some((pid.parse().ok()?, user.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_is_the_innermost_and_the_user_the_effective_one() {
        let status = "Name:\tpython\nUid:\t1\t1000\t1\t1\nNSpid:\t812\t17\t1\n";
        assert_eq!(own(status), Some((1, 1000)));
        assert_eq!(own("Name:\tpython\n"), None);
    }
}
