//! Where profiles go. Each place has a section of its own and is used when it has an address.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::agent::settings::{Bytes, Span};

/// A folder of pprof files. It is used when nothing else is.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Folder {
    /// Write profiles into this folder, as pprof files [default, when no store is given: the folder
    /// pyebpf/profiles below the user's state folder, /var/lib for root]
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

/// A section for a store: where it is, whom to trust there, and how to say who the agent is.
macro_rules! store {
    ($(#[$doc:meta])* $name:ident, $section:literal, $variable:literal, $called:literal
     $(, $(#[$field_doc:meta])* $field:ident: $type:ty)?) => {
        $(#[$doc])*
        #[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
        #[group(skip)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            #[arg(
                id = concat!($section, "_url"),
                long = concat!($section, "-url"),
                env = concat!("PYEBPF_", $variable, "_URL"),
                value_name = "URL",
                help = concat!("Push profiles to ", $called, " at this address")
            )]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub url: Option<String>,

            $(
            $(#[$field_doc])*
            #[serde(skip_serializing_if = "Option::is_none")]
            pub $field: $type,
            )?

            #[arg(
                id = concat!($section, "_token_file"),
                long = concat!($section, "-token-file"),
                env = concat!("PYEBPF_", $variable, "_TOKEN_FILE"),
                value_name = "FILE",
                hide_short_help = true,
                help = "Show it the token in this file, which is read again when it changes: \
                        `Authorization: Bearer …`"
            )]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub token_file: Option<PathBuf>,

            #[arg(
                id = concat!($section, "_user"),
                long = concat!($section, "-user"),
                env = concat!("PYEBPF_", $variable, "_USER"),
                value_name = "NAME",
                hide_short_help = true,
                help = "Log in there as this user (basic auth)"
            )]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub user: Option<String>,

            #[arg(
                id = concat!($section, "_password_file"),
                long = concat!($section, "-password-file"),
                env = concat!("PYEBPF_", $variable, "_PASSWORD_FILE"),
                value_name = "FILE",
                hide_short_help = true,
                help = "with the password in this file, which is read again when it changes"
            )]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub password_file: Option<PathBuf>,

            #[arg(
                id = concat!($section, "_tenant"),
                long = concat!($section, "-tenant"),
                env = concat!("PYEBPF_", $variable, "_TENANT"),
                value_name = "NAME",
                hide_short_help = true,
                help = "Send them for this tenant: `X-Scope-OrgID: …`"
            )]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub tenant: Option<String>,

            #[arg(
                id = concat!($section, "_ca_file"),
                long = concat!($section, "-ca-file"),
                env = concat!("PYEBPF_", $variable, "_CA_FILE"),
                value_name = "FILE",
                hide_short_help = true,
                help = "Trust the certificate authorities in this file (PEM), and no others"
            )]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub ca_file: Option<PathBuf>,

            #[arg(
                id = concat!($section, "_cert_file"),
                long = concat!($section, "-cert-file"),
                env = concat!("PYEBPF_", $variable, "_CERT_FILE"),
                value_name = "FILE",
                hide_short_help = true,
                help = "Show it the certificate in this file (PEM)"
            )]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub cert_file: Option<PathBuf>,

            #[arg(
                id = concat!($section, "_key_file"),
                long = concat!($section, "-key-file"),
                env = concat!("PYEBPF_", $variable, "_KEY_FILE"),
                value_name = "FILE",
                hide_short_help = true,
                help = "with the key in this file (PEM)"
            )]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub key_file: Option<PathBuf>,
        }

        impl $name {
            /// What all stores have, once there is an address.
            pub(super) fn store(&self) -> Option<Store> {
                Some(Store {
                    section: $section,
                    url: self.url.clone()?,
                    token_file: self.token_file.clone(),
                    user: self.user.clone(),
                    password_file: self.password_file.clone(),
                    tenant: self.tenant.clone(),
                    ca_file: self.ca_file.clone(),
                    cert_file: self.cert_file.clone(),
                    key_file: self.key_file.clone(),
                })
            }
        }
    };
}

/// What the sections of all stores say.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    /// The section's name, for messages.
    pub(super) section: &'static str,
    pub(super) url: String,
    pub(super) token_file: Option<PathBuf>,
    pub(super) user: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) tenant: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) cert_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
}

store!(
    /// Grafana Pyroscope.
    Pyroscope, "pyroscope", "PYROSCOPE", "Grafana Pyroscope"
);

store!(
    /// Parca.
    Parca, "parca", "PARCA", "Parca"
);

store!(
    /// An OpenTelemetry collector, or what speaks as one.
    Otlp, "otlp", "OTLP", "an OpenTelemetry collector",
    /// How to speak to it [default: http where the address has a path or the port 4318, else grpc]
    #[arg(
        id = "otlp_protocol",
        long = "otlp-protocol",
        env = "PYEBPF_OTLP_PROTOCOL",
        value_name = "PROTOCOL"
    )]
    protocol: Option<Protocol>
);

/// How OTLP is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Grpc,
    /// Protocol buffers over HTTP
    Http,
}

/// Where profiles wait for a store that is away.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[group(skip)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    /// Keep profiles that could not be sent in this folder [default: in memory, 8 MiB for each store]
    #[arg(
        id = "spool_path",
        long = "spool",
        env = "PYEBPF_SPOOL",
        value_name = "PATH"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,

    /// Most bytes in it for each store: the oldest profiles go, and are counted
    #[arg(
        id = "spool_max_size",
        long = "spool-max-size",
        env = "PYEBPF_SPOOL_MAX_SIZE",
        value_name = "SIZE",
        default_value = "64MiB"
    )]
    pub max_size: Bytes,
}
