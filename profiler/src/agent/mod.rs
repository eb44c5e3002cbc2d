//! The node agent: samples all the time, makes a profile for each container and interval, knows whose
//! each is, sends them to the stores that a cluster has, and answers a person who asks right now.
//!
//! Two threads: one has the loop that reads samples (`session`), which waits for nobody; the other
//! talks: to container runtimes (`pods`), stores (`export`) and whoever asks (`serve`). What passes
//! between them is in `labels`, `status` and `watch`.

pub mod budget;
pub mod cost;
pub mod duty;
pub mod export;
pub mod labels;
pub mod owner;
pub mod parts;
pub mod pods;
pub mod selection;
pub mod serve;
pub mod settings;
pub mod status;
pub mod talking;
pub mod watch;

/// Lets what speaks TLS use this implementation of its cryptography. May be called several times.
pub(crate) fn install_crypto() {
    // An error says that there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
