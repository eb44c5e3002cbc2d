//! `/proc/PID/cgroup`: which control groups a process is in, and which container's they are. Knows
//! nothing of where control groups are mounted.

use std::{fs::File, io::Read as _};

use super::{groups::below, process::Pid};

/// Most bytes that are read: 13 hierarchies with paths of up to PATH_MAX.
const TEXT_MAX: u64 = 1 << 16;
/// Most bytes of a path that are shown.
const SHOWN_MAX: usize = 1024;
/// Digits of a container's id, which Docker, Podman, containerd and CRI-O draw at random. They put it
/// into the control group's name: `docker-ID.scope`, `libpod-ID.scope`, `crio-ID.scope`,
/// `cri-containerd-ID.scope`, `/docker/ID`, `/kubepods/…/ID`, `….slice:cri-containerd:ID`.
const ID_DIGITS: usize = 64;

/// The control groups of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// Lines of `HIERARCHY:CONTROLLERS:PATH` (cgroups(7), "/proc files").
    text: String,
}

impl Cgroups {
    /// Those of process `pid`; `None` when it is gone or can't be asked.
    pub fn of(pid: Pid) -> Option<Cgroups> {
        let mut bytes = Vec::new();
        let file = File::open(format!("/proc/{pid}/cgroup")).ok()?;
        file.take(TEXT_MAX).read_to_end(&mut bytes).ok()?;
        Some(Cgroups::parse(&bytes))
    }

    /// Those that the bytes of such a file tell. A name may be of any bytes but line feeds
    /// (kernel/cgroup/cgroup.c, `cgroup_mkdir`); what is no text is replaced.
    pub fn parse(bytes: &[u8]) -> Cgroups {
        Cgroups {
            text: String::from_utf8_lossy(bytes).into_owned(),
        }
    }

    /// The path that says most: that of version 2, else systemd's, else any that is not the root.
    /// Where both versions are in use, one of them may have everything at its root. Empty when there
    /// is none.
    pub fn path(&self) -> &str {
        let order = |&(controllers, path): &(&str, &str)| match (controllers, path) {
            (_, "/") => 3,
            ("", _) => 0,
            ("name=systemd", _) => 1,
            _ => 2,
        };
        self.lines().min_by_key(order).map_or("", |(_, path)| path)
    }

    /// [`path`](Self::path), cut where it is too long to be shown.
    pub fn shown(&self) -> String {
        let path = self.path();
        match path.floor_char_boundary(SHOWN_MAX) {
            end if end < path.len() => format!("{}…", &path[..end]),
            _ => path.to_owned(),
        }
    }

    /// The id of the innermost container: 64 hexadecimal digits.
    pub fn container(&self) -> Option<&str> {
        let main = ids(self.path()).last();
        main.or_else(|| self.containers().last())
    }

    /// The ids of all containers that it is in, one being in another.
    pub fn containers(&self) -> impl Iterator<Item = &str> {
        self.lines().flat_map(|(_, path)| ids(path))
    }

    /// Whether it is in this control group of any hierarchy, or below it.
    pub fn is_within(&self, group: &str) -> bool {
        self.lines().any(|(_, path)| below(path, group).is_some())
    }

    /// The controllers (none: version 2) and the path of each line.
    fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        self.text.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            // A control group that was removed under a process that ends.
            let path = path.strip_suffix(" (deleted)").unwrap_or(path);
            path.starts_with('/').then_some((controllers, path))
        })
    }
}

/// The parts of a path that are ids of containers that what is there is in.
fn ids(path: &str) -> impl Iterator<Item = &str> {
    // The monitor of a container, of CRI-O and Podman, is outside of it: `crio-conmon-ID.scope`.
    let groups = path.split('/').filter(|name| !name.contains("-conmon-"));
    groups
        .flat_map(|name| name.split(|letter: char| !letter.is_alphanumeric()))
        .filter(|part| part.len() == ID_DIGITS && part.bytes().all(is_digit))
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OUTER: &str = "f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0";

    fn parse(text: &str) -> Cgroups {
        Cgroups::parse(text.as_bytes())
    }

    #[test]
    fn engines_put_the_id_into_the_name() {
        for path in [
            // Docker, podman and CRI-O under systemd, then under cgroupfs.
            "/system.slice/docker-ID.scope",
            "/machine.slice/libpod-ID.scope",
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/crio-ID.scope",
            "/docker/ID",
            "/libpod_parent/libpod-ID",
            // Kubernetes on containerd: systemd, cgroupfs, and one as if it were the other.
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod8f0c9d8e_a1b2.slice/\
             cri-containerd-ID.scope",
            "/kubepods/burstable/pod8f0c9d8e-a1b2-11ee-8f0c-0242ac120002/ID",
            "/system.slice/containerd.service/kubepods-burstable-pod1.slice:cri-containerd:ID",
            // From within a container whose own group is the root.
            "/../ID",
            // Docker in docker, Kubernetes in docker: the inner one is the process's.
            "/docker/OUTER/docker/ID",
            "/docker/OUTER/kubelet.slice/kubelet-kubepods.slice/cri-containerd-ID.scope",
            "/docker/OUTER/kubelet/kubepods/besteffort/pod8f0c9d8e-a1b2/ID",
            "/system.slice/docker-OUTER.scope/kubelet.slice/kubelet-kubepods.slice/\
             kubelet-kubepods-pod8f0c9d8e_a1b2.slice/cri-containerd-ID.scope",
            // Docker in a pod; what systemd and crun make below a container.
            "/kubepods/burstable/pod8f0c9d8e/OUTER/docker/ID",
            "/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-ID.scope/init.scope",
            "/kubepods.slice/kubepods-pod1_2.slice/crio-ID.scope/container",
            // CRI-O and Podman under cgroupfs; K3s without root.
            "/kubepods/besteffort/pod8f0c9d8e-a1b2/crio-ID",
            "/user.slice/user-1000.slice/user@1000.service/k3s-rootless.service/kubepods/pod1/ID",
            // cri-dockerd under systemd; a pod of Podman; ECS; a build.
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/docker-ID.scope",
            "/machine.slice/machine-libpod_pod_OUTER.slice/libpod-ID.scope",
            "/ecs/0a1b/ID",
            "/system.slice/docker.service/docker/buildkit/ID",
        ] {
            let path = path.replace("ID", ID).replace("OUTER", OUTER);
            let groups = parse(&format!("0::{path}\n"));
            assert_eq!(groups.path(), path);
            assert_eq!(groups.container(), Some(ID), "{path}");
        }
    }

    #[test]
    fn what_is_no_id_is_no_container() {
        for path in [
            "/user.slice/user-1000.slice/session-3.scope".to_owned(),
            // runc and systemd-nspawn by hand, LXC: names that somebody chose.
            "/pyebpf-test".to_owned(),
            "/machine.slice/machine-debian.scope/payload".to_owned(),
            "/lxc/web".to_owned(),
            format!("/{ID}0"),
            format!("/x{ID}"),
            format!("/kubepods.slice/kubepods-pod1_2.slice/crio-conmon-{ID}.scope"),
            format!("/machine.slice/libpod-conmon-{ID}.scope"),
            format!("/{}", ID.to_uppercase()),
            format!("/{}", &ID[..32]),
        ] {
            assert_eq!(parse(&format!("0::{path}")).container(), None, "{path}");
        }
    }

    #[test]
    fn the_path_that_says_most_is_the_process_s() {
        // Version 2 alone; both, with everything in one of them; version 1 alone.
        assert_eq!(parse("0::/a/b\n").path(), "/a/b");
        assert_eq!(
            parse("4:memory:/m\n1:name=systemd:/s\n0::/u\n").path(),
            "/u"
        );
        assert_eq!(parse("4:memory:/m\n1:name=systemd:/s\n0::/\n").path(), "/s");
        let text = format!("9:name=systemd:/\n4:memory:/docker/{ID}\n3:cpu,cpuacct:/\n0::/\n");
        assert_eq!(parse(&text).path(), format!("/docker/{ID}"));
        assert_eq!(parse("3:cpuset:/\n0::/\n").path(), "/");
        assert_eq!(parse("0::/a:b\n").path(), "/a:b");
        assert_eq!(parse("0::/a (deleted)\n").path(), "/a");
        // The path that is shown has no id, but another one does.
        let text = format!("4:memory:/docker/{ID}\n0::/init.scope\n");
        assert_eq!(parse(&text).container(), Some(ID));
        for nothing in ["", "\n", "0", "0::", "0:x", "::", "0::a"] {
            assert_eq!(
                (parse(nothing).path(), parse(nothing).container()),
                ("", None)
            );
        }
    }

    #[test]
    fn long_paths_are_cut_between_letters() {
        let path = format!("/{}", "é".repeat(SHOWN_MAX));
        let shown = parse(&format!("0::{path}")).shown();
        assert!(shown.len() <= SHOWN_MAX + '…'.len_utf8() && shown.ends_with("é…"));
        assert_eq!(Cgroups::parse(b"0::/a\xff").shown(), "/a\u{fffd}");
    }

    #[test]
    fn every_process_has_one() {
        let own = Cgroups::of(std::process::id()).unwrap();
        assert!(own.path().starts_with('/'), "{own:?}");
        assert_eq!(Cgroups::of(u32::MAX), None);
    }
}
