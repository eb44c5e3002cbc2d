//! Control groups and containers that the user named: which are meant, and whether a process is in
//! one of them. Errors say which there are.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Result, bail};

use super::{Cgroups, process};

/// How many of those that there are an error names.
const SHOWN: usize = 5;
/// Digits of a container's id that an error shows, as `docker ps` does.
const SHORT_ID: usize = 12;

/// What a process must be in one of.
#[derive(Debug, PartialEq, Eq)]
pub struct Groups {
    /// Paths as in `/proc/PID/cgroup`.
    cgroups: Vec<String>,
    /// Whole ids.
    containers: Vec<String>,
}

/// The beginning of an id is that of several containers'.
#[derive(Debug, thiserror::Error)]
#[error("several containers' ids begin with {beginning}: {ids}; give more digits of one")]
pub struct Ambiguous {
    beginning: String,
    /// All of them, whole.
    ids: String,
}

impl Groups {
    /// Those that are meant by paths, as in `/proc/PID/cgroup` or below where control groups are
    /// mounted, and by the beginnings of containers' ids.
    ///
    /// # Errors
    /// When there is no such control group, or no process is in such a container: the message says
    /// which there are. [`Ambiguous`], when there are several such containers.
    pub fn find(cgroups: &[String], containers: &[String]) -> Result<Groups> {
        let pids = process::all()?.into_iter();
        let seen: Vec<Cgroups> = pids.filter_map(Cgroups::of).collect();
        let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mounts = String::from_utf8_lossy(&mounts);
        let mounts: Vec<Mount> = mounts.lines().filter_map(parse_mount).collect();
        let cgroups = cgroups.iter().map(|path| cgroup(path, &seen, &mounts));
        let containers = containers.iter().map(|id| container(id, &seen));
        Ok(Groups {
            cgroups: cgroups.collect::<Result<_>>()?,
            containers: containers.collect::<Result<_>>()?,
        })
    }

    /// Whether a process of these control groups is in one of them, or below one.
    pub fn have(&self, process: &Cgroups) -> bool {
        self.cgroups.iter().any(|path| process.is_within(path))
            || process
                .containers()
                .any(|id| self.containers.iter().any(|named| named == id))
    }
}

/// A place where control groups are mounted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount<'a> {
    /// Which group is seen there.
    root: &'a str,
    point: &'a str,
}

impl Mount<'_> {
    /// Whether a hierarchy as a whole is mounted in this folder.
    fn is_root_in(&self, folder: &str) -> bool {
        self.root == "/" && Path::new(self.point).parent() == Some(Path::new(folder))
    }
}

/// A line of `/proc/PID/mountinfo`, if it is of control groups (proc_pid_mountinfo(5)).
pub(super) fn parse_mount(line: &str) -> Option<Mount<'_>> {
    let (mount, file_system) = line.split_once(" - ")?;
    if !matches!(file_system.split(' ').next()?, "cgroup" | "cgroup2") {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    Some(Mount { root, point })
}

/// What follows a folder in the path of one that is in it, or is it: nothing, or `/…`.
pub(super) fn below<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(folder.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// The path that `/proc/PID/cgroup` has for the group that is meant by `named`.
fn cgroup(named: &str, seen: &[Cgroups], mounts: &[Mount]) -> Result<String> {
    let named = format!("/{}", named.trim_matches('/'));
    let mounted = mounts
        .iter()
        .filter_map(|mount| Some((mount, below(&named, mount.point)?)))
        .max_by_key(|(mount, _)| mount.point.len());
    let path = match mounted {
        Some((mount, rest)) => format!("{}{rest}", mount.root.trim_end_matches('/')),
        // Where both versions are in use, or version 1 alone, each hierarchy is mounted in a folder
        // there, which is none itself.
        None if mounts.iter().any(|mount| mount.is_root_in(&named)) => "/".to_owned(),
        None => named,
    };
    let path = format!("/{}", path.trim_matches('/'));
    let is_folder = mounts.iter().any(|mount| {
        let rest = below(&path, mount.root);
        rest.is_some_and(|rest| Path::new(&format!("{}{rest}", mount.point)).is_dir())
    });
    if !is_folder && !seen.iter().any(|process| process.is_within(&path)) {
        let paths = seen.iter().map(Cgroups::path);
        bail!(
            "there is no control group {path}: processes are in {}; \
             `cat /proc/PID/cgroup` tells that of a process",
            list(paths)
        );
    }
    Ok(path)
}

/// The id of the one container that is meant.
fn container(beginning: &str, seen: &[Cgroups]) -> Result<String> {
    let all: BTreeSet<&str> = seen.iter().flat_map(Cgroups::containers).collect();
    let meant: Vec<&str> = all
        .iter()
        .copied()
        .filter(|id| id.starts_with(beginning))
        .collect();
    match meant[..] {
        [id] => Ok(id.to_owned()),
        [] if all.is_empty() => bail!(
            "no process is in a container whose id begins with {beginning}, \
             nor in any other: name what runs in none by `--cgroup` or `--pid`"
        ),
        [] => bail!(
            "no process is in a container whose id begins with {beginning}: there are {}; \
             `docker ps`, `podman ps` or `crictl ps` tells their names",
            list(all.iter().map(|id| &id[..SHORT_ID]))
        ),
        _ => Err(Ambiguous {
            beginning: beginning.to_owned(),
            ids: meant.join(", "),
        }
        .into()),
    }
}

/// Some of them, and how many there are beside.
fn list<'a>(all: impl Iterator<Item = &'a str>) -> String {
    let all: BTreeSet<&str> = all.filter(|name| !name.is_empty()).collect();
    let some: Vec<&str> = all.iter().copied().take(SHOWN).collect();
    // Whoever makes a control group names it, and it goes to the user's terminal.
    let text = some.join(", ").replace(char::is_control, "?");
    match all.len() - some.len() {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n\
        42 31 0:38 /part/of /mnt/part rw,relatime - cgroup2 cgroup2 rw\n";

    fn ids() -> [String; 3] {
        ["abcd0", "abcd1", "f"].map(|beginning| format!("{beginning:0<64}"))
    }

    fn seen() -> Vec<Cgroups> {
        let containers = ids().map(|id| format!("0::/docker/{id}\n"));
        let plain = ["3:memory:/jobs/a\n0::/\n", "0::/init.scope\n"].map(str::to_owned);
        let texts = containers.into_iter().chain(plain);
        texts.map(|text| Cgroups::parse(text.as_bytes())).collect()
    }

    fn mounts() -> Vec<Mount<'static>> {
        MOUNTINFO.lines().filter_map(parse_mount).collect()
    }

    #[test]
    fn control_groups_are_paths_with_or_without_their_mount() {
        assert_eq!(mounts().len(), 3);
        for (named, path) in [
            ("/jobs", "/jobs"),
            ("jobs/a/", "/jobs/a"),
            ("/sys/fs/cgroup/memory/jobs", "/jobs"),
            ("/sys/fs/cgroup/unified/init.scope", "/init.scope"),
            ("/sys/fs/cgroup/unified/", "/"),
            // Where all of them are mounted.
            ("/sys/fs/cgroup/", "/"),
            ("/", "/"),
        ] {
            assert_eq!(cgroup(named, &seen(), &mounts()).unwrap(), path, "{named}");
        }
        let of_part = [Cgroups::parse(b"0::/part/of/it\n")];
        let found = cgroup("/mnt/part/it", &of_part, &mounts()).unwrap();
        assert_eq!(found, "/part/of/it");
        // One that is empty is a folder.
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("empty")).unwrap();
        let point = root.path().to_str().unwrap();
        let mounts = [Mount { root: "/", point }];
        assert_eq!(cgroup("/empty", &seen(), &mounts).unwrap(), "/empty");
    }

    #[test]
    fn a_control_group_that_is_not_there_is_said_with_those_that_are() {
        for named in [
            "/job",
            "/sys/fs/cgroup/memory/job",
            "/jobs/a/b",
            "/sys/fs/cgroup/job",
            "/sys/fs",
            // Only a part is mounted in it.
            "/mnt",
        ] {
            let error = cgroup(named, &seen(), &mounts()).unwrap_err().to_string();
            assert!(error.contains("no control group /"), "{error}");
            assert!(error.contains("/init.scope"), "{error}");
        }
        let nasty = [Cgroups::parse(b"0::/\x1b[2J\n")];
        let error = cgroup("/job", &nasty, &[]).unwrap_err().to_string();
        assert!(!error.contains('\x1b'), "{error:?}");
    }

    #[test]
    fn containers_are_named_by_the_beginning_of_one_id() {
        let ids = ids();
        assert_eq!(container("abcd1", &seen()).unwrap(), ids[1]);
        assert_eq!(container(&ids[2], &seen()).unwrap(), ids[2]);
        let error = container("abcd", &seen()).unwrap_err();
        assert!(error.is::<Ambiguous>());
        let error = error.to_string();
        assert!(
            error.contains(&ids[0]) && error.contains(&ids[1]),
            "{error}"
        );
        assert!(!error.contains(&ids[2]), "{error}");
        let error = container("1234", &seen()).unwrap_err().to_string();
        assert!(
            error.contains("1234") && error.contains(&ids[2][..12]),
            "{error}"
        );
        let error = container("1234", &[]).unwrap_err().to_string();
        assert!(error.contains("--cgroup"), "{error}");
    }

    #[test]
    fn a_process_is_in_any_of_them_or_below() {
        let groups = Groups {
            cgroups: vec!["/jobs".to_owned()],
            containers: vec![ids()[0].clone()],
        };
        let has = |text: &str| groups.have(&Cgroups::parse(text.as_bytes()));
        assert!(has("0::/jobs\n"));
        assert!(has("3:memory:/jobs/a/b\n0::/\n"));
        assert!(has(&format!("0::/x/docker-{}.scope/y\n", ids()[0])));
        assert!(!has(&format!("0::/x/docker-{}.scope\n", ids()[1])));
        assert!(!has("0::/jobs2\n") && !has("0::/\n") && !has(""));
    }
}
