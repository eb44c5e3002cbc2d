//! That what the kernel program counts, what arrives and what is in the profile agree to the last
//! sample, and that programs can read it all.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::pythons::{self, Python};
use pyebpf_tests::raw::{self, samples};
use pyebpf_tests::recording::{Ended, Running, pyebpf};
use pyebpf_tests::workload::Target;
use pyebpf_tests::{can_profile, turn};
use serde_json::Value;
use tempfile::TempDir;

/// The samples that were lost or left out before their outcome was counted.
const UNSEEN: [&str; 4] = ["forgotten", "undecodable", "unread", "without_stack"];
/// How a run of the kernel program ends that walks no stack.
const NO_WALKS: [&str; 4] = ["not_target", "not_looked", "not_python", "not_walked"];

fn with_python(test: &str, body: impl FnOnce(&Python, &Path) -> Result<()>) {
    if !can_profile(test) {
        return;
    }
    let Some(python) = pythons::any(test) else {
        return;
    };
    let _turn = turn();
    let folder = TempDir::new().expect("a temporary folder can be made");
    if let Err(error) = body(&python, folder.path()) {
        panic!("{}: {error:#}", python.name);
    }
}

/// Starts a recording whose profile and summary go to this folder.
fn start(folder: &Path, arguments: &[&str]) -> Result<Running> {
    let mut command = pyebpf(&["record", "-f", "raw", "-o"]);
    command.arg(folder.join("profile.txt"));
    command.arg("--stats").arg(folder.join("stats.json"));
    Running::start(command.args(arguments))
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("no count: {value}"))
}

fn sum(counts: &Value) -> Result<u64> {
    let counts = counts.as_object().context("no counts")?;
    counts.values().map(number).sum()
}

fn is_marker(stack: &raw::Stack) -> bool {
    matches!(&stack.frames[..], [frame] if frame.name.starts_with("[unreadable"))
}

/// Checks the sums of a recording that has ended and gives its summary.
fn accounts(folder: &Path, ended: &Ended) -> Result<Value> {
    ensure!(ended.status.success(), "{}", ended.stderr);
    let stats = std::fs::read_to_string(folder.join("stats.json"))?;
    let stats: Value = serde_json::from_str(&stats)?;
    let say = || format!("{stats:#}\n{}", ended.stderr);
    let kernel = &stats["kernel"];
    let walks = sum(&kernel["outcomes"])?;
    let mut runs = walks;
    for end in NO_WALKS {
        runs += number(&kernel[end])?;
    }
    ensure!(runs == number(&kernel["runs"])?, "runs: {}", say());
    let mut taken = sum(&stats["outcomes"])? + number(&kernel["ring_full"])?;
    for loss in UNSEEN {
        // A loss that this build does not know is none.
        taken += stats["losses"].get(loss).map_or(Ok(0), number)?;
    }
    ensure!(taken == walks, "samples: {}", say());
    let profile = raw::parse(&std::fs::read_to_string(folder.join("profile.txt"))?)?;
    let shown = samples(&profile);
    ensure!(number(&stats["samples"])? == shown, "profile: {}", say());
    let native = &stats["native"];
    let walked = match native["asked"] == true {
        // A marker alone is a sample without any frame.
        true => samples(profile.iter().filter(|stack| !is_marker(stack))),
        false => 0,
    };
    ensure!(sum(&native["ends"])? == walked, "native: {}", say());
    let none = stats["unaccounted"].as_object().context("no object")?;
    ensure!(none.is_empty(), "unaccounted: {}", say());
    Ok(stats)
}

fn works(python: &Python) -> Result<Target> {
    python.start(&["lifecycle.py", "works"])
}

#[test]
fn counts_agree_when_the_ring_buffer_overflows_and_processes_die() {
    with_python(
        "counts_agree_when_the_ring_buffer_overflows_and_processes_die",
        |python, folder| {
            let mut targets = (0..4).map(|_| works(python)).collect::<Result<Vec<_>>>()?;
            let arguments = ["--all-python", "-r", "999", "--buffer", "64K"];
            let running = start(folder, &arguments)?;
            running.wait_until_it_samples()?;
            sleep(Duration::from_secs(1));
            // Nobody reads meanwhile: a few hundred samples fill the buffer.
            running.signal(libc::SIGSTOP)?;
            targets.pop();
            for _ in 0..20 {
                let mut short = Command::new(python.program());
                ensure!(short.args(["-c", "sum(range(10**5))"]).status()?.success());
            }
            sleep(Duration::from_secs(4));
            running.signal(libc::SIGCONT)?;
            sleep(Duration::from_secs(1));
            targets.pop();
            sleep(Duration::from_secs(1));
            running.signal(libc::SIGINT)?;
            let ended = running.wait()?;
            let stats = accounts(folder, &ended)?;
            ensure!(
                number(&stats["losses"]["ring_full"])? > 0,
                "nothing was lost: {stats:#}"
            );
            ensure!(stats["end"] == "interrupted", "{stats:#}");
            let advice = stats["advice"].as_str().context("no advice")?;
            ensure!(advice.contains("--buffer"), "{advice}");
            ensure!(ended.stderr.contains(advice), "{}", ended.stderr);
            Ok(())
        },
    );
}

#[test]
fn counts_agree_when_stacks_find_no_room() {
    with_python("counts_agree_when_stacks_find_no_room", |python, folder| {
        // Each stack takes 14 KiB.
        let targets = (0..6).map(|_| python.start(&["deep.py", "900"]));
        let targets = targets.collect::<Result<Vec<_>>>()?;
        let mut arguments = vec!["-r", "499", "--buffer", "64K"];
        let pids: Vec<String> = targets
            .iter()
            .map(|target| target.pid.to_string())
            .collect();
        for pid in &pids {
            arguments.extend(["-p", pid]);
        }
        let running = start(folder, &arguments)?;
        running.wait_until_it_samples()?;
        running.signal(libc::SIGSTOP)?;
        sleep(Duration::from_secs(3));
        running.signal(libc::SIGCONT)?;
        sleep(Duration::from_secs(1));
        running.signal(libc::SIGINT)?;
        let stats = accounts(folder, &running.wait()?)?;
        let lost = number(&stats["kernel"]["stacks_lost"])?;
        ensure!(lost > 0, "no stack was lost: {stats:#}");
        ensure!(number(&stats["losses"]["ring_full"])? >= lost, "{stats:#}");
        ensure!(number(&stats["losses"]["without_stack"])? == 0, "{stats:#}");
        Ok(())
    });
}

#[test]
fn counts_agree_for_named_processes_and_the_gil() {
    with_python(
        "counts_agree_for_named_processes_and_the_gil",
        |python, folder| {
            let target = python.start(&["threads.py"])?;
            let pid = target.pid.to_string();
            for more in [&["--gil"][..], &["-t", "-s"]] {
                let mut arguments = vec!["-d", "2", "-r", "499", "-p", &pid];
                arguments.extend(more);
                let ended = start(folder, &arguments)?.wait()?;
                let stats = accounts(folder, &ended)?;
                ensure!(number(&stats["samples"])? > 0, "{stats:#}");
                ensure!(number(&stats["kernel"]["not_target"])? > 0, "{stats:#}");
                ensure!(stats["end"] == "time", "{stats:#}");
            }
            Ok(())
        },
    );
}

#[test]
fn counts_agree_for_native_frames() {
    with_python("counts_agree_for_native_frames", |python, folder| {
        let target = python.start(&["native.py"])?;
        let pid = target.pid.to_string();
        let ended = start(folder, &["-n", "-d", "2", "-r", "499", "-p", &pid])?.wait()?;
        let stats = accounts(folder, &ended)?;
        let native = &stats["native"];
        ensure!(number(&native["ends"]["complete"])? > 0, "{stats:#}");
        ensure!(number(&native["places"])? > 0, "{stats:#}");
        let nameless = sum(&native["places_without_name"])?;
        ensure!(nameless < number(&native["places"])?, "{stats:#}");
        Ok(())
    });
}

#[test]
fn counts_agree_for_a_command_that_starts_and_ends() {
    with_python(
        "counts_agree_for_a_command_that_starts_and_ends",
        |python, folder| {
            let program = python.program().to_str().context("a path is text")?;
            let code = "for i in range(40): sum(range(10**5))";
            let ended = start(folder, &["-r", "999", "-s", "--", program, "-c", code])?.wait()?;
            let stats = accounts(folder, &ended)?;
            ensure!(stats["end"] == "command_ended", "{stats:#}");
            Ok(())
        },
    );
}

#[test]
fn statistics_go_to_stderr_in_place_of_the_text() {
    with_python(
        "statistics_go_to_stderr_in_place_of_the_text",
        |python, folder| {
            let target = works(python)?;
            let pid = target.pid.to_string();
            let path = folder.join("out.pb.gz");
            let mut command = pyebpf(&["record", "-d", "1", "-p", &pid, "--stats", "json", "-o"]);
            let ended = Running::start(command.arg(&path))?.wait()?;
            ensure!(ended.status.success(), "{}", ended.stderr);
            let stats: Value = serde_json::from_str(&ended.stderr)
                .with_context(|| format!("one line of JSON alone: {}", ended.stderr))?;
            ensure!(
                stats["output"] == path.to_str().context("text")?,
                "{stats:#}"
            );
            ensure!(number(&stats["outcomes"]["complete"])? > 0, "{stats:#}");
            let comments = pprof_comments(&path)?;
            let complete = format!("complete: {}", stats["outcomes"]["complete"]);
            ensure!(comments.contains(&complete), "{comments:?}");
            Ok(())
        },
    );
}

/// The comments of a pprof file.
fn pprof_comments(path: &Path) -> Result<Vec<String>> {
    use std::io::Read as _;

    use prost::Message as _;
    use pyebpf::output::pprof::proto;

    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path)?).read_to_end(&mut bytes)?;
    let file = proto::Profile::decode(bytes.as_slice())?;
    let text = |&index: &i64| Some(file.string_table.get(usize::try_from(index).ok()?)?.clone());
    Ok(file.comment.iter().filter_map(text).collect())
}
