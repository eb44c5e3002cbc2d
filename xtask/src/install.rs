//! `cargo xtask install`: a release build, copied where sudo's `PATH` leads, with completions for
//! the shells that are there.

use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{as_root, quietly, say, text_of};
use crate::run::release;

/// Each shell's name for `pyebpf completions`, the folder under `share` that shows that it is
/// there, and where it looks for the completions of a command.
const SHELLS: [(&str, &str, &str); 3] = [
    ("bash", "bash-completion", "completions/pyebpf"),
    ("zsh", "zsh", "site-functions/_pyebpf"),
    ("fish", "fish", "vendor_completions.d/pyebpf.fish"),
];

/// Where to install.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder that gets bin/pyebpf and share/…
    #[arg(long, default_value = "/usr/local")]
    prefix: PathBuf,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let program = release()?;
    let prefix = std::path::absolute(&args.prefix)
        .with_context(|| format!("cannot resolve {}", args.prefix.display()))?;
    place(&program, &prefix.join("bin/pyebpf"), "755")?;
    for (shell, shown_by, place_in) in SHELLS {
        let share = prefix.join("share").join(shown_by);
        if !share.is_dir() && !Path::new("/usr/share").join(shown_by).is_dir() {
            continue;
        }
        let text = text_of(Command::new(&program).args(["completions", shell]))?;
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(text.as_bytes())?;
        place(file.path(), &share.join(place_in), "644")?;
    }
    Ok(())
}

/// Copies a file to where only root may be able to write.
fn place(from: &Path, to: &Path, mode: &str) -> Result<()> {
    say(&format!("installing {}", to.display()));
    let mut command = if writable(to) {
        Command::new("install")
    } else {
        as_root("install")
    };
    quietly(command.args(["-D", "-m", mode]).arg(from).arg(to))
        .with_context(|| format!("cannot install {}", to.display()))
}

/// Whether we may write below the nearest folder above `path` that exists.
fn writable(path: &Path) -> bool {
    let folder = path
        .ancestors()
        .skip(1)
        .find(|folder| fs::metadata(folder).is_ok());
    let name = folder.map(|folder| std::ffi::CString::new(folder.as_os_str().as_bytes()));
    match name {
        // SAFETY: the string is NUL-terminated and lives until access returns.
        Some(Ok(name)) => unsafe { libc::access(name.as_ptr(), libc::W_OK) == 0 },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_placed_in_folders_that_were_not_there() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let from = folder.path().join("from");
        fs::write(&from, "text").expect("written");
        let to = folder.path().join("a/b/c");
        assert!(writable(&to));
        place(&from, &to, "644").expect("placed");
        assert_eq!(fs::read_to_string(&to).expect("read"), "text");
    }
}
