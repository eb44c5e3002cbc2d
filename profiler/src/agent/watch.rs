//! A profile of now that somebody asks for: samples that the agent takes anyway, from the next one on,
//! of the processes that are meant. It makes the agent sample no more than it does.

use std::{
    fmt::{self, Display},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use crate::profile::{Profile, Shape};

/// Most of them at once: each keeps a profile of its own.
pub const WATCHES_MAX: usize = 8;

/// Whose samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    Everyone,
    Pid(u32),
    /// A pod by its name, or by `namespace/name`.
    Pod(String),
    /// A container by its name, or by the first digits of its id.
    Container(String),
}

impl Display for Whose {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whose::Everyone => out.write_str("profiled"),
            Whose::Pid(pid) => write!(out, "process {pid}"),
            Whose::Pod(name) => write!(out, "in a pod {name:?}"),
            Whose::Container(name) => write!(out, "in a container {name:?}"),
        }
    }
}

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    pub whose: Whose,
    pub duration: Duration,
    pub shape: Shape,
    /// Whether samples are kept in the order of time.
    pub timeline: bool,
    /// Where the profile goes when the time is up. Dropped: there are too many already, or nobody of
    /// that name runs here; see [`Refused`].
    pub answer: oneshot::Sender<Result<Profile, Refused>>,
}

/// Why there is no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{WATCHES_MAX} profiles are being taken already: try again when one is done")]
    TooMany,
    #[error("no Python runs here that is {0}: /processes lists those that do")]
    Nobody(String),
    #[error("the agent is ending")]
    Ending,
}

/// Where requests are sent.
pub type Requests = mpsc::Sender<Request>;
