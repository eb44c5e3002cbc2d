//! What the agent answers over HTTP: profiles and processes to people at the node, its health and its
//! figures to a kubelet and to Prometheus.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

/// Where it listens.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Serve the page, profiles and processes here; on another address than loopback a token is needed
    #[arg(
        id = "serve_listen",
        long = "listen",
        env = "PYEBPF_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7957"
    )]
    pub listen: Option<SocketAddr>,

    /// Serve /healthz, /readyz and /metrics here
    #[arg(
        id = "serve_probes",
        long = "probes",
        env = "PYEBPF_PROBES",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:7958"
    )]
    pub probes: Option<SocketAddr>,

    /// Answer only those who show the token in this file: `Authorization: Bearer …`
    #[arg(
        id = "serve_token_file",
        long = "token-file",
        env = "PYEBPF_TOKEN_FILE",
        value_name = "FILE"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}
