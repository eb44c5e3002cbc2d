//! What `deploy/` has: the chart by helm itself, its output by Kubernetes's schemas and by what it may
//! ask for, the plain manifests, the unit of systemd. What is not installed is skipped by name.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use pyebpf::agent::settings::Settings;
use pyebpf_tests::{installed, skip};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Versions of Kubernetes that the output must suit: the chart's oldest, the last without AppArmor's
/// field, the first with it, and the newest that there are schemas of.
const VERSIONS: [&str; 4] = ["1.25.0", "1.29.0", "1.30.0", "1.37.0"];

/// Values that change what there is, each with what only it has.
const VARIANTS: [&[&str]; 5] = [
    &[],
    &["--set=pods.source=cri,existingSecret=tokens"],
    &["--set=pods.source=auto,settings.native=folded,settings.rate=29"],
    &["--set=securityContext.extraCapabilities={SYS_RESOURCE},image.tag=v9"],
    &["--set=prometheusAnnotations=false,securityContext.seLinuxOptions.type=spc_t"],
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn chart() -> PathBuf {
    repository().join("deploy/helm/pyebpf")
}

fn plain() -> PathBuf {
    repository().join("deploy/kubernetes/pyebpf.yaml")
}

/// The output of a command, which must succeed.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{command:?} did not start"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {errors}{text}",
        output.status
    );
    Ok(text)
}

/// What the chart gives with these arguments.
fn template(helm: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(helm);
    command.args(["template", "pyebpf"]).arg(chart());
    output(command.args(["--namespace", "pyebpf"]).args(arguments))
}

/// The documents of a YAML file.
fn documents(text: &str) -> Result<Vec<Value>> {
    let python = pyebpf_tests::pythons::cache().context("no cache")?;
    let folder = TempDir::new()?;
    let file = folder.path().join("file.yaml");
    fs::write(&file, text)?;
    let mut command = Command::new(python.join("venv/bin/python3"));
    command.args([
        "-c",
        "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))",
    ]);
    Ok(serde_json::from_str(&output(command.arg(file))?)?)
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Option<&'a Value> {
    documents.iter().find(|document| document["kind"] == kind)
}

/// The plain manifests that the chart's output makes.
fn made_plain(output: &str) -> String {
    const HEAD: &str = "\
# pyebpf on every node, made from the chart in deploy/helm/pyebpf with its default values.
#   kubectl apply -f deploy/kubernetes/pyebpf.yaml
#   kubectl --namespace pyebpf set image daemonset/pyebpf pyebpf=REGISTRY/pyebpf:VERSION
---
apiVersion: v1
kind: Namespace
metadata:
  name: pyebpf
  labels:
    # It shares the nodes' process ids and has capabilities, which the stricter levels forbid.
    pod-security.kubernetes.io/enforce: privileged
";
    let mut text = HEAD.to_owned();
    for line in output.lines() {
        let of_helm = line.starts_with("# Source:") || line.ends_with("managed-by: Helm");
        if !(of_helm || line.is_empty() && text.ends_with("\n\n")) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text.replace("\n\n---\n", "\n---\n")
}

#[test]
fn helm_finds_nothing_wrong_with_the_chart() -> Result<()> {
    let Some(helm) = installed("helm_finds_nothing_wrong_with_the_chart", "venv/bin/helm") else {
        return Ok(());
    };
    for values in VARIANTS {
        let mut command = Command::new(&helm);
        command.args(["lint", "--strict", "--quiet"]).arg(chart());
        output(command.args(values))?;
    }
    // Its schema comes with an operator.
    let monitor = template(&helm, &["--set=podMonitor.enabled=true"])?;
    for part in ["kind: PodMonitor", "- port: probes", "path: /metrics"] {
        ensure!(monitor.contains(part), "no {part}: {monitor}");
    }
    Ok(())
}

#[test]
fn the_plain_manifests_are_what_the_chart_gives() -> Result<()> {
    const TEST: &str = "the_plain_manifests_are_what_the_chart_gives";
    let Some(helm) = installed(TEST, "venv/bin/helm") else {
        return Ok(());
    };
    let made = made_plain(&template(&helm, &[])?);
    if std::env::var_os("PYEBPF_BLESS").is_some() {
        fs::write(plain(), &made)?;
    }
    let there = fs::read_to_string(plain()).unwrap_or_default();
    ensure!(
        there == made,
        "{} is not of the chart as it is now; with PYEBPF_BLESS=1 this test writes it:\n{made}",
        plain().display()
    );
    Ok(())
}

#[test]
fn everything_is_as_the_schemas_of_kubernetes_have_it() -> Result<()> {
    const TEST: &str = "everything_is_as_the_schemas_of_kubernetes_have_it";
    let program = "venv/bin/kubernetes-validate";
    let (Some(helm), Some(validate)) = (installed(TEST, "venv/bin/helm"), installed(TEST, program))
    else {
        return Ok(());
    };
    let folder = TempDir::new()?;
    let file = folder.path().join("made.yaml");
    let check = |version: &str, text: &str| {
        fs::write(&file, text)?;
        let mut command = Command::new(&validate);
        command.args(["--strict", "--kubernetes-version", version]);
        output(command.arg(&file)).context(version.to_owned())
    };
    for version in VERSIONS {
        // All of them for the newest alone: each look takes a second.
        let last = if version == VERSIONS[3] { 5 } else { 1 };
        for values in &VARIANTS[..last] {
            let version_flag = format!("--kube-version={version}");
            let made = template(&helm, &[&[version_flag.as_str()], *values].concat())?;
            check(version, &made)?;
            let field = made.contains("appArmorProfile:");
            let annotation = made.contains("container.apparmor.security.beta.kubernetes.io");
            ensure!(
                [field, annotation] == [version >= "1.30", version < "1.30"],
                "{version}: {made}"
            );
        }
    }
    let text = fs::read_to_string(plain())?;
    check(VERSIONS[3], &text)?;
    // What has a field that there is none of is refused, so the above says something.
    let wrong = text.replace("hostPID:", "hostPid:");
    ensure!(check(VERSIONS[3], &wrong).is_err(), "hostPid is a field?");
    Ok(())
}

#[test]
fn kubectl_reads_the_plain_manifests() -> Result<()> {
    const TEST: &str = "kubectl_reads_the_plain_manifests";
    let Some(kubectl) = installed(TEST, "venv/bin/kubectl") else {
        return Ok(());
    };
    let text = fs::read_to_string(plain())?;
    let agent = text
        .split("---\n")
        .find(|one| one.contains("kind: DaemonSet"));
    let folder = TempDir::new()?;
    let file = folder.path().join("agent.yaml");
    fs::write(&file, agent.context("no DaemonSet")?)?;
    // What README has people type after `apply`, without a cluster.
    let mut command = Command::new(kubectl);
    command.args(["set", "image", "--local", "-o", "json", "-f"]);
    let said = output(command.arg(file).arg("pyebpf=registry.test/pyebpf:1"))?;
    let set: Value = serde_json::from_str(&said)?;
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["image"] == "registry.test/pyebpf:1", "{said}");
    Ok(())
}

#[test]
fn an_agent_asks_for_no_more_than_it_needs() -> Result<()> {
    const TEST: &str = "an_agent_asks_for_no_more_than_it_needs";
    if installed(TEST, "venv/bin/kubernetes-validate").is_none() {
        return Ok(());
    }
    let all = documents(&fs::read_to_string(plain())?)?;
    let kinds: Vec<&str> = all.iter().filter_map(|one| one["kind"].as_str()).collect();
    ensure!(
        kinds
            == [
                "Namespace",
                "ServiceAccount",
                "ConfigMap",
                "ClusterRole",
                "ClusterRoleBinding",
                "DaemonSet"
            ],
        "{kinds:?}"
    );
    let role = of_kind(&all, "ClusterRole").unwrap();
    let pods =
        json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]);
    ensure!(role["rules"] == pods, "{role:#}");
    let pod = &of_kind(&all, "DaemonSet").unwrap()["spec"]["template"]["spec"];
    ensure!(
        pod["hostPID"] == true && pod["hostNetwork"] == false && pod["hostIPC"].is_null(),
        "{pod:#}"
    );
    let volumes = pod["volumes"].as_array().unwrap();
    ensure!(
        volumes.iter().all(|volume| volume["hostPath"].is_null()),
        "{volumes:#?}"
    );
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    let expected = json!({
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "runAsUser": 0,
        "runAsGroup": 0,
        "capabilities": {
            "drop": ["ALL"],
            "add": ["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"],
        },
        "seccompProfile": {"type": "RuntimeDefault"},
        "appArmorProfile": {"type": "Unconfined"},
    });
    ensure!(*context == expected, "{context:#}");
    ensure!(
        container["ports"] == json!([{"name": "probes", "containerPort": 7958}]),
        "{container:#}"
    );
    Ok(())
}

#[test]
fn the_runtime_s_socket_and_the_token_are_there_only_for_who_uses_them() -> Result<()> {
    const TEST: &str = "the_runtime_s_socket_and_the_token_are_there_only_for_who_uses_them";
    let Some(helm) = installed(TEST, "venv/bin/helm") else {
        return Ok(());
    };
    for (source, socket, token) in [
        ("kubernetes", false, true),
        ("cri", true, false),
        ("auto", true, true),
    ] {
        let set = format!("--set=pods.source={source},pods.criSocket=/run/crio/crio.sock");
        let made = template(&helm, &[&set])?;
        let mounts = made.contains("path: /run/crio\n") && made.contains("mountPath: /run/crio\n");
        let mounts_token = made.contains("automountServiceAccountToken: true");
        ensure!(
            (mounts, mounts_token) == (socket, token),
            "{source}: {made}"
        );
        ensure!(made.contains("kind: ClusterRole\n") == token, "{made}");
        let told = made.contains("cri_socket = \"/run/crio/crio.sock\"");
        ensure!(told == socket, "{source}: {made}");
    }
    Ok(())
}

#[test]
fn every_setting_that_the_values_show_is_one() -> Result<()> {
    const TEST: &str = "every_setting_that_the_values_show_is_one";
    let Some(helm) = installed(TEST, "venv/bin/helm") else {
        return Ok(());
    };
    // The settings that are shown are comments: `#` and the line as it would be.
    let values = fs::read_to_string(chart().join("values.yaml"))?;
    let (_, shown) = values.split_once("\nsettings: {}\n").context("settings")?;
    let shown = shown.lines().map_while(|line| line.strip_prefix('#'));
    let folder = TempDir::new()?;
    let file = folder.path().join("values.yaml");
    let shown: String = shown.map(|line| format!("{line}\n")).collect();
    fs::write(&file, format!("settings:\n{shown}"))?;
    let file = file.to_string_lossy();
    for arguments in [&["--values", &*file][..], &[]] {
        let arguments = [arguments, &["--show-only", "templates/configmap.yaml"]].concat();
        let map = template(&helm, &arguments)?;
        let (_, text) = map.split_once("pyebpf.toml: |\n").context("the file")?;
        let text: String = text
            .lines()
            .map(|line| format!("{}\n", line.trim_start()))
            .collect();
        let read: Settings = toml::from_str(&text).with_context(|| text.clone())?;
        ensure!(read.spool.path.is_some(), "{text}");
        if arguments.len() > 2 {
            ensure!(read.rate == 19 && read.parca.url.is_some(), "{text}");
        }
    }
    Ok(())
}

#[test]
fn values_that_are_wrong_are_refused_by_name() -> Result<()> {
    const TEST: &str = "values_that_are_wrong_are_refused_by_name";
    let Some(helm) = installed(TEST, "venv/bin/helm") else {
        return Ok(());
    };
    for (set, named) in [
        ("pods.source=docker", "source"),
        (
            "securityContext.extraCapabilities={CAP_SYSLOG}",
            "extraCapabilities",
        ),
        ("securityContext.privileged=true", "privileged"),
        ("settings.parca.tls.ca=x", "settings"),
        ("ports.page=70000", "page"),
        ("imagee.tag=1", "imagee"),
    ] {
        let refused = template(&helm, &["--set", set]).err().context(set)?;
        let said = format!("{refused:#}");
        ensure!(
            said.contains("schema") && said.contains(named),
            "{set}: {said}"
        );
    }
    Ok(())
}

#[test]
fn the_unit_is_one_and_has_the_capabilities_of_the_manifests() -> Result<()> {
    const TEST: &str = "the_unit_is_one_and_has_the_capabilities_of_the_manifests";
    let unit = fs::read_to_string(repository().join("deploy/systemd/pyebpf.service"))?;
    let setting = |name: &str| {
        let mut lines = unit.lines().filter_map(|line| line.strip_prefix(name));
        lines.next().unwrap_or_default().to_owned()
    };
    let manifest = fs::read_to_string(plain())?;
    let (_, added) = manifest.split_once("add:\n").context("add")?;
    let added = added.lines().map(str::trim_start);
    let added = added.map_while(|line| line.strip_prefix("- ")?.split(' ').next());
    let added: Vec<String> = added.map(|name| format!("CAP_{name}")).collect();
    for set in ["AmbientCapabilities=", "CapabilityBoundingSet="] {
        ensure!(setting(set) == added.join(" "), "{set}{}", setting(set));
    }
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        skip(TEST, "there is no systemd-analyze");
        return Ok(());
    }
    // It looks for the program.
    let folder = TempDir::new()?;
    let file = folder.path().join("pyebpf.service");
    fs::write(&file, unit.replace("/usr/local/bin/pyebpf", "/bin/true"))?;
    let verify = |file: &Path| {
        let mut command = Command::new("systemd-analyze");
        let done = command.args(["verify", "--man=no"]).arg(file).output()?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let said = verify(&file)?;
    ensure!(!said.contains("pyebpf.service"), "{said}");
    fs::write(&file, unit.replace("ProtectHome=", "ProtectHouse="))?;
    ensure!(
        verify(&file)?.contains("ProtectHouse"),
        "it sees no mistakes"
    );
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=yes", "--threshold=30"]);
    output(security.arg(repository().join("deploy/systemd/pyebpf.service"))).map(drop)
}
