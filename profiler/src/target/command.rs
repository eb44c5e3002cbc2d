//! The program that the user asked to start: as the user behind sudo, ended when the time is up,
//! its exit code passed on.

use std::{
    ffi::{CString, OsStr, OsString},
    io,
    os::fd::AsFd as _,
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use tokio::process::{Child, Command};

/// How long a program may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// The user who called sudo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoker {
    pub user: u32,
    pub group: u32,
    name: String,
}

impl Invoker {
    /// From the variables that sudo sets, when we run as root; `None` when it was not sudo.
    pub fn behind_sudo() -> Option<Invoker> {
        // SAFETY: a system call without arguments that cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return None;
        }
        let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
        Some(Invoker {
            user: number("SUDO_UID")?,
            group: number("SUDO_GID")?,
            name: std::env::var("SUDO_USER").ok()?,
        })
    }
}

/// Starts `program` (its name, then its arguments) with our own standard streams; with
/// `stdout_is_taken` its stdout goes to our stderr.
///
/// # Errors
/// When it can't be found or started.
pub fn start(program: &[OsString], stdout_is_taken: bool) -> Result<Child> {
    let (name, arguments) = program.split_first().context("no command to start")?;
    let mut command = Command::new(name);
    command.args(arguments);
    if stdout_is_taken {
        let stderr = io::stderr().as_fd().try_clone_to_owned();
        command.stdout(stderr.context("cannot pass on stderr")?);
    }
    if let Some(invoker) = Invoker::behind_sudo() {
        become_invoker(&mut command, &invoker)?;
    }
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => not_found(name),
        _ => anyhow::Error::new(error).context(format!("cannot start {name:?}")),
    })
}

/// Says what there is not: a path is not looked for elsewhere.
fn not_found(name: &OsStr) -> anyhow::Error {
    let path = Path::new(name);
    if name.as_encoded_bytes().contains(&b'/') && path.exists() {
        anyhow!(
            "cannot start {name:?}: the program that it is to be run by does not exist; `head -n 1 {path}` \
             tells which, or `readelf -l {path}` that of a binary",
            path = path.display()
        )
    } else if name.as_encoded_bytes().contains(&b'/') {
        anyhow!(
            "the command {name:?} does not exist: check the path with `ls -l {}`",
            path.display()
        )
    } else {
        anyhow!(
            "command {name:?} was not found; sudo looks in its own PATH: give the whole path, as \
             in `-- \"$(command -v {})\" …`",
            path.display()
        )
    }
}

/// Whether a program is first given time to end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It is told to end at once.
    None,
    /// It has five seconds.
    Wait,
}

/// Ends the program if it still runs: SIGTERM, and SIGKILL after five seconds. Its status if it
/// ended by itself.
///
/// # Errors
/// When it can't be waited for.
pub async fn end(child: &mut Child, patience: Patience) -> Result<Option<ExitStatus>> {
    if patience == Patience::Wait
        && let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await
    {
        return Ok(Some(status.context("cannot wait for the command")?));
    }
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    if let Some(pid) = child.id() {
        // SAFETY: our own child, not reaped yet, so the pid is still its.
        unsafe { libc::kill(pid as i32, libc::SIGTERM) };
    }
    if let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await {
        status.context("cannot wait for the command")?;
        return Ok(None);
    }
    child.kill().await.context("cannot end the command")?;
    Ok(None)
}

/// The exit code that a shell would give.
pub fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    u8::try_from(code).unwrap_or(1)
}

fn become_invoker(command: &mut Command, invoker: &Invoker) -> Result<()> {
    let (user, group) = (invoker.user, invoker.group);
    let name = CString::new(invoker.name.as_str()).context("SUDO_USER")?;
    command.env("USER", &invoker.name);
    command.env("LOGNAME", &invoker.name);
    if let Some(home) = home_of(&name) {
        command.env("HOME", home);
    }
    for variable in ["SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND"] {
        command.env_remove(variable);
    }
    // SAFETY: between fork and exec in a process without other threads of its own doing; the calls
    // are system calls but for `initgroups`, which reads the group file and allocates, as sudo and
    // su do at this point; glibc's allocator is usable in a forked child.
    unsafe {
        command.pre_exec(move || {
            let done = libc::initgroups(name.as_ptr(), group) == 0
                && libc::setgid(group) == 0
                && libc::setuid(user) == 0;
            if done {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
    Ok(())
}

fn home_of(name: &CString) -> Option<String> {
    // SAFETY: `getpwnam` returns null or a record that stays valid until its next call; we are the
    // only caller.
    unsafe {
        let record = libc::getpwnam(name.as_ptr());
        let home = record.as_ref()?.pw_dir;
        (!home.is_null()).then(|| {
            std::ffi::CStr::from_ptr(home)
                .to_string_lossy()
                .into_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_can_not_be_found_is_told_by_what_is_missing() {
        let said = |name: &str| not_found(OsStr::new(name)).to_string();
        assert!(said("python9").contains("`-- \"$(command -v python9)\" …`"));
        for path in ["/no/such", "./no/such", "no/such"] {
            let said = said(path);
            assert!(said.contains("does not exist: check the path"), "{said}");
            assert!(!said.contains("command -v"), "{said}");
        }
        // It is there, so what it is run by is not.
        let said = said("/proc/self/exe");
        assert!(said.contains("head -n 1 /proc/self/exe"), "{said}");
    }
}
