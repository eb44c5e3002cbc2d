//! Which processes are profiled, of all that run Python: by namespace, pod label, container and
//! command, and by what a pod says of itself.

use clap::Args;
use serde::{Deserialize, Serialize};

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
