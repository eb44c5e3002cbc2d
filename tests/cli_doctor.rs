//! `pyebpf doctor` on the command line: without privileges, for people and for programs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use pyebpf_tests::can_profile;
use pyebpf_tests::recording::{binary, pyebpf};
use serde_json::Value;

use crate::{fails, folder, gone, run};

/// Every fact about a machine; their names stay.
const FACTS: [&str; 20] = [
    "bpf_helpers",
    "bpf_jit",
    "bpf_maps",
    "bpf_programs",
    "btf",
    "container",
    "kernel",
    "kernel_names",
    "kernel_program",
    "lockdown",
    "locked_memory",
    "max_sample_rate",
    "other_users",
    "perf_cpu_time",
    "perf_paranoid",
    "pid_namespace",
    "privileges",
    "ptrace_scope",
    "unprivileged_bpf",
    "virtual_machine",
];

#[test]
fn usage_errors_exit_with_2() {
    fails(&["doctor", "-p", "x"], 2, &["x"]);
    fails(&["doctor", "-p", "0"], 2, &["0", "pid"]);
    fails(&["doctor", "--no-such-flag"], 2, &["--no-such-flag"]);
}

#[test]
fn every_fact_has_a_verdict_and_each_failure_what_mends_it() {
    let ended = run(&mut pyebpf(&["doctor", "--json", "-p", &gone()]));
    assert!(ended.stderr.is_empty(), "{}", ended.stderr);
    let report: Value = serde_json::from_slice(&ended.stdout).expect("JSON alone");
    let machine = report["machine"].as_object().expect("an object");
    let mut seen: Vec<&str> = machine.keys().map(String::as_str).collect();
    seen.sort_unstable();
    assert_eq!(seen, FACTS);
    for (name, fact) in machine {
        let bad = ["warn", "fail"].contains(&fact["verdict"].as_str().expect("a verdict"));
        assert_eq!(fact["mend"].is_string(), bad, "{name}: {fact}");
        assert!(fact["seen"].is_string(), "{name}: {fact}");
    }
    // The process has ended.
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(report["ok"], false);
    assert_eq!(report["processes"][0]["process"]["verdict"], "fail");
}

/// What it tells a person whom `setpriv` took privileges from.
fn told_without(test: &str, privileges: &[&str]) -> Option<String> {
    if !can_profile(test) {
        return None;
    }
    let folder = folder();
    // The user must reach the program.
    let copy = folder.path().join("pyebpf");
    fs::copy(binary(), &copy).expect("the program can be copied");
    for path in [folder.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("it is ours");
    }
    let mut command = Command::new("setpriv");
    command.args(privileges).arg(&copy).arg("doctor");
    let ended = run(&mut command);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    Some(String::from_utf8(ended.stdout).expect("text"))
}

#[test]
fn without_privileges_it_tells_what_it_can() {
    const TEST: &str = "without_privileges_it_tells_what_it_can";
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let Some(text) = told_without(TEST, &user) else {
        return;
    };
    for expected in [
        "FAIL  privileges        recording needs root",
        "→ run `sudo pyebpf …`",
        "ok    kernel ",
        "?     kernel program    not tried: mend the above first",
        "something that is needed is missing",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
}

#[test]
fn root_of_a_container_is_not_told_to_use_sudo() {
    const TEST: &str = "root_of_a_container_is_not_told_to_use_sudo";
    let bound = ["--inh-caps=-all", "--bounding-set=-all"];
    let Some(text) = told_without(TEST, &bound) else {
        return;
    };
    assert!(text.contains("root here lacks CAP_BPF"), "{text}");
    assert!(text.contains("docker run --cap-add BPF"), "{text}");
    assert!(!text.contains("`sudo pyebpf"), "{text}");
}
