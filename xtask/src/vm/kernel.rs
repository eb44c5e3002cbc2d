//! Kernels of Debian for cloud machines: small, and most of what a guest needs is built in. Out
//! comes what QEMU boots: the kernel as an ELF file, and the modules to load, in their order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::archive::Suite;
use super::make_whole;
use super::tools::Tools;

/// What a user calls each kernel, and the release of Debian that has it.
pub(super) const KERNELS: [(&str, &str); 4] = [
    ("5.10", "bullseye"),
    ("6.1", "bookworm"),
    ("6.12", "trixie"),
    ("newest", "sid"),
];
/// Whether this kernel has `bpf_loop`, which came with 5.17.
pub(super) fn has_loop(name: &str) -> bool {
    name != KERNELS[0].0
}

/// Depends on the release's present kernel.
const META: &str = "linux-image-cloud-amd64";
/// For the file systems of a guest, each with those that it depends on.
const MODULES: [&str; 4] = ["virtio_pci", "fuse", "virtiofs", "overlay"];
/// `setup_sects`, `payload_offset` and `payload_length` of the boot protocol
/// (Documentation/arch/x86/boot.rst).
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD: usize = 0x248;

/// A kernel in the cache folder.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` prints it.
    pub(super) release: String,
    /// The kernel itself, not compressed.
    pub(super) image: PathBuf,
    /// Modules to load, in this order.
    pub(super) modules: Vec<PathBuf>,
}

impl Kernel {
    /// Gets the kernel of this name unless `folder` has it and it is not wanted `again`.
    pub(super) fn prepare(folder: &Path, tools: &Tools, name: &str, again: bool) -> Result<Kernel> {
        let Some((_, suite)) = KERNELS.into_iter().find(|(known, _)| *known == name) else {
            let known = KERNELS.map(|(name, _)| name).join(", ");
            bail!("no kernel is called {name:?}; there are {known}");
        };
        let place = folder.join("kernels").join(name);
        if again && place.exists() {
            fs::remove_dir_all(&place)
                .with_context(|| format!("cannot remove {}", place.display()))?;
        }
        make_whole(
            &place,
            &format!("the kernel {name} of Debian {suite}"),
            |new| fetch(&Suite::open(folder, suite)?, tools, new),
        )?;
        let release = fs::read_to_string(place.join("release"))
            .with_context(|| format!("{} is not whole; remove it", place.display()))?;
        let mut modules: Vec<PathBuf> = fs::read_dir(place.join("modules"))
            .with_context(|| format!("{} is not whole; remove it", place.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        modules.sort();
        Ok(Kernel {
            release,
            image: place.join("vmlinux"),
            modules,
        })
    }
}

fn fetch(suite: &Suite, tools: &Tools, into: &Path) -> Result<()> {
    let image = suite.needs(META, "linux-image-")?;
    let image = image.into_iter().next();
    let image = image.with_context(|| format!("{META} depends on no linux-image"))?;
    // From 7.0 on the image package is empty and depends on these two.
    let mut packages = suite.needs(&image, "linux-binary-")?;
    packages.extend(suite.needs(&image, "linux-modules-")?);
    if packages.is_empty() {
        packages.push(image);
    }
    let unpacked = into.join("unpacked");
    suite.unpack(&packages, &unpacked)?;

    let mut files = Vec::new();
    collect(&unpacked, &mut files)?;
    let compressed = files
        .iter()
        .find(|file| name_of(file).starts_with("vmlinuz"))
        .with_context(|| format!("{} have no vmlinuz", packages.join(", ")))?;
    let image = decompressed(tools, &fs::read(compressed)?)
        .with_context(|| format!("in {}", compressed.display()))?;
    fs::write(into.join("vmlinux"), image)?;

    let chosen = into.join("modules");
    fs::create_dir(&chosen)?;
    for (index, (name, bytes)) in modules(tools, &files)?.into_iter().enumerate() {
        fs::write(chosen.join(format!("{index:02}-{name}.ko")), bytes)?;
    }
    fs::write(into.join("release"), release_of(&files)?)?;
    fs::remove_dir_all(&unpacked)?;
    Ok(())
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), into)?;
        } else if kind.is_file() {
            into.push(entry.path());
        }
    }
    Ok(())
}

fn name_of(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The folder under `lib/modules` has the kernel's release as its name.
fn release_of(files: &[PathBuf]) -> Result<String> {
    let after = files.iter().find_map(|file| {
        let mut parts = file.iter().skip_while(|part| *part != "modules");
        parts.nth(1)
    });
    let release = after.context("the kernel's package has no lib/modules")?;
    Ok(release.to_string_lossy().into_owned())
}

/// The kernel within a `bzImage`: only that has the entry point that QEMU starts without firmware.
fn decompressed(tools: &Tools, image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("it is cut")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    ensure!(image.get(0x202..0x206).is_some(), "it is cut");
    ensure!(&image[0x202..0x206] == b"HdrS", "it is no kernel image");
    let sectors = match image[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + word(PAYLOAD)?;
    let packed = image.get(start..start + word(PAYLOAD + 4)?);
    let kernel = tools.unpacked(packed.context("it is cut")?)?;
    ensure!(kernel.starts_with(b"\x7fELF"), "no ELF file is in it");
    Ok(kernel)
}

/// The modules that a guest needs and that are not built in, dependencies first.
fn modules(tools: &Tools, files: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>> {
    let known: BTreeMap<String, &PathBuf> = files
        .iter()
        .filter_map(|file| {
            let name = name_of(file);
            let (module, rest) = name.split_once('.')?;
            rest.starts_with("ko")
                .then(|| (module.replace('-', "_"), file))
        })
        .collect();
    let mut chosen = Vec::new();
    let mut seen = BTreeSet::new();
    for name in MODULES {
        add(tools, &known, name, &mut seen, &mut chosen)?;
    }
    Ok(chosen)
}

fn add(
    tools: &Tools,
    known: &BTreeMap<String, &PathBuf>,
    name: &str,
    seen: &mut BTreeSet<String>,
    chosen: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    // What is no file is built in; if it is nowhere, the guest says what it could not mount.
    let Some(file) = known.get(name) else {
        return Ok(());
    };
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let mut bytes = fs::read(file)?;
    if file.extension().is_some_and(|extension| extension != "ko") {
        bytes = tools.unpacked(&bytes)?;
    }
    for needed in depends(&bytes) {
        add(tools, known, &needed, seen, chosen)?;
    }
    chosen.push((name.to_owned(), bytes));
    Ok(())
}

/// What a module says in its section `.modinfo`: `depends=a,b`, between zero bytes.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let at = module.windows(KEY.len()).position(|bytes| bytes == KEY);
    let list = at.map_or(&[][..], |at| &module[at + KEY.len()..]);
    let list = list.split(|&byte| byte == 0).next().unwrap_or_default();
    list.split(|&byte| byte == b',')
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_depends_on() {
        let module = b"\x7fELF..\0license=GPL\0depends=fuse,virtio-ring\0retpoline=Y\0";
        assert_eq!(depends(module), ["fuse", "virtio_ring"]);
        assert!(depends(b"\0depends=\0name=x\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }

    #[test]
    fn the_release_is_the_folder_of_the_modules() {
        let files = ["/a/boot/vmlinuz-6.1", "/a/lib/modules/6.1.0-50/kernel/x.ko"];
        let files = files.map(PathBuf::from);
        assert_eq!(release_of(&files).expect("it is there"), "6.1.0-50");
        assert!(release_of(&files[..1]).is_err());
    }
}
