//! Whether this is a container or a virtual machine, as far as that can be told from inside: by the
//! marks that container engines leave, weighed with the namespaces, and by what the CPU says of a
//! hypervisor.

use std::{fs, path::Path};

use super::{Finding, printable};
use crate::{bpf::namespace, target::Cgroups};

/// Its number from Linux 6.18 on: `MNT_NS_INIT_INO`, include/uapi/linux/nsfs.h.
const INITIAL_MOUNT: &str = "mnt:[4026531832]";

pub(super) fn look() -> [Finding; 2] {
    let environment = fs::read("/proc/1/environ").unwrap_or_default();
    let marks = Marks {
        told: told(&environment),
        left: left(Path::new("/")),
        group: Cgroups::of(std::process::id())
            .and_then(|groups| groups.container().map(str::to_owned)),
    };
    let hypervisor = hypervisor();
    let machine = match &hypervisor {
        Some(what) => Finding::info("virtual_machine", what).with(what.as_str()),
        None => Finding::info("virtual_machine", "none"),
    };
    [container(&marks, Place::own()), machine]
}

/// Where pyebpf is, as far as its namespaces tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In a PID namespace within the machine's.
    Within,
    /// In the machine's own PID and mount namespaces, as no container is.
    Machine,
    /// In the machine's PID namespace and a mount namespace within: a container with `--pid=host`, or
    /// a service of systemd.
    OtherMounts,
    /// In the machine's PID namespace; whose the mount namespace is can't be told.
    Unclear,
}

impl Place {
    fn own() -> Place {
        let link = |path: &str| Some(fs::read_link(path).ok()?.to_string_lossy().into_owned());
        let initial = namespace::own().is_ok_and(namespace::is_initial);
        // Process 2 of the initial PID namespace is kthreadd, which never leaves the namespaces that
        // the kernel began with (init/main.c, `rest_init`).
        let machine = initial.then(|| link("/proc/2/ns/mnt")).flatten();
        Place::of(initial, link("/proc/self/ns/mnt"), machine)
    }

    /// From whether the PID namespace is the initial one, the own mount namespace and the machine's.
    fn of(initial: bool, own: Option<String>, machine: Option<String>) -> Place {
        match (own, machine) {
            _ if !initial => Place::Within,
            (Some(own), _) if own == INITIAL_MOUNT => Place::Machine,
            (Some(own), Some(machine)) if own == machine => Place::Machine,
            (Some(_), Some(_)) => Place::OtherMounts,
            _ => Place::Unclear,
        }
    }
}

/// What speaks for a container.
#[derive(Debug, Default)]
struct Marks {
    /// What process 1 was told.
    told: Option<String>,
    /// The file that an engine left.
    left: Option<&'static str>,
    /// The container's id in pyebpf's own control group.
    group: Option<String>,
}

/// What the marks are worth there. A file proves nothing where namespaces say otherwise: images of
/// virtual machines are made from those of containers.
fn container(marks: &Marks, place: Place) -> Finding {
    const KEY: &str = "container";
    let what = marks.told.as_deref().or(marks.left);
    if let Some(id) = &marks.group {
        let what = what.unwrap_or("one without a mark");
        return Finding::info(KEY, format!("{what}: {id}")).with(id.as_str());
    }
    let Some(what) = what else {
        return Finding::info(
            KEY,
            match place {
                Place::Within => "none that left a mark, but a PID namespace of its own",
                _ => "none",
            },
        );
    };
    match place {
        Place::Within => Finding::info(KEY, what).with(what),
        Place::Machine => Finding::info(
            KEY,
            format!("none: a mark says {what}, but the PID and mount namespaces are the machine's"),
        ),
        Place::OtherMounts | Place::Unclear => {
            let mounts = match place {
                Place::OtherMounts => "is not",
                _ => "cannot be told",
            };
            Finding::info(
                KEY,
                format!(
                    "perhaps {what}: the PID namespace is the machine's, as under \
                     `docker run --pid=host`; the mount namespace {mounts}"
                ),
            )
            .with(what)
        }
    }
}

/// What process 1 was told of the engine that started it (systemd's CONTAINER_INTERFACE:
/// `container=`).
fn told(environment: &[u8]) -> Option<String> {
    let name = environment
        .split(|&byte| byte == 0)
        .find_map(|variable| variable.strip_prefix(b"container="))
        .filter(|name| !name.is_empty())?;
    Some(printable(&String::from_utf8_lossy(name)))
}

/// The engine whose mark is in this root folder.
fn left(root: &Path) -> Option<&'static str> {
    let marks = [
        ("run/.containerenv", "Podman (/run/.containerenv)"),
        (".dockerenv", "Docker (/.dockerenv)"),
        (
            "run/systemd/container",
            "told by systemd (/run/systemd/container)",
        ),
        (
            "var/run/secrets/kubernetes.io",
            "Kubernetes (/var/run/secrets/kubernetes.io)",
        ),
    ];
    let mark = marks.iter().find(|(path, _)| root.join(path).exists());
    mark.map(|&(_, name)| name)
}

/// What the CPU calls the hypervisor below it: leaf 0x40000000 of CPUID, where bit 31 of ECX of leaf
/// 1 says that there is one (Documentation/virt/kvm/x86/cpuid.rst).
#[cfg(target_arch = "x86_64")]
fn hypervisor() -> Option<String> {
    use std::arch::x86_64::__cpuid;

    let present = __cpuid(1).ecx >> 31 != 0;
    present.then(|| {
        let leaf = __cpuid(0x4000_0000);
        let words = [leaf.ebx, leaf.ecx, leaf.edx];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let signature = String::from_utf8_lossy(&bytes);
        named(signature.trim_end_matches('\0'))
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn hypervisor() -> Option<String> {
    None
}

fn named(signature: &str) -> String {
    let name = match signature {
        "KVMKVMKVM" => "KVM",
        "TCGTCGTCGTCG" => "QEMU without KVM: times say nothing here",
        "VMwareVMware" => "VMware",
        "Microsoft Hv" => "Hyper-V",
        "XenVMMXenVMM" => "Xen",
        "VBoxVBoxVBox" => "VirtualBox",
        "bhyve bhyve " => "bhyve",
        "" => "one without a name",
        other => return printable(other),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_known_by_their_marks() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(left(root.path()), None);
        fs::write(root.path().join(".dockerenv"), "").unwrap();
        assert_eq!(left(root.path()), Some("Docker (/.dockerenv)"));
        assert_eq!(told(b"PATH=/bin\0container=\0"), None);
        let lxc = told(b"PATH=/bin\0container=l\x1bxc\0");
        assert_eq!(lxc.as_deref(), Some("l?xc"));
    }

    #[test]
    fn a_mark_that_was_left_over_makes_no_container() {
        let marked = Marks {
            left: Some("Docker (/.dockerenv)"),
            ..Marks::default()
        };
        let seen = |marks: &Marks, place| container(marks, place).seen;
        assert_eq!(seen(&marked, Place::Within), "Docker (/.dockerenv)");
        let machine = container(&marked, Place::Machine);
        assert!(machine.seen.starts_with("none: "), "{}", machine.seen);
        assert!(machine.seen.contains("/.dockerenv") && machine.value.is_null());
        // `docker run --pid=host` looks so, and so does a service on that machine.
        for place in [Place::OtherMounts, Place::Unclear] {
            let text = seen(&marked, place);
            assert!(text.starts_with("perhaps Docker (/.dockerenv)"), "{text}");
            assert!(text.contains("--pid=host"), "{text}");
        }
        assert_eq!(seen(&Marks::default(), Place::Machine), "none");
        assert!(seen(&Marks::default(), Place::Within).contains("PID namespace of its own"));
    }

    #[test]
    fn a_container_s_control_group_proves_it() {
        let id = "0123456789abcdef".repeat(4);
        let marks = Marks {
            left: Some("Docker (/.dockerenv)"),
            group: Some(id.clone()),
            ..Marks::default()
        };
        let finding = container(&marks, Place::OtherMounts);
        assert_eq!(finding.seen, format!("Docker (/.dockerenv): {id}"));
        assert_eq!(finding.value, id);
    }

    #[test]
    fn namespaces_tell_where_this_is() {
        let place = |initial, own: &str, machine: Option<&str>| {
            Place::of(initial, Some(own.to_owned()), machine.map(str::to_owned))
        };
        assert_eq!(place(false, INITIAL_MOUNT, None), Place::Within);
        assert_eq!(place(true, INITIAL_MOUNT, None), Place::Machine);
        // Before 6.18 it has one of the numbers that others get, too.
        let first = "mnt:[4026531841]";
        assert_eq!(place(true, first, Some(first)), Place::Machine);
        assert_eq!(
            place(true, "mnt:[4026532300]", Some(first)),
            Place::OtherMounts
        );
        assert_eq!(place(true, first, None), Place::Unclear);
        assert_eq!(Place::of(true, None, None), Place::Unclear);
    }

    #[test]
    fn hypervisors_have_names() {
        assert_eq!(named("KVMKVMKVM"), "KVM");
        assert_eq!(named("new\n"), "new?");
    }
}
