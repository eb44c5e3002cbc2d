//! Where a profile goes: a file that is there whole or not at all, or a stream.
//!
//! A regular or absent file is written under a temporary name in its folder and renamed, and belongs
//! to the user behind sudo. A pipe, a device or stdout is written straight.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use tempfile::{Builder, NamedTempFile, TempPath};

use crate::target::command::Invoker;

/// How many links are followed, as the kernel does (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

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
    /// What `path` (`-` is stdout) is, having tried whether it can be written to. `flag` is what names
    /// another one.
    ///
    /// # Errors
    /// When it can't be, with what stands in the way.
    pub fn check(path: &Path, flag: &str) -> Result<Destination> {
        if path.as_os_str() == "-" {
            return Ok(Destination::Stdout);
        }
        let path = resolve(path, flag)?;
        match fs::metadata(&path) {
            Ok(file) if file.is_dir() => bail!(
                "the output {} is a folder: name a file in it with `{flag}`",
                path.display()
            ),
            Ok(file) if file.file_type().is_socket() => bail!(
                "the output {} is a socket: name a file or a pipe with `{flag}`",
                path.display()
            ),
            Ok(file) if !file.is_file() => return Ok(Destination::Stream(path)),
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
        new_file_beside(&path).with_context(|| {
            format!(
                "{CANNOT} {}: choose another one with `{flag}`",
                folder.display()
            )
        })?;
        if is_fixed(&path) {
            bail!(
                "the output {path} can't be replaced, it is immutable: `sudo chattr -ia {path}` makes \
                 it a file like others, or choose another name with `{flag}`",
                path = path.display()
            );
        }
        Ok(Destination::File(path))
    }

    /// Opens it for one profile; a temporary file's name is left in `temporary`.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(&self, temporary: &Temporary) -> Result<Opened> {
        Ok(match self {
            Destination::Stdout => Opened::Stream {
                stream: Box::new(io::stdout()),
                name: "stdout".to_owned(),
            },
            Destination::Stream(path) => {
                let file = File::options().write(true).open(path);
                let name = path.display().to_string();
                Opened::Stream {
                    stream: Box::new(file.with_context(|| format!("cannot open {name}"))?),
                    name,
                }
            }
            Destination::File(path) => {
                let (file, name) = new_file_beside(path)
                    .with_context(|| format!("{CANNOT} {}", folder_of(path).display()))?
                    .into_parts();
                temporary.set(&name);
                Opened::File {
                    file,
                    temporary: name,
                    path: path.clone(),
                }
            }
        })
    }
}

/// The name of the file that is being written, for whoever cuts the writing short.
#[derive(Clone, Default)]
pub struct Temporary(Arc<Mutex<Option<PathBuf>>>);

impl Temporary {
    fn set(&self, path: &Path) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.to_owned());
    }

    /// Removes the file, if there is one.
    pub fn remove(&self) {
        let path = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(path) = path {
            // It may have been put in its place already.
            let _ = fs::remove_file(path);
        }
    }
}

/// A destination that is being written to. Dropped before [`write`](Self::write) is done, it leaves
/// nothing behind.
pub enum Opened {
    Stream {
        stream: Box<dyn Write + Send>,
        /// For messages.
        name: String,
    },
    File {
        file: File,
        temporary: TempPath,
        path: PathBuf,
    },
}

impl Opened {
    /// Lets `write` fill it, and puts it in its place. A stream whose reader has gone away is fine:
    /// it has seen what it wanted.
    ///
    /// # Errors
    /// When it can't be written; a file that was there before is then as it was.
    pub fn write(self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        match self {
            Opened::Stream { stream, name } => {
                let mut stream = BufWriter::new(stream);
                match write(&mut stream).and_then(|()| Ok(stream.flush()?)) {
                    Err(error) if is_broken_pipe(&error) => {
                        // What is still in the buffer has no reader either.
                        let _ = stream.into_parts();
                        Ok(())
                    }
                    result => result.with_context(|| format!("cannot write to {name}")),
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
                    // The temporary name is nobody's business.
                    .map_err(|failed| failed.error)
                    .with_context(|| format!("cannot put {} in its place", path.display()))
            }
        }
    }
}

const CANNOT: &str = "cannot write into the output's folder";

fn new_file_beside(path: &Path) -> io::Result<NamedTempFile> {
    let mode = match fs::metadata(path) {
        Ok(file) => file.permissions().mode() & 0o777,
        Err(_) => 0o666,
    };
    Builder::new()
        .prefix(".pyebpf-")
        // `tempfile_in` would put the temporary name into its errors.
        .make_in(folder_of(path), |name| {
            let mut options = File::options();
            // Less the umask, as for any new file.
            options.write(true).create_new(true).mode(mode).open(name)
        })
}

/// Whether the file is immutable, or can only be appended to: nobody, not even root, can open it to
/// write anywhere in it, nor replace it (ioctl_iflags(2)).
fn is_fixed(path: &Path) -> bool {
    let opened = File::options().write(true).open(path);
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
}

/// The file behind a link is what is to be replaced, not the link.
fn resolve(path: &Path, flag: &str) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(to) = fs::read_link(&path) else {
            return Ok(path);
        };
        let folder = folder_of(&path);
        if others_may_link(&folder) && !is_ours(&path) {
            bail!(
                "the output {} is another user's link, in a folder that everybody may write to: \
                 remove it, or choose another name with `{flag}`",
                path.display()
            );
        }
        path = folder.join(to);
    }
    bail!("the output {} leads through too many links", path.display())
}

/// Whether the folder is one like /tmp, where the kernel's `protected_symlinks` guards as well.
fn others_may_link(folder: &Path) -> bool {
    const STICKY_AND_WRITABLE: u32 = 0o1002;
    fs::metadata(folder).is_ok_and(|folder| {
        folder.permissions().mode() & STICKY_AND_WRITABLE == STICKY_AND_WRITABLE
    })
}

/// Whether root or the user behind sudo made the link.
fn is_ours(link: &Path) -> bool {
    let invoker = Invoker::behind_sudo().map(|invoker| invoker.user);
    // SAFETY: a system call without arguments that cannot fail.
    let user = unsafe { libc::geteuid() };
    fs::symlink_metadata(link)
        .is_ok_and(|link| [Some(0), Some(user), invoker].contains(&Some(link.uid())))
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

    fn check(path: &Path) -> Result<Destination> {
        Destination::check(path, "-o")
    }

    fn write(path: &Path, text: &str) -> Result<()> {
        check(path)?
            .open(&Temporary::default())?
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
        let failed = check(&path)
            .unwrap()
            .open(&Temporary::default())
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
    fn a_dangling_link_leads_to_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        write(&link, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn links_in_circles_and_sockets_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("link", &link).unwrap();
        let error = check(&link).unwrap_err().to_string();
        assert!(error.contains("too many links"), "{error}");
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = check(&socket).unwrap_err().to_string();
        assert!(error.contains("is a socket"), "{error}");
    }

    #[test]
    fn a_writer_that_is_cut_short_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let place = check(&folder.path().join("profile.svg")).unwrap();
        let temporary = Temporary::default();
        let opened = place.open(&temporary).unwrap();
        assert_eq!(names(folder.path()).len(), 1);
        temporary.remove();
        assert!(names(folder.path()).is_empty());
        drop(opened);
    }

    #[test]
    fn devices_are_written_straight() {
        let found = check(Path::new("/dev/null")).unwrap();
        assert_eq!(found, Destination::Stream(PathBuf::from("/dev/null")));
        write(Path::new("/dev/null"), "gone").unwrap();
        let error = write(Path::new("/dev/full"), "x").unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.starts_with("cannot write to /dev/full: No space"),
            "{error}"
        );
    }

    #[test]
    fn what_stands_in_the_way_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let error = check(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is a folder"), "{error}");
        let path = folder.path().join("no/such/profile.svg");
        let error = check(&path).unwrap_err().to_string();
        assert!(error.contains("mkdir -p"), "{error}");
        // What came there since it was checked.
        let path = folder.path().join("profile.svg");
        let opened = check(&path).unwrap().open(&Temporary::default()).unwrap();
        fs::create_dir(&path).unwrap();
        let error = format!("{:#}", opened.write(|_| Ok(())).unwrap_err());
        assert!(
            error.contains("profile.svg in its place: Is a dir"),
            "{error}"
        );
        assert_eq!(error.matches("(os error").count(), 1, "{error}");
    }
}
