//! The agent on Pythons of this machine: what it writes, what it answers, whom it leaves out, how it ends.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::agent::{Agent, Written};
use pyebpf_tests::containerd::{Containerd, IMAGE};
use pyebpf_tests::workload::Target;
use pyebpf_tests::{Parts, can_profile, skip, turn};
use serde_json::Value;

use crate::with_python;

/// Whether a profile has frames of the workload.
fn has_work(written: &Written) -> bool {
    written.functions.iter().any(|name| name == "spin")
}

fn processes(agent: &Agent) -> Result<Vec<Value>> {
    let (status, body) = agent.get("/processes")?;
    let body = String::from_utf8(body)?;
    ensure!(status == 200, "{status}: {body}");
    let answer: Value = serde_json::from_str(&body)?;
    let processes = answer.get("processes").and_then(Value::as_array);
    processes.cloned().with_context(|| body.clone())
}

fn process(agent: &Agent, pid: u32) -> Result<Option<Value>> {
    let mut processes = processes(agent)?.into_iter();
    Ok(processes.find(|process| process["pid"] == pid))
}

/// Waits until a process of the agent has samples.
fn sampled(agent: &Agent, target: &Target) -> Result<Value> {
    agent.wait_for(|agent| {
        let process = process(agent, target.pid)?;
        Ok(process.filter(|process| process["samples"].as_u64() > Some(0)))
    })
}

#[test]
fn the_agent_profiles_the_host_s_processes_and_says_what_they_are() {
    with_python(
        "the_agent_profiles_the_host_s_processes_and_says_what_they_are",
        |python| {
            let target = python.start(&["known_stack.py"])?;
            let agent = Agent::start(&["--rate", "99", "--label", "cluster=west", "--label-pid"])?;
            let seen = sampled(&agent, &target)?;
            let labels = &seen["labels"];
            ensure!(
                labels["host_process"] == "true" && labels["cluster"] == "west",
                "{seen}"
            );
            ensure!(
                labels["pid"].as_str() == Some(&*target.pid.to_string()),
                "{seen}"
            );
            let (status, metrics) = agent.probe("/metrics")?;
            ensure!(
                status == 200 && metrics.contains("\npyebpf_"),
                "{status}: {metrics}"
            );
            for probe in ["/healthz", "/readyz"] {
                let (status, said) = agent.probe(probe)?;
                ensure!(status == 200, "{probe}: {status}: {said}");
            }
            let (_, written) = agent.end()?;
            let own =
                |written: &&Written| written.labels.get("pid") == Some(&target.pid.to_string());
            let own: Vec<&Written> = written.iter().filter(own).collect();
            ensure!(!own.is_empty(), "no profile of it: {written:?}");
            ensure!(own.iter().all(|written| written.samples > 0), "{own:?}");
            ensure!(own.iter().any(|written| has_work(written)), "{own:?}");
            Ok(())
        },
    );
}

#[test]
fn a_profile_of_now_is_of_the_process_that_is_asked_for() {
    with_python(
        "a_profile_of_now_is_of_the_process_that_is_asked_for",
        |python| {
            let target = python.start(&["known_stack.py"])?;
            let other = python.start(&["known_stack.py"])?;
            let agent = Agent::start(&["--rate", "99"])?;
            sampled(&agent, &target)?;
            sampled(&agent, &other)?;
            let ask = |pid: u32, format: &str| {
                agent.get(&format!("/profile?pid={pid}&seconds=2&format={format}"))
            };
            let (status, raw) = ask(target.pid, "raw")?;
            let raw = String::from_utf8(raw)?;
            ensure!(
                status == 200 && raw.contains("known_stack.py"),
                "{status}: {raw}"
            );
            let (status, svg) = ask(other.pid, "flamegraph")?;
            ensure!(status == 200 && svg.starts_with(b"<?xml"), "{status}");
            let (status, said) = ask(i32::MAX.unsigned_abs(), "raw")?;
            let said = String::from_utf8_lossy(&said);
            ensure!(
                status == 404 && said.contains("/processes"),
                "{status}: {said}"
            );
            Ok(())
        },
    );
}

#[test]
fn what_settings_exclude_is_nowhere_and_is_counted() {
    with_python(
        "what_settings_exclude_is_nowhere_and_is_counted",
        |python| {
            let target = python.start(&["known_stack.py"])?;
            let agent = Agent::start(&["--rate", "99", "--exclude-command", "*known_stack.py*"])?;
            let seen = sampled(&agent, &target)?;
            ensure!(seen["excluded"] == true, "{seen}");
            std::thread::sleep(Duration::from_secs(3));
            let (_, written) = agent.end()?;
            ensure!(!written.iter().any(has_work), "{written:?}");
            Ok(())
        },
    );
}

#[test]
fn the_last_interval_is_written_when_the_agent_is_told_to_end() {
    with_python(
        "the_last_interval_is_written_when_the_agent_is_told_to_end",
        |python| {
            let target = python.start(&["known_stack.py"])?;
            let agent = Agent::start(&["--rate", "99", "--interval", "10m"])?;
            sampled(&agent, &target)?;
            ensure!(
                agent.profiles()?.is_empty(),
                "an interval of ten minutes is over"
            );
            let (ended, written) = agent.end()?;
            ensure!(
                written.iter().any(has_work),
                "{written:?}\n{}",
                ended.stderr
            );
            Ok(())
        },
    );
}

/// A workload in a container's `/mnt`.
const COMMAND: [&str; 2] = ["/usr/bin/python3.13", "/mnt/known_stack.py"];

#[test]
fn profiles_of_pods_are_labelled_as_their_containers_are() {
    const TEST: &str = "profiles_of_pods_are_labelled_as_their_containers_are";
    if !can_profile(TEST) {
        return;
    }
    if let Some(why) = Containerd::lacks() {
        return skip(TEST, &why);
    }
    let _turn = turn();
    let mut parts = Parts::default();
    parts.note(TEST, pods_are_labelled());
    parts.finish();
}

fn pods_are_labelled() -> Result<()> {
    let containerd = Containerd::start()?;
    let socket = containerd.socket().display().to_string();
    let flags = ["--rate", "99", "--pods", "cri", "--cri-socket", &socket];
    let agent = Agent::start(
        &[
            &flags[..],
            &["--label-env", "TENANT", "--label-pod", "tier"],
        ]
        .concat(),
    )?;
    let labels = [("app", "shop"), ("tier", "front")];
    let shop = containerd.pod("shop", "web-0", &labels, &[])?;
    let web = shop.container("web", &COMMAND, &[("TENANT", "red")])?;
    let worker = shop.container("worker", &COMMAND, &[])?;
    let quiet = containerd.pod("shop", "quiet-0", &[], &[("pyebpf/profile", "false")])?;
    let left_out = quiet.container("quiet", &COMMAND, &[])?;
    let named = |agent: &Agent, id: &str| -> Result<Option<Value>> {
        let mut processes = processes(agent)?.into_iter();
        Ok(processes.find(|process| {
            let labels = &process["labels"];
            labels["container_id"] == id
                && labels["pod"].is_string()
                && process["samples"].as_u64() > Some(2)
        }))
    };
    let seen = agent.wait_for(|agent| named(agent, &left_out.id))?;
    ensure!(seen["excluded"] == true, "{seen}");
    for container in [&web, &worker] {
        agent.wait_for(|agent| named(agent, &container.id))?;
    }
    // In an incident: that pod, now.
    let (status, raw) = agent.get("/profile?pod=shop/web-0&seconds=2&format=raw")?;
    let raw = String::from_utf8(raw)?;
    ensure!(
        status == 200 && raw.contains("spin (known_stack.py"),
        "{status}: {raw}"
    );
    let (status, said) = agent.get("/profile?pod=quiet-0&seconds=1")?;
    ensure!(
        status == 404,
        "{status}: {}",
        String::from_utf8_lossy(&said)
    );
    // The last interval is written with its labels, whatever is gone by then.
    worker.remove()?;
    let (ended, written) = agent.end()?;
    for (name, id, tenant) in [
        ("web", &web.id, Some("red")),
        ("worker", &seen_id(&written, "worker")?, None),
    ] {
        let own = |written: &&Written| written.labels.get("container_id") == Some(id);
        let own: Vec<&Written> = written.iter().filter(own).collect();
        ensure!(
            !own.is_empty(),
            "none of {name}: {written:?}\n{}",
            ended.stderr
        );
        for written in own {
            let label = |name: &str| written.labels.get(name).map(String::as_str);
            let of_pod = [
                label("namespace"),
                label("pod"),
                label("service"),
                label("tier"),
            ];
            ensure!(
                of_pod == ["shop", "web-0", "shop", "front"].map(Some),
                "{written:?}"
            );
            ensure!(
                label("container") == Some(name) && label("image") == Some(IMAGE),
                "{written:?}"
            );
            ensure!(label("TENANT") == tenant, "{written:?}");
        }
    }
    let quiet = |written: &Written| {
        written
            .labels
            .get("pod")
            .is_some_and(|pod| pod == "quiet-0")
    };
    ensure!(!written.iter().any(quiet), "{written:?}");
    Ok(())
}

/// The id of the container of this name.
fn seen_id(written: &[Written], name: &str) -> Result<String> {
    let mut labels = written.iter().map(|written| &written.labels);
    let found = labels.find(|labels| labels.get("container").is_some_and(|known| known == name));
    found
        .and_then(|labels| labels.get("container_id").cloned())
        .with_context(|| format!("no {name}"))
}
