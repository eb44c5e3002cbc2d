//! From a container's id to its name, its image and its pod: asked of the node's container runtime
//! (CRI) or of the Kubernetes API, whichever is reachable.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

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
