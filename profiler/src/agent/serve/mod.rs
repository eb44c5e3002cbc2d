//! What the agent answers over HTTP: profiles and processes to people at the node, its health and its
//! figures to a kubelet and to Prometheus. Two listeners: people's is on loopback unless they have a
//! token, the other one tells nothing of any process. Nothing that is asked here makes the agent sample
//! more than it does, and no request names a file.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::{Context as _, Result, bail};
use axum::{Router, routing::get};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync};

use self::{connections::Site, guard::Guard, health::Health, token::Token};
use super::{
    export::state::State as Place,
    status::Status,
    watch::{Requests, WATCHES_MAX},
};

mod connections;
mod guard;
mod health;
mod metrics;
mod page;
mod patient;
mod processes;
mod profile;
mod question;
mod refusal;
mod token;

/// Most connections of people at once: each has a buffer, and maybe an answer of the size of the list
/// of processes. More are told to come back.
const PEOPLE_MAX: usize = 128;

/// Most connections of kubelets and the like.
const PROBES_MAX: usize = 64;

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

    /// Answer to this name, too, beside localhost and the address itself; may be given several times
    #[arg(
        id = "serve_hosts",
        long = "allow-host",
        env = "PYEBPF_ALLOW_HOST",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub hosts: Vec<String>,
}

/// What the answers are made of.
pub struct Shared {
    /// To the loop.
    pub requests: Requests,
    /// From the loop, once a second. It is not ready before the first of them that has sampled.
    pub status: sync::watch::Receiver<Arc<Status>>,
    /// How sending goes, for each place. It is called at each request, so it does not wait.
    pub places: Box<dyn Fn() -> Vec<Place> + Send + Sync>,
}

/// Where it listens in fact, also where the settings leave the port open.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub listen: Option<SocketAddr>,
    pub probes: Option<SocketAddr>,
}

/// What the handlers share.
struct Answers {
    shared: Shared,
    health: Arc<Health>,
    processes: processes::Latest,
    /// A permit for each profile that is taken, or on its way to who asked.
    profiles: Arc<sync::Semaphore>,
    /// Connections that found no room.
    refused: Arc<AtomicU64>,
}

/// Begins to answer, on the current runtime and for as long as it runs.
///
/// # Errors
/// When it can't listen there, or must not without a token.
pub async fn start(settings: &Settings, shared: Shared) -> Result<Bound> {
    let token = settings
        .token_file
        .as_deref()
        .map(Token::read)
        .transpose()?;
    if let (Some(address), None) = (settings.listen, &token)
        && !address.ip().is_loopback()
    {
        bail!(
            "profiles and processes are not served on {address}, which others can reach, without a \
             token: write at least {} random characters into a file and name it with --token-file \
             (`openssl rand -hex 32 >FILE` makes such a file), or use --listen 127.0.0.1:{}",
            token::LEAST,
            address.port()
        );
    }
    let people = listener(settings.listen, "--listen").await?;
    let probes = listener(settings.probes, "--probes").await?;
    let bound = Bound {
        listen: address(&people)?,
        probes: address(&probes)?,
    };
    let answers = Arc::new(Answers {
        health: Health::follow(shared.status.clone()),
        processes: processes::Latest::default(),
        profiles: Arc::new(sync::Semaphore::new(WATCHES_MAX)),
        refused: Arc::default(),
        shared,
    });
    if let Some(token) = &token {
        tokio::spawn(Arc::clone(token).keep_current(token::AGAIN));
    }
    if let Some(listener) = people {
        let router = page::routes()
            .merge(for_probes())
            .route("/profile", get(profile::answer))
            .route("/processes", get(processes::answer));
        let guard = Guard::new(&settings.hosts, token);
        let site = Site::new(finish(router, &answers), Some(guard), PEOPLE_MAX);
        tokio::spawn(site.serve(listener, Arc::clone(&answers.refused)));
    }
    if let Some(listener) = probes {
        let site = Site::new(finish(for_probes(), &answers), None, PROBES_MAX);
        tokio::spawn(site.serve(listener, Arc::clone(&answers.refused)));
    }
    Ok(bound)
}

fn for_probes() -> Router<Arc<Answers>> {
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::answer))
}

fn finish(router: Router<Arc<Answers>>, answers: &Arc<Answers>) -> Router {
    router
        .fallback(refusal::nothing_there)
        .method_not_allowed_fallback(refusal::only_get)
        .with_state(Arc::clone(answers))
}

async fn listener(address: Option<SocketAddr>, flag: &str) -> Result<Option<TcpListener>> {
    let Some(address) = address else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address).await;
    let context = || format!("cannot listen on {address}: choose another address with {flag}");
    Ok(Some(listener.with_context(context)?))
}

fn address(listener: &Option<TcpListener>) -> Result<Option<SocketAddr>> {
    let address = listener.as_ref().map(TcpListener::local_addr).transpose();
    address.context("cannot tell where it listens")
}
