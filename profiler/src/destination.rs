//! Where a profile goes: a file that is there whole or not at all, or a stream.
//!
//! A regular or absent file is written under a temporary name in its folder and renamed, and belongs
//! to the user behind sudo. A pipe, a device or stdout is written straight.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, Write},
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use tempfile::{Builder, NamedTempFile, TempPath};

use crate::target::command::Invoker;

/// A place that was found fit to be written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    /// A pipe or a device.
    Stream(PathBuf),
    /// A regular file, or none yet.
    File(PathBuf),
}

impl Destination {
    /// What `path` (`-` is stdout) is, having tried whether it can be written to.
    ///
    /// # Errors
    /// When it can't be, with what stands in the way.
    pub fn check(path: &Path) -> Result<Destination> {
        if path.as_os_str() == "-" {
            return Ok(Destination::Stdout);
        }
        // The file behind a link is what is to be replaced, not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&path) {
            Ok(file) if file.is_dir() => bail!(
                "the output {} is a folder: name a file in it, such as `-o {}/profile.svg`",
                path.display(),
                path.display()
            ),
            Ok(file) if !file.is_file() && !file.file_type().is_socket() => {
                return Ok(Destination::Stream(path));
            }
            _ => {}
        }
        let folder = folder_of(&path);
        if !folder.is_dir() {
            bail!(
                "the output's folder {} does not exist: make it with `mkdir -p {}`",
                folder.display(),
                folder.display()
            );
        }
        temporary(&path)?;
        Ok(Destination::File(path))
    }

    /// Opens it for one profile.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(&self) -> Result<Opened> {
        Ok(match self {
            Destination::Stdout => Opened::Stream(Box::new(io::stdout())),
            Destination::Stream(path) => {
                let file = File::options().write(true).open(path);
                let file = file.with_context(|| format!("cannot open {}", path.display()))?;
                Opened::Stream(Box::new(file))
            }
            Destination::File(path) => {
                let (file, temporary) = temporary(path)?.into_parts();
                Opened::File {
                    file,
                    temporary,
                    path: path.clone(),
                }
            }
        })
    }
}

/// A destination that is being written to. Dropped before [`write`](Self::write) is done, it leaves
/// nothing behind.
pub enum Opened {
    Stream(Box<dyn Write + Send>),
    File {
        file: File,
        temporary: TempPath,
        path: PathBuf,
    },
}

impl Opened {
    /// The temporary file to remove should writing be cut short.
    pub fn temporary(&self) -> Option<PathBuf> {
        match self {
            Opened::Stream(_) => None,
            Opened::File { temporary, .. } => Some(temporary.to_path_buf()),
        }
    }

    /// Lets `write` fill it, and puts it in its place. A stream whose reader has gone away is fine:
    /// it has seen what it wanted.
    ///
    /// # Errors
    /// When it can't be written; a file that was there before is then as it was.
    pub fn write(self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        match self {
            Opened::Stream(stream) => {
                let mut stream = BufWriter::new(stream);
                match write(&mut stream).and_then(|()| Ok(stream.flush()?)) {
                    Err(error) if is_broken_pipe(&error) => {
                        // What is still in the buffer has no reader either.
                        let _ = stream.into_parts();
                        Ok(())
                    }
                    result => result.context("cannot write the profile"),
                }
            }
            Opened::File {
                file,
                temporary,
                path,
            } => {
                let mut file = BufWriter::new(file);
                write(&mut file)
                    .and_then(|()| Ok(file.flush()?))
                    .with_context(|| format!("cannot write {}", path.display()))?;
                let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
                if let Some(invoker) = Invoker::behind_sudo() {
                    std::os::unix::fs::fchown(&file, Some(invoker.user), Some(invoker.group))
                        .with_context(|| format!("cannot give {} away", path.display()))?;
                }
                temporary
                    .persist(&path)
                    .with_context(|| format!("cannot put {} in its place", path.display()))
            }
        }
    }
}

fn temporary(path: &Path) -> Result<NamedTempFile> {
    let folder = folder_of(path);
    let mode = match fs::metadata(path) {
        Ok(file) => file.permissions().mode() & 0o777,
        Err(_) => 0o666,
    };
    Builder::new()
        .prefix(".pyebpf-")
        // Less the umask, as for any new file.
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(&folder)
        .with_context(|| {
            format!(
                "cannot write into the output's folder {}: choose another one with `-o`",
                folder.display()
            )
        })
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) -> Result<()> {
        Destination::check(path)?
            .open()?
            .write(|out| Ok(out.write_all(text.as_bytes())?))
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_or_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.svg");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        let failed = Destination::check(&path)
            .unwrap()
            .open()
            .unwrap()
            .write(|out| {
                out.write_all(b"half")?;
                bail!("no more")
            });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(names(folder.path()), ["profile.svg"]);
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, "new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    }

    #[test]
    fn devices_are_written_straight() {
        let found = Destination::check(Path::new("/dev/null")).unwrap();
        assert_eq!(found, Destination::Stream(PathBuf::from("/dev/null")));
        write(Path::new("/dev/null"), "gone").unwrap();
        let error = write(Path::new("/dev/full"), "x").unwrap_err();
        assert!(format!("{error:#}").contains("cannot write the profile"));
    }

    #[test]
    fn what_stands_in_the_way_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let error = Destination::check(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is a folder"), "{error}");
        let path = folder.path().join("no/such/profile.svg");
        let error = Destination::check(&path).unwrap_err().to_string();
        assert!(error.contains("mkdir -p"), "{error}");
    }
}
