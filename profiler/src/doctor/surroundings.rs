//! Whether this is a container or a virtual machine, as far as that can be told from inside: by the
//! marks that container engines leave, and by what the CPU says of a hypervisor.

use std::{fs, path::Path};

use super::{Finding, printable};

pub(super) fn look() -> [Finding; 2] {
    let environment = fs::read("/proc/1/environ").unwrap_or_default();
    let container = match container(Path::new("/"), &environment) {
        Some(what) => Finding::info("container", &what).with(what),
        None => Finding::info("container", "none"),
    };
    let hypervisor = hypervisor();
    let machine = match &hypervisor {
        Some(what) => Finding::info("virtual_machine", what).with(what.as_str()),
        None => Finding::info("virtual_machine", "none"),
    };
    [container, machine]
}

/// The engine whose container has this root folder, by the mark that it left there or by what it told
/// its first process (systemd's CONTAINER_INTERFACE: `container=`).
fn container(root: &Path, environment: &[u8]) -> Option<String> {
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
    let told = environment
        .split(|&byte| byte == 0)
        .find_map(|variable| variable.strip_prefix(b"container="))
        .filter(|name| !name.is_empty());
    let told = told.map(|name| printable(&String::from_utf8_lossy(name)));
    told.or_else(|| {
        let mark = marks.iter().find(|(path, _)| root.join(path).exists());
        mark.map(|(_, name)| (*name).to_owned())
    })
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
        let seen = |environment: &[u8]| container(root.path(), environment);
        assert_eq!(seen(b"PATH=/bin\0container=\0"), None);
        let lxc = seen(b"PATH=/bin\0container=l\x1bxc\0");
        assert_eq!(lxc.as_deref(), Some("l?xc"));
        fs::write(root.path().join(".dockerenv"), "").unwrap();
        assert_eq!(seen(b"").as_deref(), Some("Docker (/.dockerenv)"));
    }

    #[test]
    fn hypervisors_have_names() {
        assert_eq!(named("KVMKVMKVM"), "KVM");
        assert_eq!(named("new\n"), "new?");
    }
}
