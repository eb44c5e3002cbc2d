//! Where profiles go. Each place has a section of its own and is used when it has an address.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::agent::settings::{Bytes, Span};

/// A folder of pprof files. It is used when nothing else is.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Folder {
    /// Write profiles into this folder, as pprof files [default, when no store is given: the folder
    /// pyebpf below the user's state folder, /var/lib for root]
    #[arg(
        id = "folder_path",
        long = "folder",
        env = "PYEBPF_FOLDER",
        value_name = "PATH"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,

    /// Most bytes in it: the oldest files go
    #[arg(
        id = "folder_max_size",
        long = "folder-max-size",
        env = "PYEBPF_FOLDER_MAX_SIZE",
        value_name = "SIZE",
        default_value = "1GiB"
    )]
    pub max_size: Bytes,

    /// For how long files stay in it
    #[arg(
        id = "folder_max_age",
        long = "folder-max-age",
        env = "PYEBPF_FOLDER_MAX_AGE",
        value_name = "TIME",
        default_value = "7days"
    )]
    pub max_age: Span,
}

/// Grafana Pyroscope.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Pyroscope {
    /// Push profiles to Grafana Pyroscope at this address
    #[arg(
        id = "pyroscope_url",
        long = "pyroscope-url",
        env = "PYEBPF_PYROSCOPE_URL",
        value_name = "URL"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Parca.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Parca {
    /// Push profiles to Parca at this address
    #[arg(
        id = "parca_url",
        long = "parca-url",
        env = "PYEBPF_PARCA_URL",
        value_name = "URL"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// An OpenTelemetry collector, or what speaks as one.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Otlp {
    /// Push profiles to an OpenTelemetry collector at this address
    #[arg(
        id = "otlp_url",
        long = "otlp-url",
        env = "PYEBPF_OTLP_URL",
        value_name = "URL"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Where profiles wait for a store that is away.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    /// Keep profiles that could not be sent in this folder
    #[arg(
        id = "spool_path",
        long = "spool",
        env = "PYEBPF_SPOOL",
        value_name = "PATH"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,

    /// Most bytes in it: the oldest profiles go, and are counted
    #[arg(
        id = "spool_max_size",
        long = "spool-max-size",
        env = "PYEBPF_SPOOL_MAX_SIZE",
        value_name = "SIZE",
        default_value = "64MiB"
    )]
    pub max_size: Bytes,
}
