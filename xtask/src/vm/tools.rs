//! QEMU and what goes with it, from Debian 13 with every library that it needs, down to the C
//! library: so it runs beside whatever the machine itself has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::Suite;
use super::make_whole;

/// The release with QEMU 10: 7.2, of Debian 12, crashes some of the guests.
const SUITE: &str = "trixie";
const PACKAGES: [&str; 6] = [
    "qemu-system-x86",
    "virtiofsd",
    "busybox-static",
    "lz4",
    "xz-utils",
    "zstd",
];
/// In the finished folder: what it was made of.
const MADE_OF: &str = "made-of";
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";

/// The folder with the unpacked tools.
#[derive(Debug)]
pub(super) struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Gets the tools unless they are in `folder` already.
    pub(super) fn prepare(folder: &Path) -> Result<Tools> {
        let root = folder.join("tools");
        let packages = PACKAGES.join(" ");
        if root.exists() && fs::read_to_string(root.join(MADE_OF)).ok().as_ref() != Some(&packages)
        {
            fs::remove_dir_all(&root)
                .with_context(|| format!("cannot remove {}", root.display()))?;
        }
        make_whole(&root, "QEMU of Debian 13, 180 MB", |new| {
            Suite::open(folder, SUITE)?.unpack_with_all(&PACKAGES, new)?;
            fs::write(new.join(MADE_OF), &packages).context("writing what it is made of")
        })?;
        Ok(Tools { root })
    }

    pub(super) fn qemu(&self) -> Command {
        let mut command = self.run("usr/bin/qemu-system-x86_64");
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.root.join(data));
        }
        command
    }

    pub(super) fn virtiofsd(&self) -> Command {
        self.run("usr/libexec/virtiofsd")
    }

    /// Linked statically: it runs in a guest, too.
    pub(super) fn busybox(&self) -> PathBuf {
        self.root.join("usr/bin/busybox")
    }

    /// What `packed`, the bytes of a file that xz, zstd or lz4 has made, unpacks to.
    pub(super) fn unpacked(&self, packed: &[u8]) -> Result<Vec<u8>> {
        let program = match packed {
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "usr/bin/xz",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "usr/bin/zstd",
            // The old form, which kernels have.
            [0x02, 0x21, 0x4c, 0x18, ..] => "usr/bin/lz4",
            _ => {
                let magic = &packed[..packed.len().min(6)];
                bail!("compressed in an unknown way: it begins with {magic:02x?}")
            }
        };
        let input = tempfile::NamedTempFile::new().context("no temporary file")?;
        fs::write(input.path(), packed).context("writing a temporary file")?;
        let mut command = self.run(program);
        command.args(["--decompress", "--stdout"]);
        let output = command
            .stdin(input.reopen()?)
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        // Something follows the data of a kernel's image, which the programs complain about.
        if output.stdout.is_empty() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{program} unpacked nothing: {said}");
        }
        Ok(output.stdout)
    }

    /// With its own C library rather than the machine's.
    fn run(&self, program: &str) -> Command {
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(self.root.join(LOADER));
        command.arg("--library-path").arg(libraries);
        command.arg(self.root.join(program));
        command
    }
}
