//! Opens regular files by path as a process sees them: below its root, where links can't lead out,
//! and without waiting for pipes. The process is foreign; so is what its paths name.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `struct open_how` of `include/uapi/linux/openat2.h`.
#[repr(C)]
struct How {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// Opens the regular file that `path` names in the root of process `pid`, or in ours.
///
/// # Errors
/// When there is none, it is not ours to read, or the process is gone.
pub(super) fn open(pid: Option<u32>, path: &Path) -> io::Result<File> {
    let root = match pid {
        Some(pid) => File::open(format!("/proc/{pid}/root"))?,
        None => File::open("/")?,
    };
    let path = CString::new(path.as_os_str().as_bytes())?;
    let how = How {
        flags: (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY) as u64,
        mode: 0,
        resolve: libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
    };
    // SAFETY: the path is a string and `how` a structure of the stated size, both live through the
    // call, which writes to neither.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<How>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    regular(file)
}

/// The file, if it is a regular one.
pub(super) fn regular(file: File) -> io::Result<File> {
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_are_opened_and_links_stay_below_the_root() {
        let me = Some(std::process::id());
        assert!(open(me, Path::new("/proc/self/maps")).is_ok());
        assert!(open(me, Path::new("/dev/null")).is_err());
        assert!(open(me, Path::new("/usr")).is_err());
        assert!(
            open(None, Path::new("proc/self/exe")).is_err(),
            "a magic link"
        );
        let folder = tempfile::tempdir().expect("a folder can be made");
        let link = folder.path().join("link");
        symlink("/proc/../../../proc/version", &link).expect("a link can be made");
        assert!(open(me, &link).is_ok());
    }
}
