//! The agent on Pythons of this machine: what it writes, what it answers, whom it leaves out, how it ends.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::agent::{Agent, Written};
use pyebpf_tests::workload::Target;
use serde_json::Value;

use crate::with_python;

/// Whether a profile has frames of the workload.
fn has_work(written: &Written) -> bool {
    written
        .functions
        .iter()
        .any(|name| name == "countdown" || name == "main")
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
