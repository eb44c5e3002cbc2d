//! Processes by control group and by container: which are profiled, as they start, fork and are
//! moved, and what the outputs say of them.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use prost::Message as _;
use pyebpf::output::pprof::proto;
use pyebpf_tests::pythons::Python;
use pyebpf_tests::raw::samples;
use pyebpf_tests::recording::{Recording, Running, pyebpf, record};
use pyebpf_tests::skip;
use pyebpf_tests::start::{Start, around, start};
use pyebpf_tests::workload::{Target, folder};
use tempfile::TempDir;

use crate::{has, record_during, with_python};

/// For longer than a move from one control group to another may go unnoticed.
const NOTICED: Duration = Duration::from_millis(2500);

/// A control group of version 2, which goes when it is dropped. Its processes must be gone by then.
struct Group(PathBuf);

impl Group {
    /// One of this name below the root, or why there can be none.
    fn make(name: &str) -> Result<Group, String> {
        // Where version 1 is in use as well, systemd mounts version 2 beside it.
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let root = roots
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists());
        let root = root.ok_or("no control groups of version 2 are mounted")?;
        let path = root.join(format!("pyebpf-test-{}-{name}", std::process::id()));
        Group::at(path).map_err(|error| format!("{error:#}"))
    }

    fn at(path: PathBuf) -> Result<Group> {
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Group(path))
    }

    /// What `/proc/PID/cgroup` calls it.
    fn path(&self) -> String {
        let parts = self.0.iter().skip_while(|part| !is_own(part));
        let parts: Vec<_> = parts.map(|part| part.to_string_lossy()).collect();
        format!("/{}", parts.join("/"))
    }

    fn start(&self, python: &Python, workload: &[&str]) -> Result<Target> {
        const SCRIPT: &str = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        let path = self.0.to_str().context("a path of text")?;
        let inner = python.command(&folder(), workload);
        Target::start(around(&["sh", "-c", SCRIPT, path], &inner))
    }

    fn take(&self, target: &Target) -> Result<()> {
        Ok(fs::write(
            self.0.join("cgroup.procs"),
            target.pid.to_string(),
        )?)
    }
}

fn is_own(part: &std::ffi::OsStr) -> bool {
    part.to_string_lossy().starts_with("pyebpf-test-")
}

impl Drop for Group {
    fn drop(&mut self) {
        // Children of what a test has killed end by themselves, soon.
        let gone = (0..200).any(|_| {
            sleep(Duration::from_millis(10));
            fs::remove_dir(&self.0).is_ok()
        });
        if !gone {
            eprintln!("{} is left behind", self.0.display());
        }
    }
}

/// Runs a test of one Python and two control groups, alone on the machine.
fn with_groups(test: &str, body: impl FnOnce(&Python, &Group, &Group) -> Result<()>) {
    with_python(test, |python| {
        let groups = Group::make("a").and_then(|a| Ok((a, Group::make("b")?)));
        match groups {
            Ok((a, b)) => body(python, &a, &b),
            Err(why) => {
                skip(test, &why);
                Ok(())
            }
        }
    });
}

/// How many samples of this process have this function.
fn seen(recording: &Recording, pid: u32, function: &str) -> u64 {
    let stacks = recording.of(pid);
    samples(stacks.iter().filter(|stack| has(stack, function)))
}

/// Which processes the profile shows; it must be of several.
fn pids(recording: &Recording) -> Vec<u32> {
    let mut pids: Vec<u32> = recording
        .stacks
        .iter()
        .filter_map(|stack| stack.process)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

#[test]
fn a_control_group_selects_what_is_in_it_now_and_later() {
    const TEST: &str = "a_control_group_selects_what_is_in_it_now_and_later";
    with_groups(TEST, |python, a, b| {
        let inner = Group::at(a.0.join("inner"))?;
        let now = inner.start(python, &["lifecycle.py", "forks"])?;
        let other = b.start(python, &["lifecycle.py", "works"])?;
        let mut later = None;
        let recording = record_during(&["-r", "199", "--cgroup", &a.path()], || {
            later = Some((
                a.start(python, &["lifecycle.py", "works"])?,
                b.start(python, &["lifecycle.py", "works"])?,
            ));
            sleep(Duration::from_secs(4));
            Ok(())
        })?;
        let (later, later_other) = later.context("they were started")?;
        let child = now.said["child"].as_u64().context("a child is told")? as u32;
        ensure!(seen(&recording, now.pid, "in_parent") > 0, "{recording:?}");
        ensure!(seen(&recording, child, "in_child") > 0, "{recording:?}");
        ensure!(
            seen(&recording, later.pid, "in_parent") > 0,
            "{recording:?}"
        );
        for pid in [other.pid, later_other.pid] {
            ensure!(!pids(&recording).contains(&pid), "{recording:?}");
        }
        // The late child of the first one is the fourth.
        ensure!(pids(&recording).len() == 4, "{recording:?}");
        drop(now);
        Ok(())
    });
}

#[test]
fn a_control_group_may_be_named_by_its_folder_and_be_empty_at_first() {
    const TEST: &str = "a_control_group_may_be_named_by_its_folder_and_be_empty_at_first";
    with_groups(TEST, |python, a, b| {
        let _other = b.start(python, &["lifecycle.py", "works"])?;
        let path = a.0.to_str().context("a path of text")?;
        let mut later = None;
        let recording = record_during(&["--cgroup", path], || {
            later = Some(a.start(python, &["lifecycle.py", "works"])?);
            sleep(Duration::from_secs(2));
            Ok(())
        })?;
        ensure!(recording.stderr.contains("waiting"), "{}", recording.stderr);
        // Of one process there is no process frame.
        ensure!(pids(&recording).is_empty(), "{recording:?}");
        ensure!(recording.stderr.contains(" 1 process"), "{recording:?}");
        ensure!(seen(&recording, 0, "in_parent") > 0, "{recording:?}");
        Ok(())
    });
}

#[test]
fn a_process_that_is_moved_is_profiled_where_it_was_asked_for() {
    const TEST: &str = "a_process_that_is_moved_is_profiled_where_it_was_asked_for";
    with_groups(TEST, |python, a, b| {
        let stays = a.start(python, &["lifecycle.py", "works"])?;
        let comes = b.start(python, &["lifecycle.py", "works"])?;
        let goes = a.start(python, &["lifecycle.py", "forks"])?;
        let goes_at_once = a.start(python, &["lifecycle.py", "works"])?;
        goes_at_once.signal(libc::SIGSTOP)?;
        let recording = record_during(&["--cgroup", &a.path()], || {
            a.take(&comes)?;
            b.take(&goes)?;
            b.take(&goes_at_once)?;
            sleep(NOTICED);
            goes_at_once.signal(libc::SIGCONT)?;
            sleep(Duration::from_secs(2));
            Ok(())
        })?;
        for (target, is_seen) in [(&stays, true), (&comes, true), (&goes_at_once, false)] {
            let count = seen(&recording, target.pid, "in_parent");
            ensure!((count > 0) == is_seen, "{}: {recording:?}", target.pid);
        }
        Ok(())
    });
}

#[test]
fn a_container_is_named_by_its_id_and_shown() {
    const TEST: &str = "a_container_is_named_by_its_id_and_shown";
    if let Some(why) = Start::Runc.lacks() {
        return skip(TEST, &why);
    }
    with_python(TEST, |python| {
        let work = ["lifecycle.py", "works"];
        let started = [(); 2].map(|()| start(Start::Runc, python, &work));
        let [first, second] = started;
        let (first, second) = (first?, second?);
        let bare = python.start(&work)?;
        let id = first.container().context("runc gave it an id")?;
        let other = second.container().context("runc gave it an id")?;

        let recording = record(&["-d", "2"])?;
        for (pid, container) in [
            (first.target.pid, Some(&id[..12])),
            (second.target.pid, Some(&other[..12])),
            (bare.pid, None),
        ] {
            let stacks = recording.of(pid);
            ensure!(samples(&stacks) > 0, "{pid}: {recording:?}");
            for stack in stacks {
                ensure!(stack.container.as_deref() == container, "{stack:?}");
            }
        }

        let profile = TempDir::new()?;
        let path = profile.path().join("out.pb.gz");
        let mut command = pyebpf(&["record", "-d", "2", "--container", &id[..16], "-o"]);
        let ended = Running::start(command.arg(&path))?.wait()?;
        ensure!(ended.status.success(), "{}", ended.stderr);
        let labels = labels(&path)?;
        ensure!(!labels.is_empty(), "{}", ended.stderr);
        for [pid, cgroup, container] in labels {
            ensure!(pid == first.target.pid.to_string(), "{pid}");
            ensure!(cgroup.starts_with('/') && cgroup.contains(id), "{cgroup}");
            ensure!(container == id, "{container}");
        }

        // Those of one test begin alike.
        let beginning = &id[..8];
        let arguments = ["record", "-d", "1", "-o", "-", "--container", beginning];
        let ended = Running::start(&mut pyebpf(&arguments))?.wait()?;
        ensure!(ended.status.code() == Some(2), "{}", ended.stderr);
        for id in [id, other] {
            ensure!(ended.stderr.contains(id), "{}", ended.stderr);
        }
        Ok(())
    });
}

/// Process, control group and container of each sample of a pprof file.
fn labels(path: &Path) -> Result<Vec<[String; 3]>> {
    let mut bytes = Vec::new();
    GzDecoder::new(fs::File::open(path)?).read_to_end(&mut bytes)?;
    let profile = proto::Profile::decode(bytes.as_slice())?;
    let string = |index: i64| profile.string_table[index as usize].as_str();
    let label = |sample: &proto::Sample, key: &str| {
        let label = sample.label.iter().find(|label| string(label.key) == key);
        label.map_or_else(String::new, |label| match label.str {
            0 => label.num.to_string(),
            str => string(str).to_owned(),
        })
    };
    let samples = profile.sample.iter();
    Ok(samples
        .map(|sample| ["pid", "cgroup", "container"].map(|key| label(sample, key)))
        .collect())
}
