//! What a profile of the agent is labelled with, and such a profile.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    owner::Group,
    pods::{Container, Pod},
};
use crate::{profile::Profile, target::About};

/// Most bytes of a label's value: an environment variable may have any number.
const VALUE_MAX: usize = 1024;

/// What of a pod names the service, in this order: annotations and labels that people use.
const SERVICE_ANNOTATIONS: [&str; 2] = ["pyebpf/service", "resource.opentelemetry.io/service.name"];
const SERVICE_LABELS: [&str; 4] = [
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
    "app.kubernetes.io/instance",
];

/// Names of labels to their values: `namespace`, `pod`, `container`, `node`, `service`, `image`,
/// `container_id`, `pid`, and what the settings add. Names are of letters, digits and underscores.
/// What is not known has no label.
pub type Labels = BTreeMap<String, String>;

/// What the Pythons of one container, or those of the host that are in none, did in one interval.
#[derive(Debug)]
pub struct Portion {
    pub labels: Arc<Labels>,
    /// When it began and for how long it lasted is in its [`Meta`](crate::profile::Meta).
    pub profile: Profile,
}

/// Which labels there are beside those that are always there.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Make a profile for each process, with its pid as a label, instead of one for each container
    #[arg(id = "labels_pid", long = "label-pid", env = "PYEBPF_LABEL_PID", num_args = 0..=1,
          require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub pid: bool,

    /// Label with this environment variable of the process, under its own name or another one; may be
    /// given several times
    #[arg(
        id = "labels_env",
        long = "label-env",
        env = "PYEBPF_LABEL_ENV",
        value_name = "VARIABLE[=LABEL]",
        value_delimiter = ','
    )]
    pub env: Vec<String>,

    /// Label with this label of the pod, under its own name or another one; may be given several times
    #[arg(
        id = "labels_pod",
        long = "label-pod",
        env = "PYEBPF_LABEL_POD",
        value_name = "NAME[=LABEL]",
        value_delimiter = ','
    )]
    pub pod: Vec<String>,

    /// Label everything with this, such as a cluster's name; may be given several times
    #[arg(
        id = "labels_fixed",
        long = "label",
        env = "PYEBPF_LABEL",
        value_name = "LABEL=VALUE",
        value_delimiter = ','
    )]
    pub fixed: Vec<String>,
}

/// Makes labels.
#[derive(Debug)]
pub struct Namer {
    /// The node, and what the settings put on everything.
    fixed: Labels,
    pid: bool,
    /// What is looked for, and under which name it becomes a label.
    env: Vec<(String, String)>,
    pod: Vec<(String, String)>,
}

impl Namer {
    /// One for this node.
    ///
    /// # Errors
    /// When a setting does not say which label is meant.
    pub fn new(settings: &Settings, node: &str) -> Result<Namer> {
        let mut fixed = Labels::from([("node".to_owned(), node.to_owned())]);
        for label in &settings.fixed {
            let Some((name, value)) = label.split_once('=').filter(|(name, _)| !name.is_empty())
            else {
                bail!("`--label {label}` names no value: give it as in `--label cluster=west`");
            };
            fixed.insert(label_name(name), value.to_owned());
        }
        Ok(Namer {
            fixed,
            pid: settings.pid,
            env: renamed(&settings.env),
            pod: renamed(&settings.pod),
        })
    }

    /// What tells the profile of a process from others of its container; and of one of the host, what it
    /// is.
    pub fn of_process(
        &self,
        pid: u32,
        about: &About,
        environment: impl FnOnce() -> Vec<u8>,
    ) -> Labels {
        let mut labels = Labels::new();
        if about.container.is_empty() {
            labels.insert("host_process".to_owned(), "true".to_owned());
            let service = unit(&about.cgroup).unwrap_or_else(|| program(&about.command_line));
            put(&mut labels, "service", service);
        }
        if self.pid {
            labels.insert("pid".to_owned(), pid.to_string());
        }
        if !self.env.is_empty() {
            let environment = environment();
            for variable in environment.split(|&byte| byte == 0) {
                let variable = String::from_utf8_lossy(variable);
                let Some((name, value)) = variable.split_once('=') else {
                    continue;
                };
                for (_, label) in self.env.iter().filter(|(known, _)| known == name) {
                    put(&mut labels, label, value);
                }
            }
        }
        labels
    }

    /// All labels of a profile of these processes, whose container is this one if that is known.
    pub fn of_group(&self, group: &Group, container: Option<&Container>) -> Labels {
        let mut labels = self.fixed.clone();
        put(&mut labels, "container_id", &group.container);
        put(&mut labels, "service", &group.command);
        if let Some(container) = container {
            put(&mut labels, "service", &container.name);
            put(&mut labels, "container", &container.name);
            put(&mut labels, "image", &container.image);
        }
        if let Some(pod) = container.and_then(|container| container.pod.as_ref()) {
            put(&mut labels, "namespace", &pod.namespace);
            put(&mut labels, "pod", &pod.name);
            put(&mut labels, "service", service(pod).unwrap_or_default());
            for (name, label) in &self.pod {
                put(
                    &mut labels,
                    label,
                    pod.labels.get(name).map_or("", String::as_str),
                );
            }
        }
        let own = group.own.iter();
        labels.extend(own.map(|(name, value)| (name.clone(), value.clone())));
        labels
    }
}

/// Puts a label there unless it says nothing.
fn put(labels: &mut Labels, name: &str, value: &str) {
    if !value.is_empty() {
        let end = value.floor_char_boundary(VALUE_MAX);
        labels.insert(name.to_owned(), value[..end].to_owned());
    }
}

/// What a pod says that its service is.
fn service(pod: &Pod) -> Option<&str> {
    let annotations = SERVICE_ANNOTATIONS.iter();
    let labels = SERVICE_LABELS.iter();
    let mut said = annotations
        .filter_map(|name| pod.annotations.get(*name))
        .chain(labels.filter_map(|name| pod.labels.get(*name)));
    said.find(|name| !name.is_empty()).map(String::as_str)
}

/// The systemd service that a control group is of.
fn unit(cgroup: &str) -> Option<&str> {
    let mut parts = cgroup.rsplit('/');
    parts.find_map(|part| part.strip_suffix(".service"))
}

/// What a command line of Python runs: its script or module, else the program itself.
pub fn program(command_line: &str) -> &str {
    let mut words = command_line.split(' ').filter(|word| !word.is_empty());
    let first = last_part(words.next().unwrap_or_default());
    if !first.starts_with("python") {
        return first;
    }
    while let Some(word) = words.next() {
        match word {
            "-m" => return words.next().unwrap_or(first),
            "-c" => return first,
            // Of Python's options these have a value of their own (`python --help`).
            "-W" | "-X" | "--check-hash-based-pycs" => {
                words.next();
            }
            option if option.starts_with('-') && option.len() > 1 => {}
            script => return last_part(script),
        }
    }
    first
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `NAME` or `NAME=LABEL`, apart.
fn renamed(settings: &[String]) -> Vec<(String, String)> {
    let settings = settings.iter();
    settings
        .map(|setting| match setting.split_once('=') {
            Some((name, label)) => (name.to_owned(), label_name(label)),
            None => (setting.clone(), label_name(setting)),
        })
        .collect()
}

/// A name that every store takes for a label.
fn label_name(name: &str) -> String {
    let mut label: String = name
        .chars()
        .map(|letter| match letter {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' => letter,
            _ => '_',
        })
        .collect();
    if label.starts_with(|letter: char| letter.is_ascii_digit()) {
        label.insert(0, '_');
    }
    label
}

#[cfg(test)]
mod tests;
