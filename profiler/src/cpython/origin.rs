//! Where a process's CPython comes from, for a person who wants to know: which file, what in it told
//! that it is one, what kind of build it is. Nothing that profiling needs.

use std::path::PathBuf;

use anyhow::Result;
use profiler_ebpf::layout_flags;

use super::runtimes::{Runtime, Runtimes};
use super::{Binaries, Interpreter, mappings};

/// What is known of the file that holds an interpreter's runtime, and of the process around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// As the process sees it.
    pub file: PathBuf,
    /// Whether the file has been removed or replaced since it was mapped.
    pub deleted: bool,
    /// Whether it is a library and not the program itself.
    pub library: bool,
    /// What told that the file is a CPython.
    pub root: &'static str,
    /// The C library: `glibc`, `musl`, or none when neither its file nor its layout tells.
    pub c_library: Option<&'static str>,
}

impl Interpreter {
    /// Its version as text, for a person.
    pub fn release(&self) -> String {
        self.version.to_string()
    }

    /// Whether it was built without a GIL.
    pub fn is_free_threaded(&self) -> bool {
        self.layout.flags & layout_flags::FREE_THREADED != 0
    }
}

/// Finds the file that `interpreter`, detected in process `pid`, was found in.
///
/// # Errors
/// When the process is gone, or its mappings are not ours to read.
pub fn origin(
    pid: u32,
    binaries: &mut Binaries,
    interpreter: &Interpreter,
) -> Result<Option<Origin>> {
    let files = mappings::executable_files(pid)?;
    let paths = files.iter().map(|mapping| mapping.path.as_str());
    let c_library = c_library(interpreter.layout.flags, paths);
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let mut found = Runtimes::of(pid, binaries)?.runtimes.into_iter();
    let at = |runtime: &Runtime| runtime.interpreter.target.interpreters;
    let found = found.find(|runtime| at(runtime) == interpreter.target.interpreters);
    Ok(found.map(|found| Origin {
        file: found.mapping.name(),
        deleted: found.mapping.path.ends_with(DELETED),
        library: program.as_os_str() != found.mapping.path.as_str(),
        root: found.python.root,
        c_library,
    }))
}

/// What the kernel appends to the name of a file that is no longer there.
const DELETED: &str = " (deleted)";

/// What threads are laid out as comes first: musl's file may be any `libc.so`, or none when it is
/// linked in.
fn c_library<'a>(flags: u32, mut paths: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    match flags & layout_flags::MUSL {
        0 => paths.find_map(c_library_of_file),
        _ => Some("musl"),
    }
}

fn c_library_of_file(path: &str) -> Option<&'static str> {
    let name = path.trim_end_matches(DELETED).rsplit('/').next()?;
    if name.starts_with("ld-musl-") || name.starts_with("libc.musl-") {
        Some("musl")
    } else if name == "libc.so.6" || name.starts_with("libc-2.") {
        Some("glibc")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_libraries_are_known_by_their_files() {
        let of = |path| c_library(0, [path].into_iter());
        assert_eq!(of("/lib/x86_64-linux-gnu/libc.so.6"), Some("glibc"));
        assert_eq!(of("/lib/libc-2.31.so (deleted)"), Some("glibc"));
        assert_eq!(of("/lib/ld-musl-x86_64.so.1"), Some("musl"));
        assert_eq!(of("/usr/lib/libcrypto.so.3"), None);
    }

    #[test]
    fn musl_is_known_by_its_layout_where_its_file_says_nothing() {
        let musl = layout_flags::MUSL;
        // Where Debian's `musl` package has it; and a program that it is linked into.
        let debian = ["/usr/bin/python", "/lib/x86_64-linux-musl/libc.so"];
        assert_eq!(c_library(musl, debian.into_iter()), Some("musl"));
        assert_eq!(c_library(musl, [].into_iter()), Some("musl"));
        assert_eq!(c_library(0, debian.into_iter()), None);
    }
}
