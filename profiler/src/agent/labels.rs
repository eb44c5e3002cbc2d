//! What a profile of the agent is labelled with, and such a profile.

use std::{collections::BTreeMap, sync::Arc};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::profile::Profile;

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
