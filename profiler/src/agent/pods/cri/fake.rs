//! A container runtime made for tests: the few calls of CRI over a socket, on behalf of nobody. It can
//! hang, talk nonsense, say too much, and be started anew.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use http::{HeaderMap, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Bytes, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tempfile::TempDir;
use tokio::{net::UnixListener, task::JoinSet};

use super::messages as cri;

/// How it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    #[default]
    Well,
    /// Takes the request and says nothing.
    Not,
    /// Does not even speak HTTP/2.
    Deaf,
    Nonsense,
    /// More than is read.
    TooMuch,
    /// As containerd whose CRI is switched off, which is how Docker has it.
    NoCri,
}

/// What it has, and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) manner: Manner,
    pub(crate) containers: Vec<cri::Container>,
    pub(crate) sandboxes: Vec<cri::PodSandbox>,
    pub(crate) images: Vec<cri::Image>,
    pub(crate) asked: Vec<String>,
}

/// The runtime. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Fake {
    folder: TempDir,
    pub(crate) state: Arc<Mutex<State>>,
    server: JoinSet<()>,
}

impl Fake {
    pub(crate) fn start() -> Fake {
        let mut fake = Fake {
            folder: TempDir::new().unwrap(),
            state: Arc::default(),
            server: JoinSet::new(),
        };
        fake.serve();
        fake
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("cri.sock")
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// How often this was asked.
    pub(crate) fn count(&self, method: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.asked.iter().filter(|asked| *asked == method).count()
    }

    /// Ends it as if it had been killed: with all its connections; its socket stays.
    pub(crate) async fn stop(&mut self) {
        self.server.shutdown().await;
    }

    pub(crate) fn serve(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let listener = UnixListener::bind(self.socket()).unwrap();
        let state = Arc::clone(&self.state);
        self.server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                connections.spawn(async move {
                    if state.lock().unwrap().manner == Manner::Deaf {
                        return std::future::pending().await;
                    }
                    let answer = service_fn(|request: http::Request<_>| {
                        answer(Arc::clone(&state), request.uri().path().to_owned())
                    });
                    let server = http2::Builder::new(TokioExecutor::new());
                    let served = server.serve_connection(TokioIo::new(stream), answer);
                    let _ = served.await;
                });
            }
        });
    }
}

type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(state: Arc<Mutex<State>>, path: String) -> Result<Answer, Infallible> {
    let method = path.rsplit('/').next().unwrap_or_default().to_owned();
    let (manner, message) = {
        let mut state = state.lock().unwrap();
        state.asked.push(method.clone());
        (state.manner, message(&state, &method))
    };
    let (mut status, mut message) = ("0", message);
    match manner {
        Manner::Well | Manner::Deaf => {}
        Manner::Not => return std::future::pending().await,
        Manner::Nonsense => message = vec![0xff; 64],
        Manner::TooMuch => message = vec![0; super::ANSWER_MAX + 1],
        Manner::NoCri => (status, message) = ("12", Vec::new()),
    }
    // gRPC over HTTP/2, "Length-Prefixed-Message".
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    let body = Full::new(Bytes::from(body)).with_trailers(async { Some(Ok(trailers)) });
    let answer = Response::builder().header("content-type", "application/grpc");
    Ok(answer.body(body.boxed_unsync()).unwrap())
}

fn message(state: &State, method: &str) -> Vec<u8> {
    match method {
        "Version" => cri::VersionResponse {
            runtime_name: "fake".to_owned(),
            runtime_version: "1.2".to_owned(),
        }
        .encode_to_vec(),
        "ListContainers" => cri::ListContainersResponse {
            containers: state.containers.clone(),
        }
        .encode_to_vec(),
        "ListPodSandbox" => cri::ListPodSandboxResponse {
            items: state.sandboxes.clone(),
        }
        .encode_to_vec(),
        "ListImages" => cri::ListImagesResponse {
            images: state.images.clone(),
        }
        .encode_to_vec(),
        other => panic!("{other} is not to be asked"),
    }
}
