//! From a container's id to its name, its image and its pod: asked of the node's container runtime
//! (CRI) or of the Kubernetes API, whichever is reachable.

mod asking;
pub mod cri;
pub(crate) mod fuzz;
mod kubernetes;
mod table;

use std::{collections::BTreeMap, fmt::Display, path::PathBuf, sync::Arc};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

pub use asking::Pods;

/// Where the agent asks whose a container is.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Who knows whose container is whose
    #[arg(
        id = "pods_source",
        long = "pods",
        env = "PYEBPF_PODS",
        value_name = "SOURCE",
        default_value = "auto"
    )]
    pub source: Source,

    /// The socket of the node's container runtime [default: the first there is of containerd's, CRI-O's
    /// and the like]
    #[arg(
        id = "pods_cri_socket",
        long = "cri-socket",
        env = "PYEBPF_CRI_SOCKET",
        value_name = "PATH"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cri_socket: Option<PathBuf>,
}

/// Who is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Whoever is reachable: the container runtime, else the Kubernetes API, else nobody
    #[default]
    Auto,
    /// The container runtime of the node
    Cri,
    /// The Kubernetes API, as the pod's service account
    Kubernetes,
    /// Nobody: containers have their ids alone
    None,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// All 64 digits.
    pub id: String,
    pub name: String,
    pub image: String,
    /// The pod that it is of; none for one that a person has started by hand.
    pub pod: Option<Pod>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    Is(Arc<Container>),
    /// It is being asked for.
    NotYet,
    /// For now, for this reason. Should it become known all the same, it will be.
    Never(Arc<str>),
}

impl Known {
    /// The container, where it is known.
    pub fn container(&self) -> Option<&Container> {
        match self {
            Known::Is(container) => Some(container),
            Known::NotYet | Known::Never(_) => None,
        }
    }
}

/// Who is asked whose a container is, and how that goes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Asked {
    /// [`Source::Auto`] while nobody has been found yet.
    pub source: Source,
    /// For people: who it is, and why not the others.
    pub said: String,
    /// What is wrong, while there is no answer.
    pub failing: Option<String>,
    /// Requests that were answered, or events that came, and requests that failed.
    pub answers: u64,
    pub failures: u64,
    /// Containers that are known.
    pub containers: usize,
}

impl Display for Asked {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.said)?;
        match &self.failing {
            Some(error) => write!(out, "; no answer now: {error}"),
            None => Ok(()),
        }
    }
}

impl Container {
    /// One whose text is bounded: whatever is longer than anything that Kubernetes allows is cut, and
    /// annotations that nobody looks for are left out.
    fn bounded(self) -> Container {
        Container {
            id: cut(self.id),
            name: cut(self.name),
            image: cut(self.image),
            pod: self.pod.map(|pod| Pod {
                namespace: cut(pod.namespace),
                name: cut(pod.name),
                uid: cut(pod.uid),
                labels: few(pod.labels),
                annotations: few(pod.annotations),
            }),
        }
    }

    /// About how many bytes it takes.
    fn size(&self) -> usize {
        let texts = |map: &BTreeMap<String, String>| -> usize {
            let each = map.iter().map(|(key, value)| key.len() + value.len() + 64);
            each.sum()
        };
        let pod = self.pod.as_ref().map_or(0, |pod| {
            let names = pod.namespace.len() + pod.name.len() + pod.uid.len();
            names + texts(&pod.labels) + texts(&pod.annotations)
        });
        size_of::<Container>() + self.id.len() + self.name.len() + self.image.len() + pod
    }
}

/// Most bytes of a name, of a label's value and of an annotation's: a pod's name has 253, a key 317
/// (kubernetes/apimachinery, `pkg/util/validation`).
const TEXT_MAX: usize = 512;
/// Most labels and most annotations of a pod.
const TEXTS_MAX: usize = 64;

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_MAX));
    text.shrink_to_fit();
    text
}

/// Without what is too long, as `last-applied-configuration`, and what kubelet puts there for itself.
fn few(texts: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let kept = texts.into_iter().filter(|(key, value)| {
        let is_kubelets = ["io.kubernetes.", "kubernetes.io/config."];
        key.len().max(value.len()) <= TEXT_MAX
            && !is_kubelets.iter().any(|prefix| key.starts_with(prefix))
    });
    // The agent's own come first: no crowd of others displaces them.
    let (own, others): (Vec<_>, Vec<_>) = kept.partition(|(key, _)| key.starts_with("pyebpf/"));
    own.into_iter().chain(others).take(TEXTS_MAX).collect()
}
