//! One guest, from its start to its end: QEMU, which computes every instruction itself unless KVM
//! is asked for, with the host's files below the guest's root and a folder that both can write.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::initrd;
use super::kernel::Kernel;
use super::tools::Tools;
use crate::process::say;

const MEGABYTES: u32 = 2048;
const CPUS: u32 = 2;
/// How long a file server may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a guest may take to come to its job, four seconds mostly, and how often it is tried.
const UP: Duration = Duration::from_secs(90);
const BOOTS: u32 = 3;
/// Lines of the console that an error shows.
const CONSOLE_LINES: usize = 25;

/// What a guest is to do, and within which time.
#[derive(Debug)]
pub(super) struct Job<'a> {
    /// For `/bin/sh`, in the host's files, as root.
    pub(super) script: &'a str,
    pub(super) limit: Duration,
    pub(super) kvm: bool,
}

/// What a guest left.
#[derive(Debug)]
pub(super) struct Ended {
    folder: tempfile::TempDir,
    /// How the job's script ended.
    pub(super) code: i32,
}

impl Ended {
    /// A file that the job wrote in [`initrd::SHARED`]; empty when it is not there.
    pub(super) fn file(&self, name: &str) -> String {
        let bytes = fs::read(self.folder.path().join("shared").join(name));
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }
}

/// Boots the kernel, runs the job and waits for the guest's end.
///
/// # Errors
/// When the guest does not come up, or does not end in time: with the end of its console.
pub(super) fn run(tools: &Tools, kernel: &Kernel, job: &Job<'_>) -> Result<Ended> {
    for left in (0..BOOTS).rev() {
        match start(tools, kernel, job)? {
            Guest::Ended(ended) => return Ok(ended),
            // A timer that a computed CPU has lost: seen on busy machines, in one boot of ten.
            Guest::Stuck(console) if left == 0 => bail!(
                "the guest did not come up in {} s, {BOOTS} times; its console ends with:\n{console}",
                UP.as_secs()
            ),
            Guest::Stuck(_) => say("it does not come up: once more"),
        }
    }
    unreachable!("the last boot ends the loop")
}

/// What became of a boot.
#[derive(Debug)]
enum Guest {
    Ended(Ended),
    /// It never came to its job; this is the end of its console.
    Stuck(String),
}

fn start(tools: &Tools, kernel: &Kernel, job: &Job<'_>) -> Result<Guest> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("shared"))?;
    fs::write(at("shared/job"), job.script)?;
    fs::write(at("initrd"), initrd::make(kernel, &tools.busybox())?)?;

    let mut host = server(tools, Path::new("/"), &at("host.sock"));
    let host = host.args(["--cache", "always", "--readonly"]);
    let _host = Served::start(host, &at("host.sock"))?;
    let mut shared = server(tools, &at("shared"), &at("shared.sock"));
    let _shared = Served::start(&mut shared, &at("shared.sock"))?;

    let mut qemu = machine(tools, kernel, folder.path(), job.kvm);
    let said = fs::File::create(at("qemu"))?;
    let qemu = qemu.stdin(Stdio::null()).stdout(said.try_clone()?);
    let child = qemu.stderr(said).spawn().context("cannot run QEMU")?;
    let mut qemu = Running(child);
    let started = Instant::now();
    while qemu.0.try_wait()?.is_none() {
        if started.elapsed() > UP && !at("shared/up").exists() {
            return Ok(Guest::Stuck(last_words(folder.path())));
        }
        if started.elapsed() > job.limit {
            let console = last_words(folder.path());
            bail!(
                "the guest was still running after {} s; its console ends with:\n{console}",
                job.limit.as_secs()
            );
        }
        sleep(Duration::from_millis(50));
    }
    drop(qemu);
    let code = fs::read_to_string(at("shared/code")).unwrap_or_default();
    let Ok(code) = code.trim().parse() else {
        let console = last_words(folder.path());
        bail!("the guest ended before its job did; its console ends with:\n{console}")
    };
    Ok(Guest::Ended(Ended { folder, code }))
}

/// The end of what the guest's console and QEMU said.
fn last_words(folder: &Path) -> String {
    let mut text = String::new();
    for name in ["console", "qemu"] {
        let bytes = fs::read(folder.join(name)).unwrap_or_default();
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
}

fn server(tools: &Tools, folder: &Path, socket: &Path) -> Command {
    let mut command = tools.virtiofsd();
    command
        .arg("--shared-dir")
        .arg(folder)
        .arg("--socket-path")
        .arg(socket)
        // The guest is ours, and is root of all that we may read ourselves.
        .args(["--sandbox=none", "--inode-file-handles=never"])
        // An overlay shows nothing of a file system that is mounted below its own.
        .arg("--no-announce-submounts")
        .arg(format!("--rlimit-nofile={}", open_files()));
    command
}

/// How many files a process of ours may have open at most; its own default needs a privilege.
fn open_files() -> u64 {
    // SAFETY: the struct is plain numbers, and getrlimit fills it.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_max
    }
}

fn machine(tools: &Tools, kernel: &Kernel, folder: &Path, kvm: bool) -> Command {
    let mut command = tools.qemu();
    command
        .args(["-machine", "q35,hpet=off", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot"])
        .args(["-smp", &CPUS.to_string(), "-m", &MEGABYTES.to_string()]);
    if kvm {
        command.args(["-accel", "kvm", "-cpu", "host"]);
    } else {
        command.args(["-accel", "tcg,thread=multi,tb-size=256"]);
        command.args(["-cpu", "max,la57=off"]);
    }
    // The file servers look into the guest's memory.
    let memory = format!("memory-backend-memfd,id=memory,size={MEGABYTES}M,share=on");
    command.args(["-object", &memory, "-numa", "node,memdev=memory"]);
    for name in ["host", "shared"] {
        let socket = folder.join(format!("{name}.sock"));
        command
            .arg("-chardev")
            .arg(format!("socket,id={name},path={}", socket.display()))
            .arg("-device")
            .arg(format!(
                "vhost-user-fs-pci,chardev={name},tag={name},queue-size=256"
            ));
    }
    let console = format!("file:{}", folder.join("console").display());
    command.args(["-serial", &console]);
    command.arg("-kernel").arg(&kernel.image);
    command.arg("-initrd").arg(folder.join("initrd"));
    // The clock is not measured against a timer, which takes long when every instruction is
    // computed and is wrong when the host is busy.
    let words = format!(
        "console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable tsc_early_khz={} \
         cryptomgr.notests random.trust_cpu=1",
        clock_khz()
    );
    command.args(["-append", &words]);
    command
}

/// How fast this machine's time stamp counter runs: the guest reads the same one.
fn clock_khz() -> u64 {
    let counter = || {
        // SAFETY: every x86-64 has the instruction.
        #[cfg(target_arch = "x86_64")]
        return unsafe { std::arch::x86_64::_rdtsc() };
        #[cfg(not(target_arch = "x86_64"))]
        return 0;
    };
    let (start, before) = (Instant::now(), counter());
    sleep(Duration::from_millis(100));
    let (time, after) = (start.elapsed(), counter());
    (u128::from(after.wrapping_sub(before)) * 1_000_000 / time.as_nanos().max(1)) as u64
}

/// A process that ends when this is dropped.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must be waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file server that listens.
#[derive(Debug)]
struct Served(#[expect(dead_code, reason = "it lives as long as this")] Running);

impl Served {
    fn start(command: &mut Command, socket: &Path) -> Result<Served> {
        let log = tempfile::tempfile().context("no temporary file")?;
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?);
        let child = command.stderr(log.try_clone()?).spawn();
        let mut server = Running(child.context("cannot run virtiofsd")?);
        let started = Instant::now();
        while !socket.exists() {
            let ended = server.0.try_wait()?;
            if ended.is_some() || started.elapsed() > PATIENCE {
                let mut log = log;
                let mut text = String::new();
                std::io::Seek::rewind(&mut log)?;
                std::io::Read::read_to_string(&mut log, &mut text)?;
                bail!("the file server virtiofsd does not listen; it said:\n{text}");
            }
            sleep(Duration::from_millis(20));
        }
        Ok(Served(server))
    }
}
