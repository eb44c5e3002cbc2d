//! Running other programs: quietly with their words kept for the error, or in full view; and as
//! root. Standard output stays free for data, so what is said goes to standard error.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Tells the user, on standard error, what happens now and why.
pub(crate) fn say(what: &str) {
    eprintln!("xtask: {what}");
}

/// Runs a command without input and keeps silent about its output, unless it fails.
pub(crate) fn quietly(command: &mut Command) -> Result<()> {
    text_of(command).map(drop)
}

/// Runs a command without input; gives its standard output as text.
pub(crate) fn text_of(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", line(command)))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let (command, status) = (line(command), output.status);
        bail!("{command}: {status}; it said:\n{text}{said}");
    }
    Ok(text)
}

/// Runs a command whose output the user sees.
pub(crate) fn openly(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", line(command)))?;
    if !status.success() {
        bail!("{}: {status}", line(command));
    }
    Ok(())
}

/// A command that runs as root: through sudo where we are not root already.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        Command::new(program)
    } else {
        let mut command = Command::new("sudo");
        command.arg("--").arg(program);
        command
    }
}

/// Whether the effective user is root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Finds a program on `PATH`, or where only root's `PATH` leads.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(OsStr::to_string_lossy));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let error = quietly(&mut command).expect_err("it exits with 3");
        let message = error.to_string();
        assert!(message.starts_with("sh -c echo out"), "{message}");
        assert!(
            message.ends_with("exit status: 3; it said:\nout\nerr\n"),
            "{message}"
        );
    }

    #[test]
    fn programs_are_found_in_the_folders_of_root_too() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
