//! Debian's archive, any release of it: apt with lists and settings of its own in the cache folder,
//! which never touches the machine's. Package names in, unpacked folders out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::mirror;
use crate::process::{find, quietly, text_of};

/// Debian's own, for a machine whose apt names none.
const MIRROR: &str = "http://deb.debian.org/debian/";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One release of Debian, such as `trixie`.
#[derive(Debug)]
pub(super) struct Suite {
    folder: PathBuf,
    name: &'static str,
}

impl Suite {
    /// Gets the release's package lists, below `folder`.
    pub(super) fn open(folder: &Path, name: &'static str) -> Result<Suite> {
        for program in ["apt-get", "dpkg-deb"] {
            if find(program).is_none() {
                bail!("there is no {program}: kernels come from Debian's archive, through apt");
            }
        }
        if !Path::new(KEYS).is_file() {
            bail!("{KEYS} is missing: `apt-get install debian-archive-keyring`");
        }
        let suite = Suite {
            folder: folder.join("apt").join(name),
            name,
        };
        suite.configure()?;
        quietly(suite.apt("apt-get").arg("update"))?;
        Ok(suite)
    }

    fn configure(&self) -> Result<()> {
        let folder = self.folder.display();
        for part in ["etc", "state/lists/partial", "cache/archives/partial"] {
            let part = self.folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let mirror = mirror().unwrap_or_else(|| MIRROR.to_owned());
        let sources = format!("deb [signed-by={KEYS}] {mirror} {} main\n", self.name);
        let settings = format!(
            "Dir::Etc \"{folder}/etc/\";\n\
             Dir::Etc::sourcelist \"{folder}/etc/sources.list\";\n\
             Dir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::preferencesparts \"/dev/null\";\n\
             Dir::State \"{folder}/state/\";\n\
             Dir::State::status \"{folder}/status\";\n\
             Dir::Cache \"{folder}/cache/\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n\
             APT::Architecture \"amd64\";\n\
             APT::Architectures {{ \"amd64\"; }};\n\
             APT::Sandbox::User \"root\";\n\
             APT::Update::Post-Invoke-Success \"\";\n"
        );
        // No package is installed, so that everything is fetched, down to the C library.
        for (name, text) in [
            ("etc/sources.list", sources.as_str()),
            ("apt.conf", &settings),
            ("status", ""),
        ] {
            let path = self.folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--config-file")
            .arg(self.folder.join("apt.conf"));
        command.arg("--quiet");
        command
    }

    /// The packages that `package` depends on directly and whose names begin with `prefix`.
    pub(super) fn needs(&self, package: &str, prefix: &str) -> Result<Vec<String>> {
        let mut command = self.apt("apt-cache");
        let text = text_of(command.args(["depends", "--important", package]))?;
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .filter(|name| name.starts_with(prefix));
        Ok(names.map(str::to_owned).collect())
    }

    /// Unpacks these packages, and nothing that they depend on, into `folder`.
    pub(super) fn unpack(&self, packages: &[String], folder: &Path) -> Result<()> {
        let archives = tempfile::tempdir().context("no temporary folder")?;
        let mut command = self.apt("apt-get");
        command.arg("download").args(packages);
        quietly(command.current_dir(archives.path()))?;
        extract(archives.path(), folder)
    }

    /// Unpacks these packages with all that they depend on into `folder`.
    pub(super) fn unpack_with_all(&self, packages: &[&str], folder: &Path) -> Result<()> {
        let mut command = self.apt("apt-get");
        command.args(["--yes", "--no-install-recommends", "--download-only"]);
        quietly(command.arg("install").args(packages))?;
        extract(&self.folder.join("cache/archives"), folder)?;
        quietly(self.apt("apt-get").arg("clean"))
    }
}

fn extract(archives: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let list =
        fs::read_dir(archives).with_context(|| format!("cannot list {}", archives.display()))?;
    let mut found = false;
    for entry in list {
        let archive = entry?.path();
        if archive.extension().is_some_and(|kind| kind == "deb") {
            found = true;
            quietly(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(&archive)
                    .arg(folder),
            )?;
        }
    }
    if !found {
        bail!("apt put no package into {}", archives.display());
    }
    Ok(())
}
