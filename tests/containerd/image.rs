//! A container image, as `docker save` writes them (docker/docker, `image/spec/spec.md`), made of what
//! Pythons in a root folder need.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

/// What is taken of the root folder, where it is there.
const PARTS: [&str; 14] = [
    "bin",
    "sbin",
    "lib",
    "lib64",
    "etc/ld.so.cache",
    "etc/passwd",
    "mnt",
    "usr/bin/python3.13",
    "usr/bin/python3.15",
    "usr/bin/sleep",
    "usr/lib/python3.13",
    "usr/lib/python3.15",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
];

/// What is missing in this root folder, if anything is.
pub(super) fn lacks(root: &Path) -> Option<String> {
    let missing = ["usr/bin/python3.13", "usr/bin/sleep"];
    let missing = missing.iter().find(|part| !root.join(part).exists())?;
    Some(format!("there is no {missing} in {}", root.display()))
}

/// Writes the image; run without a command, it sleeps.
pub(super) fn make(name: &str, root: &Path, archive: &Path) -> Result<()> {
    let folder = TempDir::new()?;
    let layer = folder.path().join("layer.tar");
    let parts = PARTS
        .iter()
        .filter(|part| root.join(part).symlink_metadata().is_ok());
    let mut tar = Command::new("tar");
    tar.arg("--directory").arg(root);
    run(tar.arg("--create").arg("--file").arg(&layer).args(parts))?;
    let digest = digest(&layer)?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/bin:/bin"],
            "Cmd": ["/usr/bin/sleep", "infinity"],
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    fs::write(folder.path().join("config.json"), config.to_string())?;
    fs::write(folder.path().join("manifest.json"), manifest.to_string())?;
    let mut tar = Command::new("tar");
    tar.arg("--directory").arg(folder.path());
    tar.arg("--create").arg("--file").arg(archive);
    run(tar.args(["config.json", "layer.tar", "manifest.json"]))?;
    Ok(())
}

fn digest(file: &Path) -> Result<String> {
    let said = run(Command::new("sha256sum").stdin(File::open(file)?))?;
    let digest = said
        .split_whitespace()
        .next()
        .context("sha256sum says nothing")?;
    Ok(digest.to_owned())
}

/// Runs this and gives what it says.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}
