//! Which processes are profiled, of all that run Python: by namespace, pod label, container and
//! command, and by what a pod says of itself.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::pods::{Container, Pod};

/// The annotation of a pod that says whether it is profiled: `"true"` or `"false"`.
pub const ANNOTATION: &str = "pyebpf/profile";

/// What the settings select. Each value may have `*` and `?`. Of what is included somewhere, anything
/// else there is left out; what is excluded is left out whatever includes it.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Profile only pods that are annotated with `pyebpf/profile: "true"`
    #[arg(id = "select_opt_in", long = "opt-in", env = "PYEBPF_OPT_IN", num_args = 0..=1,
          require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub opt_in: bool,

    /// Profile only these namespaces
    #[arg(
        id = "select_namespaces",
        long = "include-namespace",
        env = "PYEBPF_INCLUDE_NAMESPACE",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub namespaces: Vec<String>,

    /// Profile none of these namespaces
    #[arg(
        id = "select_not_namespaces",
        long = "exclude-namespace",
        env = "PYEBPF_EXCLUDE_NAMESPACE",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub not_namespaces: Vec<String>,

    /// Profile only pods with one of these labels
    #[arg(
        id = "select_labels",
        long = "include-label",
        env = "PYEBPF_INCLUDE_LABEL",
        value_name = "NAME=PATTERN",
        value_delimiter = ','
    )]
    pub labels: Vec<String>,

    /// Profile no pod with one of these labels
    #[arg(
        id = "select_not_labels",
        long = "exclude-label",
        env = "PYEBPF_EXCLUDE_LABEL",
        value_name = "NAME=PATTERN",
        value_delimiter = ','
    )]
    pub not_labels: Vec<String>,

    /// Profile only containers of these names
    #[arg(
        id = "select_containers",
        long = "include-container",
        env = "PYEBPF_INCLUDE_CONTAINER",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub containers: Vec<String>,

    /// Profile no container of these names
    #[arg(
        id = "select_not_containers",
        long = "exclude-container",
        env = "PYEBPF_EXCLUDE_CONTAINER",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub not_containers: Vec<String>,

    /// Profile only processes of these command lines
    #[arg(
        id = "select_commands",
        long = "include-command",
        env = "PYEBPF_INCLUDE_COMMAND",
        value_name = "PATTERN"
    )]
    pub commands: Vec<String>,

    /// Profile no process of these command lines
    #[arg(
        id = "select_not_commands",
        long = "exclude-command",
        env = "PYEBPF_EXCLUDE_COMMAND",
        value_name = "PATTERN"
    )]
    pub not_commands: Vec<String>,
}

/// The settings, understood.
#[derive(Debug)]
pub struct Selection {
    settings: Settings,
    labels: Vec<(String, String)>,
    not_labels: Vec<(String, String)>,
}

impl Selection {
    /// What these settings select.
    ///
    /// # Errors
    /// When one of them is no label with a value.
    pub fn new(settings: Settings) -> Result<Selection> {
        Ok(Selection {
            labels: pairs("--include-label", &settings.labels)?,
            not_labels: pairs("--exclude-label", &settings.not_labels)?,
            settings,
        })
    }

    /// Whether the processes of a container are profiled, or those that are in none.
    pub fn has_container(&self, container: Option<&Container>) -> bool {
        let pod = container.and_then(|container| container.pod.as_ref());
        let namespace = pod.map(|pod| &*pod.namespace);
        let name = container.map(|container| &*container.name);
        let settings = &self.settings;
        by_itself(pod, settings.opt_in)
            && among(&settings.namespaces, &settings.not_namespaces, namespace)
            && among(&settings.containers, &settings.not_containers, name)
            && (self.labels.is_empty() || has_one(pod, &self.labels))
            && !has_one(pod, &self.not_labels)
    }

    /// Whether processes of this command line are profiled, as far as that tells.
    pub fn has_command(&self, command: &str) -> bool {
        let settings = &self.settings;
        among(&settings.commands, &settings.not_commands, Some(command))
    }
}

/// What a pod says of itself.
fn by_itself(pod: Option<&Pod>, opt_in: bool) -> bool {
    let said = pod.and_then(|pod| pod.annotations.get(ANNOTATION));
    match said.map(String::as_str) {
        Some("true") => true,
        Some("false") => false,
        _ => !opt_in,
    }
}

/// Whether a name is one of those that are included, if any are, and none of those that are not.
fn among(included: &[String], excluded: &[String], name: Option<&str>) -> bool {
    let is = |pattern: &String| name.is_some_and(|name| matches(pattern, name));
    (included.is_empty() || included.iter().any(is)) && !excluded.iter().any(is)
}

fn has_one(pod: Option<&Pod>, labels: &[(String, String)]) -> bool {
    let none = BTreeMap::new();
    let has = pod.map_or(&none, |pod| &pod.labels);
    let mut labels = labels.iter();
    labels.any(|(name, pattern)| has.get(name).is_some_and(|value| matches(pattern, value)))
}

/// Whether the whole of a text is as a pattern says, in which `*` is any text and `?` any letter.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut from) = (0, 0);
    // Behind the last `*`, and how far it reaches.
    let mut star = None;
    while from < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at + 1, from));
                at += 1;
            }
            Some(&letter) if letter == '?' || letter == text[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((behind, reach)) = star else {
                    return false;
                };
                star = Some((behind, reach + 1));
                (at, from) = (behind, reach + 1);
            }
        }
    }
    pattern[at..].iter().all(|&letter| letter == '*')
}

fn pairs(flag: &str, settings: &[String]) -> Result<Vec<(String, String)>> {
    let pair = |setting: &String| match setting.split_once('=') {
        Some((name, pattern)) => Ok((name.to_owned(), pattern.to_owned())),
        None => bail!("`{flag} {setting}` names no value: give it as in `{flag} app=web*`"),
    };
    settings.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(namespace: &str, annotation: Option<&str>) -> Container {
        let annotations = annotation.map(|said| (ANNOTATION.to_owned(), said.to_owned()));
        Container {
            name: "web".to_owned(),
            pod: Some(Pod {
                namespace: namespace.to_owned(),
                labels: [("app".to_owned(), "shop".to_owned())].into(),
                annotations: annotations.into_iter().collect(),
                ..Pod::default()
            }),
            ..Container::default()
        }
    }

    fn is_included(settings: Settings, container: Option<&Container>, command: &str) -> bool {
        let selection = Selection::new(settings).unwrap();
        selection.has_container(container) && selection.has_command(command)
    }

    fn list(patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(|&pattern| pattern.to_owned()).collect()
    }

    #[test]
    fn a_pod_says_for_itself_whether_it_is_profiled() {
        for (opt_in, annotation, expected) in [
            (false, None, true),
            (false, Some("false"), false),
            (false, Some("perhaps"), true),
            (true, None, false),
            (true, Some("true"), true),
            (true, Some("false"), false),
        ] {
            let settings = Settings {
                opt_in,
                ..Settings::default()
            };
            let container = container("shop", annotation);
            assert_eq!(
                is_included(settings, Some(&container), "python"),
                expected,
                "{annotation:?}"
            );
        }
        let opt_in = Settings {
            opt_in: true,
            ..Settings::default()
        };
        assert!(
            !is_included(opt_in, None, "python"),
            "a process of the host says nothing"
        );
    }

    #[test]
    fn what_is_excluded_is_left_out_whatever_includes_it() {
        let shop = container("shop", None);
        let of = |namespaces: &[&str], not: &[&str]| Settings {
            namespaces: list(namespaces),
            not_namespaces: list(not),
            ..Settings::default()
        };
        assert!(is_included(of(&["s*p"], &[]), Some(&shop), ""));
        assert!(!is_included(of(&["s*p"], &["shop"]), Some(&shop), ""));
        assert!(!is_included(of(&["kube-*"], &[]), Some(&shop), ""));
        assert!(is_included(of(&[], &["kube-*"]), Some(&shop), ""));
        // Of no namespace.
        assert!(!is_included(of(&["*"], &[]), None, ""));
        assert!(is_included(of(&[], &["*"]), None, ""));
    }

    #[test]
    fn labels_containers_and_commands_select() {
        let shop = container("shop", None);
        let labels = |labels: &[&str], not: &[&str]| Settings {
            labels: list(labels),
            not_labels: list(not),
            ..Settings::default()
        };
        assert!(is_included(labels(&["app=shop"], &[]), Some(&shop), ""));
        assert!(!is_included(
            labels(&["app=x", "tier=*"], &[]),
            Some(&shop),
            ""
        ));
        assert!(!is_included(labels(&[], &["app=sh?p"]), Some(&shop), ""));
        let containers = Settings {
            not_containers: list(&["web"]),
            ..Settings::default()
        };
        assert!(!is_included(containers, Some(&shop), ""));
        let commands = || Settings {
            commands: list(&["*gunicorn*"]),
            ..Settings::default()
        };
        assert!(is_included(
            commands(),
            None,
            "python /usr/bin/gunicorn app"
        ));
        assert!(!is_included(commands(), None, "python cron.py"));
        let error = Selection::new(labels(&["app"], &[]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("--include-label app"), "{error}");
    }

    #[test]
    fn patterns_are_of_the_whole_text() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcdef", false),
            ("*ab", "aab", true),
            ("?", "é", true),
            ("?", "", false),
            ("a", "ab", false),
            ("**b", "b", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
