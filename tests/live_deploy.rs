//! The agent with just the capabilities that the manifests, and the unit of systemd, give it: it works
//! with them, and without any of them says what it lacks.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use pyebpf_tests::agent::Agent;
use pyebpf_tests::recording::{binary, pyebpf};
use pyebpf_tests::start::{around, find};
use pyebpf_tests::workload::Target;
use pyebpf_tests::{can_profile, skip, turn};
use serde_json::Value;
use tempfile::TempDir;

/// Users who are not root: the agent's and the target's.
const AGENT: u32 = 65534;
const AS_AGENT: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];
const AS_TARGET: [&str; 3] = ["--reuid=65533", "--regid=65533", "--clear-groups"];

const WORK: &str = "
import json, os
print(json.dumps({'pid': os.getpid()}), flush=True)
def countdown():
    while True:
        sum(range(1000))
countdown()
";

/// The capabilities that the plain manifests add, as setpriv names them.
fn added() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/pyebpf.yaml");
    let text = fs::read_to_string(path)?;
    let (_, list) = text.split_once("add:\n").context("nothing is added")?;
    let names = list.lines().map(str::trim_start);
    let names = names.map_while(|line| line.strip_prefix("- ")?.split(' ').next());
    Ok(names.map(str::to_lowercase).collect())
}

/// A Python of another user, which has a variable.
fn other_user() -> Result<Target> {
    let mut command = Command::new("setpriv");
    command
        .args(AS_TARGET)
        .args(["/usr/bin/python3", "-c", WORK]);
    command.env("RELEASE", "blue");
    Target::start(command)
}

/// What setpriv is told, for a process that has these capabilities and can get no others.
struct Rights {
    user: u32,
    flags: Vec<String>,
}

impl Rights {
    /// As a container's runtime does it: root without what is not in the set.
    fn of_root(set: &[&str]) -> Rights {
        let bounding = format!("--bounding-set=-all{}", plus(set));
        Rights {
            user: 0,
            flags: vec![bounding, "--no-new-privs".to_owned()],
        }
    }

    /// As systemd does it: another user with ambient capabilities.
    fn of_another_user(set: &[&str]) -> Rights {
        let mut rights = Rights::of_root(set);
        for flag in ["--inh-caps", "--ambient-caps"] {
            rights.flags.push(format!("{flag}=-all{}", plus(set)));
        }
        rights.user = AGENT;
        rights.flags.extend(AS_AGENT.map(str::to_owned));
        rights
    }

    fn around(&self, inner: &Command) -> Command {
        let mut words = vec!["setpriv"];
        words.extend(self.flags.iter().map(String::as_str));
        around(&words, inner)
    }
}

fn plus(set: &[&str]) -> String {
    set.iter().map(|name| format!(",+{name}")).collect()
}

/// What the agent tells of the target when it has samples of it, with just these rights.
fn seen(target: &Target, rights: &Rights) -> Result<Value> {
    let folder = TempDir::new()?;
    let path = folder.path().to_owned();
    chown(&path, Some(rights.user), Some(rights.user))?;
    // Where the repository is, another user may not come.
    let program = path.join("pyebpf");
    fs::copy(binary(), &program)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let state = path.join("profiles");
    let state = state.to_string_lossy();
    let flags = [
        "--rate=99",
        "--label-env=RELEASE=release",
        "--folder",
        &*state,
    ];
    let by = |command: Command| {
        let mut inner = Command::new(&program);
        inner.args(command.get_args());
        rights.around(&inner)
    };
    let agent = Agent::start_by(by, &flags)?;
    agent.wait_for(|agent| {
        let (_, body) = agent.get("/processes")?;
        let answer: Value = serde_json::from_slice(&body)?;
        let all = answer["processes"].as_array().context("no processes")?;
        let own = all.iter().find(|one| one["pid"] == target.pid);
        Ok(own.filter(|one| one["samples"].as_u64() > Some(9)).cloned())
    })
}

/// Whether every stack of the target is whole, and what the label from its environment is.
fn release(seen: &Value) -> Result<Option<String>> {
    ensure!(seen["samples"] == seen["complete"], "{seen:#}");
    Ok(seen["labels"]["release"].as_str().map(str::to_owned))
}

fn each_is_needed(test: &str, rights: impl Fn(&[&str]) -> Rights) {
    if !can_profile(test) {
        return;
    }
    if find("setpriv").is_none() || !Path::new("/usr/bin/python3").exists() {
        return skip(test, "there is no setpriv, or no /usr/bin/python3");
    }
    let _turn = turn();
    let check = || {
        let set = added()?;
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        ensure!(set.len() >= 4, "{set:?}");
        let target = other_user()?;
        let all = release(&seen(&target, &rights(&set))?)?;
        ensure!(all.as_deref() == Some("blue"), "the label is {all:?}");
        for lost in &set {
            let rest: Vec<&str> = set.iter().copied().filter(|one| one != lost).collect();
            lacking(&target, lost, &rights(&rest)).with_context(|| format!("without {lost}"))?;
        }
        Ok(())
    };
    if let Err(error) = check() {
        panic!("{error:#}");
    }
}

/// Without one of them the agent does not begin and names it, or what that one gives is missing.
fn lacking(target: &Target, lost: &str, rights: &Rights) -> Result<()> {
    let name = format!("CAP_{}", lost.to_uppercase());
    if lost == "dac_read_search" {
        let label = release(&seen(target, rights)?)?;
        ensure!(label.is_none(), "the label is {label:?}");
        let mut doctor = rights.around(&pyebpf(&["doctor"]));
        let said = String::from_utf8(doctor.output()?.stdout)?;
        let named = said.contains(&format!("without {name}"));
        // Where the repository is, another user without it may not come.
        ensure!(named || said.is_empty(), "{said}");
        return Ok(());
    }
    let refused = seen(target, rights).err().context("it works")?;
    let said = format!("{refused:#}");
    ensure!(said.contains(&format!("lacks {name}")), "{said}");
    Ok(())
}

#[test]
fn the_manifests_capabilities_do_and_each_is_needed() {
    let test = "the_manifests_capabilities_do_and_each_is_needed";
    each_is_needed(test, Rights::of_root);
}

#[test]
fn the_unit_s_capabilities_do_for_a_user_who_is_not_root() {
    let test = "the_unit_s_capabilities_do_for_a_user_who_is_not_root";
    each_is_needed(test, Rights::of_another_user);
}
