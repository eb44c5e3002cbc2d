//! Detection by what a program is: a libpython that another program loads, binaries that are gone
//! or replaced, other C libraries, other Pythons, and what only looks like a Python.

use std::fs;
use std::os::unix::process::CommandExt as _;

use profiler_ebpf::layout_flags;

use super::*;

/// Loads the library that its first argument names, and runs Python code with it: the second. Loads
/// that which the third names, too, which comes to lie below it, and leaves that alone, unless a
/// fourth says where its modules are: then it has an interpreter, without a frame.
const EMBEDDER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
int main(int argc, char **argv) {
    void *python = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL), *other = 0;
    if (!python) return 3;
    if (argc > 3 && !(other = dlopen(argv[3], RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND))) return 4;
    if (argc > 4) {
        char *home = strdup(getenv("PYTHONHOME"));
        setenv("PYTHONHOME", argv[4], 1);
        ((void (*)(int))dlsym(other, "Py_InitializeEx"))(0);
        setenv("PYTHONHOME", home, 1);
    }
    ((void (*)(int))dlsym(python, "Py_InitializeEx"))(0);
    return ((int (*)(const char *))dlsym(python, "PyRun_SimpleString"))(argv[2]);
}
"#;

/// Has the symbols of a 3.11 and an interpreter whose only thread is none.
const FORGED: &str = r#"
#include <stdio.h>
const unsigned Py_Version = 0x030b07f0;
unsigned long PyCode_Type[64], interpreter[64], thread[64];
unsigned long _PyRuntime[256];
int main(void) {
    _PyRuntime[5] = (unsigned long)interpreter;
    interpreter[2] = (unsigned long)thread;
    thread[2] = (unsigned long)interpreter;
    thread[19] = 0x4242;
    puts("{\"version\": \"3.11.7\", \"code_type\": 0, \"thread\": 0, \"frames\": [], \"names\": {}}");
    fflush(stdout);
    getchar();
}
"#;

/// Builds a C program in `folder`, where there is a compiler.
fn built(folder: &Path, name: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
    let (text, program) = (folder.join(format!("{name}.c")), folder.join(name));
    fs::write(&text, source).unwrap();
    let mut command = Command::new("cc");
    command.arg("-o").arg(&program).arg(&text).args(flags);
    match command.status() {
        Ok(status) => assert!(status.success(), "{command:?}"),
        Err(_) => {
            skip(&format!("{name}: no C compiler"));
            return None;
        }
    }
    Some(program)
}

fn shared_library(root: &Path) -> PathBuf {
    let entries = fs::read_dir(root.join("lib")).unwrap().flatten();
    let mut libraries = entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("libpython3.") && name.ends_with(".so.1.0")
    });
    libraries.next().unwrap()
}

fn embedding(program: &Path, root: &Path, library: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg(library).arg(source()).env("PYTHONHOME", root);
    command
}

#[test]
fn a_library_that_was_loaded_later_is_found_even_when_its_file_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = built(folder.path(), "embedder", EMBEDDER, &["-ldl"]) else {
        return;
    };
    for version in ["3.7.", "3.9.", "3.11.", "3.12.", "3.13."] {
        let Some(root) = pyenv(version) else {
            skip(&format!("loaded later: no Python {version}x in pyenv"));
            continue;
        };
        let library = folder.path().join("some-plugin.so");
        fs::copy(shared_library(&root), &library).unwrap();
        let running = Running::start(&mut embedding(&program, &root, &library));
        running.check(&mut Binaries::new());
        // An upgrade: another file in its place, by rename.
        let other = folder.path().join("other");
        fs::copy(&program, &other).unwrap();
        fs::rename(&other, &library).unwrap();
        let mut binaries = Binaries::new();
        running.check(&mut binaries);
        fs::remove_file(&library).unwrap();
        running.check(&mut binaries);
        running.check(&mut Binaries::new());
    }
}

/// In a user namespace of its own the test may not open the files of others by the kernel's links.
#[test]
fn a_file_that_is_gone_is_read_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    for version in ["3.7.", "3.11.", "3.13."] {
        let Some(root) = pyenv(version) else {
            skip(&format!("from memory: no Python {version}x in pyenv"));
            continue;
        };
        let library = shared_library(&root);
        let copy = folder.path().join(library.file_name().unwrap());
        fs::copy(&library, &copy).unwrap();
        let mut command = program(&root.join("bin/python3"));
        command.env("LD_LIBRARY_PATH", folder.path());
        let running = Running::start(&mut command);
        fs::remove_file(&copy).unwrap();
        without_privileges(|| {
            let mapped = format!("/proc/{}/map_files", running.pid());
            let mut links = fs::read_dir(mapped).unwrap().flatten();
            let refused = links.all(|link| fs::metadata(link.path()).is_err());
            assert!(refused, "the kernel's links can be followed");
            running.check(&mut Binaries::new());
        });
    }
}

/// Runs this without the capabilities that the kernel's links to mapped files need.
fn without_privileges(body: impl FnOnce() + Send) {
    // Capabilities are each thread's own (capabilities(7)).
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            #[repr(C)]
            struct Header(u32, i32);
            // All but CAP_SYS_PTRACE (19) and CAP_DAC_OVERRIDE (1), as `struct __user_cap_data_struct`
            // of version 3: effective, permitted, inheritable, of 32 capabilities each.
            let kept = 1_u32 << 19 | 1 << 1;
            let (header, data) = (Header(0x2008_0522, 0), [kept, kept, 0, 0, 0, 0]);
            // SAFETY: both are laid out as the kernel has them and outlive the call.
            let done = unsafe { libc::syscall(libc::SYS_capset, &header, &data) };
            // Without any to begin with there is nothing to give up.
            // SAFETY: geteuid has no preconditions and cannot fail.
            let root = unsafe { libc::geteuid() } == 0;
            assert!(done == 0 || !root, "{}", std::io::Error::last_os_error());
            body();
        });
        thread.join().unwrap();
    });
}

#[test]
fn the_runtime_that_is_in_use_is_taken_and_a_second_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (Some(used), Some(other)) = (pyenv("3.9."), pyenv("3.12.")) else {
        return skip("two runtimes: no Python 3.9.x and 3.12.x in pyenv");
    };
    let Some(program) = built(folder.path(), "embedder", EMBEDDER, &["-ldl"]) else {
        return;
    };
    for (used, other) in [(&used, &other), (&other, &used)] {
        let (library, second) = (shared_library(used), shared_library(other));
        let mut command = embedding(&program, used, &library);
        let running = Running::start(command.arg(&second));
        let maps = fs::read_to_string(format!("/proc/{}/maps", running.pid())).unwrap();
        assert!(maps.contains("libpython3.9") && maps.contains("libpython3.12"));
        let interpreter = running.check(&mut Binaries::new());
        assert_eq!(interpreter.remarks, [""; 0]);
        drop(running);
        let running = Running::start(command.arg(other));
        let interpreter = running.check(&mut Binaries::new());
        let [remark] = interpreter.remarks.as_slice() else {
            panic!("{:?}", interpreter.remarks);
        };
        let (second, library) = (second.display(), library.display());
        assert!(remark.contains(&format!(" of {second}: ")), "{remark}");
        assert!(remark.ends_with(&format!(" of {library} is")), "{remark}");
    }
}

/// Is linked with libpython, whose variables the linker gives a place in the program, and has a mark
/// of its own.
const LINKED: &str = r#"
extern char _PyRuntime[], PyCode_Type[];
void Py_InitializeEx(int);
int PyRun_SimpleString(const char *);
__attribute__((used)) static const char mark[] = MARK;
volatile long used;
int main(int argc, char **argv) {
    used = _PyRuntime[0] + PyCode_Type[0];
    Py_InitializeEx(0);
    return PyRun_SimpleString(argv[1]);
}
"#;

#[test]
fn a_program_that_holds_the_variables_of_its_library_is_walked_and_nuitkas_is_told() {
    let folder = tempfile::tempdir().unwrap();
    // The library is known from a process that has no place for them, or becomes known here.
    let (mut known, mut binaries) = (Binaries::new(), Binaries::new());
    for version in ["3.7.", "3.9.", "3.12.", "3.13."] {
        let Some(root) = pyenv(version) else {
            skip(&format!(
                "variables of a library: no Python {version}x in pyenv"
            ));
            continue;
        };
        Running::start(&mut program(&root.join("bin/python3"))).check(&mut known);
        let library = shared_library(&root);
        let path = format!("-Wl,-rpath,{}", root.join("lib").display());
        for (name, mark, remarks) in [("plain", "", 0), ("nuitka", "nuitka_module_loader", 1)] {
            let define = format!("-DMARK=\"{mark}\"");
            let flags = [
                "-fno-pic",
                "-no-pie",
                &define,
                &path,
                library.to_str().unwrap(),
            ];
            let Some(program) = built(folder.path(), name, LINKED, &flags) else {
                return;
            };
            let mut command = Command::new(program);
            let running = Running::start(command.arg(source()).env("PYTHONHOME", &root));
            running.check(&mut known);
            let interpreter = running.check(&mut binaries);
            assert!(interpreter.checked && interpreter.target.interpreters < 1 << 32);
            assert_eq!(
                interpreter.remarks.len(),
                remarks,
                "{:?}",
                interpreter.remarks
            );
        }
        Running::start(&mut program(&root.join("bin/python3"))).check(&mut binaries);
    }
}

#[test]
fn a_python_on_musl_is_found_and_walked() {
    let python = home().join(".cache/pyebpf/musl-3.13/python");
    if !python.exists() {
        return skip(&format!("no {}", python.display()));
    }
    let running = Running::start(&mut program(&python));
    let interpreter = running.check(&mut Binaries::new());
    assert_ne!(interpreter.layout.flags & layout_flags::MUSL, 0);
}

#[test]
fn what_only_looks_like_a_python_is_refused_with_what_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = built(folder.path(), "forged", FORGED, &["-rdynamic"]) else {
        return;
    };
    let running = Running::start(&mut Command::new(program));
    match detect(running.pid(), &mut Binaries::new()).unwrap() {
        Detection::Unsupported { what, why } => {
            assert_eq!(what, "CPython 3.11.7");
            assert!(why.starts_with("it is not laid out as that version is: the thread state at "));
            assert!(
                why.ends_with("has thread id 0x4242, which is no thread's"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pypy_is_called_pypy() {
    let pypy = Path::new("/usr/bin/pypy3");
    if !pypy.exists() {
        return skip("no /usr/bin/pypy3");
    }
    let running = Running::start(Command::new(pypy).args(["-S", "-c", BRIEF_PROGRAM]));
    match detect(running.pid(), &mut Binaries::new()).unwrap() {
        Detection::Unsupported { what, why } => {
            assert_eq!(what, "PyPy");
            assert!(why.ends_with("use CPython"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_debug_build_is_refused_by_what_it_is() {
    let python = Path::new("/usr/bin/python3.11d");
    if !python.exists() {
        return skip("no /usr/bin/python3.11d");
    }
    // Under another name: what it is called does not matter.
    let mut command = Command::new(python);
    command.arg0("python3");
    let running = Running::start(command.args(["-S", "-c", BRIEF_PROGRAM]));
    match detect(running.pid(), &mut Binaries::new()).unwrap() {
        Detection::Unsupported { what, why } => {
            assert_eq!(what, format!("CPython {}", running.said.version));
            assert!(why.starts_with("it is a debug build (pydebug)"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}
