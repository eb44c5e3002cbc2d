//! The ways in which a Python is started: bare, by chroot, in a PID namespace, by runc, by
//! bubblewrap. Each gives a running workload under its process id as the host sees it, and leaves
//! nothing behind: mounts live in namespaces that end with the process, containers are deleted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::pythons::Python;
use crate::workload::{Target, folder};

/// Where a contained workload finds its script.
const SCRIPTS: &str = "/mnt";

/// How a Python is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// As a user types it; one that needs another C library is run by its own dynamic loader.
    Bare,
    /// In another root folder, which has no `/proc`.
    Chroot,
    /// As process 1 of a PID namespace, with a `/proc` of its own.
    PidNamespace,
    /// In a container of runc: all namespaces, cgroups.
    Runc,
    /// In a sandbox of bubblewrap: all namespaces, process 1 being bubblewrap's.
    Bubblewrap,
}

impl Start {
    /// Every way.
    pub const ALL: [Start; 5] = [
        Start::Bare,
        Start::Chroot,
        Start::PidNamespace,
        Start::Runc,
        Start::Bubblewrap,
    ];

    /// What tests call it.
    pub fn name(self) -> &'static str {
        match self {
            Start::Bare => "bare",
            Start::Chroot => "chroot",
            Start::PidNamespace => "PID namespace",
            Start::Runc => "runc",
            Start::Bubblewrap => "bwrap",
        }
    }

    /// Why no Python can be started so on this machine, if none can.
    pub fn lacks(self) -> Option<String> {
        let programs: &[&str] = match self {
            Start::Bare => &[],
            Start::Chroot => &["unshare", "chroot"],
            Start::PidNamespace => &["unshare"],
            Start::Runc => &["runc"],
            Start::Bubblewrap => &["bwrap"],
        };
        let missing = programs.iter().find(|program| find(program).is_none())?;
        Some(format!("there is no {missing}"))
    }
}

/// A workload that was started in one of the ways. Dropping it ends it and what it was started in.
#[derive(Debug)]
pub struct Started {
    /// The workload; its `pid` is the host's.
    pub target: Target,
    // Dropped after the target, in this order.
    container: Option<Container>,
    _scratch: Option<Scratch>,
}

impl Started {
    /// The id of the container that it is in.
    pub fn container(&self) -> Option<&str> {
        Some(&self.container.as_ref()?.id)
    }
}

/// Starts a workload of [`folder`] on this Python in this way.
///
/// # Errors
///
/// When it can't be started or ends before it says what it is.
pub fn start(how: Start, python: &Python, workload: &[&str]) -> Result<Started> {
    begin(how, python, workload).with_context(|| format!("{}, {}", python.name, how.name()))
}

fn begin(how: Start, python: &Python, workload: &[&str]) -> Result<Started> {
    let mut scratch = None;
    let mut container = None;
    let command = match how {
        Start::Bare => match python.by_its_loader()? {
            None => python.command(&folder(), workload),
            Some(words) => command(&words, &python.arguments(&folder(), workload)),
        },
        Start::PidNamespace => {
            let inner = python.command(&folder(), workload);
            let before = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
            around(&before, &inner)
        }
        Start::Chroot | Start::Runc | Start::Bubblewrap => {
            let root = match python.root() {
                Some(root) => root.to_owned(),
                None => scratch.insert(Scratch::new(python)?).root.clone(),
            };
            let binds = binds(python);
            let mut words = vec![python.program().to_owned()];
            words.extend(python.arguments(Path::new(SCRIPTS), workload));
            match how {
                Start::Chroot => chroot(&root, &binds, &words),
                Start::Runc => {
                    let made = Container::new(&root, &binds, &words, &python.variables())?;
                    container.insert(made).command()
                }
                _ => bubblewrap(python.root(), &binds, &words),
            }
        }
    };
    let mut command = command;
    python.set_variables(&mut command);
    Ok(Started {
        target: Target::start_within(command)?,
        container,
        _scratch: scratch,
    })
}

/// What is to be seen in another root folder: where it is, and where it is to be.
fn binds(python: &Python) -> Vec<(PathBuf, PathBuf)> {
    let mut binds = vec![(folder(), PathBuf::from(SCRIPTS))];
    if python.root().is_none() {
        let own = python.folders().into_iter();
        let system = ["/usr", "/bin", "/lib", "/lib64"].map(PathBuf::from);
        let seen = system.into_iter().filter(|path| path.is_dir()).chain(own);
        binds.extend(seen.map(|path| (path.clone(), path)));
    }
    binds
}

fn command(words: &[PathBuf], rest: &[PathBuf]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(rest);
    command
}

/// The same command with words before it, of which the first is a program.
pub fn around(before: &[&str], inner: &Command) -> Command {
    let mut command = Command::new(before[0]);
    command.args(&before[1..]).arg(inner.get_program());
    command.args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Mounts in a namespace of its own, so that they end with the process.
fn chroot(root: &Path, binds: &[(PathBuf, PathBuf)], words: &[PathBuf]) -> Command {
    const SCRIPT: &str = r#"root=$0
        mount -t tmpfs none "$root/tmp" || exit
        while [ "$1" != -- ]; do
            mkdir -p "$root$2" && mount --rbind "$1" "$root$2" || exit
            shift 2
        done
        shift && exec chroot "$root" "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT]).arg(root);
    if !root.join("dev/null").exists() {
        command.args(["/dev", "/dev"]);
    }
    for (from, to) in binds {
        command.arg(from).arg(to);
    }
    command.arg("--").args(words);
    command
}

fn bubblewrap(root: Option<&Path>, binds: &[(PathBuf, PathBuf)], words: &[PathBuf]) -> Command {
    let mut command = Command::new("bwrap");
    command.args(["--unshare-all", "--die-with-parent"]);
    if let Some(root) = root {
        command.arg("--ro-bind").arg(root).arg("/");
    }
    for (from, to) in binds {
        command.arg("--ro-bind").arg(from).arg(to);
    }
    command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
    command.arg("--").args(words);
    command
}

/// An empty root folder with the places that things are to be mounted on. It is never mounted on in
/// our own mount namespace, and only empty folders are removed: what may be bound to it is safe.
#[derive(Debug)]
struct Scratch {
    root: PathBuf,
    made: Vec<PathBuf>,
}

impl Scratch {
    fn new(python: &Python) -> Result<Scratch> {
        let root = TempDir::new()?.keep();
        let mut scratch = Scratch {
            made: vec![root.clone()],
            root,
        };
        let places = ["/tmp", "/dev", "/proc", "/sys"].map(PathBuf::from);
        let bound = binds(python).into_iter().map(|(_, to)| to);
        for place in places.into_iter().chain(bound) {
            scratch.make(&place)?;
        }
        Ok(scratch)
    }

    fn make(&mut self, place: &Path) -> Result<()> {
        let mut path = self.root.clone();
        for part in place.strip_prefix("/")? {
            path.push(part);
            if !path.exists() {
                fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
                self.made.push(path.clone());
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            if let Err(error) = fs::remove_dir(path) {
                eprintln!("{} is left behind: {error}", path.display());
            }
        }
    }
}

/// A bundle for runc and the container that is run from it.
#[derive(Debug)]
struct Container {
    /// Its `config.json`, and in `state` what runc keeps of it.
    bundle: TempDir,
    id: String,
}

impl Container {
    fn new(
        root: &Path,
        binds: &[(PathBuf, PathBuf)],
        words: &[PathBuf],
        variables: &[(String, String)],
    ) -> Result<Container> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}),
        ];
        mounts.extend(binds.iter().map(|(from, to)| {
            json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", "ro"]})
        }));
        let variables: Vec<String> = variables
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let namespaces =
            ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": words,
                "env": variables,
                "cwd": "/",
                "noNewPrivileges": true,
            },
            "root": {"path": root, "readonly": true},
            "mounts": mounts,
            "linux": {"namespaces": namespaces},
        });
        let bundle = TempDir::new()?;
        fs::write(bundle.path().join("config.json"), config.to_string())?;
        Ok(Container {
            bundle,
            // As long as those that engines give.
            id: format!("{:08x}{number:08x}{:048x}", std::process::id(), 0xe_b9f),
        })
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.bundle.path().join("state"));
        command
    }

    fn command(&self) -> Command {
        let mut command = self.runc();
        command.args(["run", "--bundle"]).arg(self.bundle.path());
        command.arg(&self.id);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Killing runc itself leaves the container and its cgroups.
        let mut delete = self.runc();
        delete.args(["delete", "--force", &self.id]);
        let deleted = delete.stdin(Stdio::null()).output();
        if !deleted.is_ok_and(|output| output.status.success()) {
            eprintln!("container {} may be left behind", self.id);
        }
    }
}

/// The file of a program that `PATH` leads to.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The children of a process, whichever of its threads has them.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let files = threads.filter_map(|thread| Some(thread.ok()?.path().join("children")));
    let texts: Vec<String> = files
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect();
    let words = texts.iter().flat_map(|text| text.split_whitespace());
    words.filter_map(|pid| pid.parse().ok()).collect()
}

/// The process among `first` and its descendants that has this id in its innermost PID namespace.
///
/// # Errors
///
/// When there is none, or more than one.
pub fn pid_on_the_host(first: u32, inner: u64) -> Result<u32> {
    let mut family = vec![first];
    let mut next = 0;
    while let Some(&pid) = family.get(next) {
        family.extend(children(pid));
        next += 1;
    }
    let is_it = |pid: &&u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let innermost = line.and_then(|line| line.split_whitespace().last());
        innermost.and_then(|pid| pid.parse().ok()) == Some(inner)
    };
    // Within one family an inner id is ambiguous only if there are several namespaces; the outer
    // processes of those that we start have ids of the host, which are not so low.
    let found: Vec<&u32> = family.iter().filter(is_it).collect();
    ensure!(
        found.len() == 1,
        "{} of the processes {family:?} have the id {inner} in their own namespace",
        found.len()
    );
    Ok(*found[0])
}
