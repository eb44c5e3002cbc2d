//! The guest's first file system: busybox, the modules, and a script that makes the host's files
//! the guest's root, under a layer that takes the changes, and then runs the job. A `cpio` archive
//! of the form `newc` (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::kernel::Kernel;

/// Where the guest finds the folder that it shares with us: as every Linux has `/mnt`.
pub(super) const SHARED: &str = "/mnt";

/// Everything that is done goes to the console; what the job says goes to files that we read.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
die() { echo "init: $*"; poweroff -f; }
for module in /modules/*; do
    [ -f "$module" ] && { insmod "$module" || echo "init: no $module"; }
done
mount -t virtiofs -o ro host /host || die "the host's files can't be mounted"
mount -t tmpfs changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work system /system ||
    die "the host's files can't be laid under the guest's"
mount -t virtiofs shared /system/mnt || die "the shared folder can't be mounted"
for folder in proc sys dev; do mount --move /$folder /system/$folder; done
sys=/system/sys
mkdir -p /system/dev/pts /system/dev/shm
mount -t devpts pts /system/dev/pts
mount -t tmpfs shm /system/dev/shm
mount -t tracefs trace $sys/kernel/tracing
mount -t bpf bpf $sys/fs/bpf
mount -t cgroup2 cgroup $sys/fs/cgroup
# What the kernel moves to larger pages is away meanwhile; here, where all is slow, for a second.
echo never > $sys/kernel/mm/transparent_hugepage/enabled
ip link set lo up
hostname guest
: > /system/mnt/up
chroot /system /bin/sh /mnt/job > /system/mnt/out 2> /system/mnt/err < /system/dev/null
echo $? > /system/mnt/code
sync
poweroff -f
"#;

/// Character device 5:1, where the kernel sends what `INIT` says.
const CONSOLE: (u32, u32) = (5, 1);
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;

/// The archive for a kernel.
pub(super) fn make(kernel: &Kernel, busybox: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in [
        "bin", "changes", "dev", "host", "modules", "proc", "sys", "system",
    ] {
        archive.add(name, FOLDER, (0, 0), &[]);
    }
    archive.add("dev/console", DEVICE, CONSOLE, &[]);
    archive.add("bin/busybox", PROGRAM, (0, 0), &read(busybox)?);
    archive.add("init", PROGRAM, (0, 0), INIT.as_bytes());
    for module in &kernel.modules {
        let name = module.file_name().context("a module has a name")?;
        let name = format!("modules/{}", name.to_string_lossy());
        archive.add(&name, PROGRAM, (0, 0), &read(module)?);
    }
    archive.add("TRAILER!!!", 0, (0, 0), &[]);
    Ok(archive.bytes)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let numbers = [
            self.entries, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // time
            content.len() as u32,
            0, // device that it is on
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // no checksum
        ];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes
                .extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_tell_their_sizes() {
        let mut archive = Archive::default();
        archive.add("init", PROGRAM, (0, 0), b"hello");
        let fields = [
            "070701", "00000001", "000081ed", "00000000", "00000000", "00000001", "00000000",
            "00000005", "00000000", "00000000", "00000000", "00000000", "00000005", "00000000",
        ];
        let mut expected = fields.concat().into_bytes();
        expected.extend_from_slice(b"init\0\0hello\0\0\0");
        assert_eq!(archive.bytes, expected);
        archive.add("x", FOLDER, (0, 0), &[]);
        assert_eq!(archive.bytes.len() % 4, 0);
    }
}
