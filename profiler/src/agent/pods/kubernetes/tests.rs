//! Against a small HTTP server that gives the answers of `answers/`: no Kubernetes has been asked, they
//! were written by hand in the form of the API (core/v1 `PodList`, meta/v1 `Status` of v1.34).

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Instant,
};

use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::broadcast, task::JoinSet};

use super::*;
use crate::agent::pods::{Asked, Known, Pods};

const LIST: &str = include_str!("answers/list.json");
const FORBIDDEN: &str = include_str!("answers/forbidden.json");
const WEB: &str = "1d0c04c3ab0c3b2b9ba1b3ea8d8f1a1c3b50fd9a0f6d1b2f6c7a5a39d9a54f01";
const INIT: &str = "2d0c04c3ab0c3b2b9ba1b3ea8d8f1a1c3b50fd9a0f6d1b2f6c7a5a39d9a54f02";
const BEFORE: &str = "3d0c04c3ab0c3b2b9ba1b3ea8d8f1a1c3b50fd9a0f6d1b2f6c7a5a39d9a54f03";
const DEBUG: &str = "4d0c04c3ab0c3b2b9ba1b3ea8d8f1a1c3b50fd9a0f6d1b2f6c7a5a39d9a54f04";
const LATE: &str = "5d0c04c3ab0c3b2b9ba1b3ea8d8f1a1c3b50fd9a0f6d1b2f6c7a5a39d9a54f05";

/// How lists are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Well,
    Empty,
    Not,
    Nonsense,
    TooMuch,
    Forbidden,
}

#[derive(Debug)]
struct State {
    manner: Manner,
    /// The queries of what was asked.
    asked: Vec<String>,
}

/// The server. Ends when dropped.
struct Api {
    address: String,
    state: Arc<Mutex<State>>,
    /// Lines of the watch.
    events: broadcast::Sender<String>,
    _server: JoinSet<()>,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl Api {
    async fn start(manner: Manner) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = State {
            manner,
            asked: Vec::new(),
        };
        let (state, events) = (Arc::new(Mutex::new(state)), broadcast::Sender::new(16));
        let mut server = JoinSet::new();
        let shared = (Arc::clone(&state), events.clone());
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, events) = shared.clone();
                connections.spawn(async move {
                    let answers = service_fn(|request| {
                        answer(request, Arc::clone(&state), events.subscribe())
                    });
                    let connection = http1::Builder::new();
                    let _ = connection
                        .serve_connection(TokioIo::new(stream), answers)
                        .await;
                });
            }
        });
        Api {
            address,
            state,
            events,
            _server: server,
        }
    }

    fn set(&self, manner: Manner) {
        self.state.lock().unwrap().manner = manner;
    }

    /// Begins to ask it.
    fn pods(&self) -> Pods {
        pods(&self.address)
    }
}

/// Begins to ask the API at this address.
fn pods(address: &str) -> Pods {
    let pods = Pods::idle();
    let (shared, address) = (pods.shared(), address.parse().unwrap());
    tokio::spawn(async move {
        let config = Config::new(address);
        let client = || std::future::ready(bounded(config.clone()));
        ask_as(&shared, "node-1", "", client).await;
    });
    pods
}

#[tokio::test]
async fn an_api_that_refuses_connections_is_told_of() {
    let pods = pods("https://127.0.0.1:1");
    until(&pods, |asked| asked.failing.is_some()).await;
    let said = pods.source().to_string();
    assert!(said.contains("refused"), "{said}");
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    mut events: broadcast::Receiver<String>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    assert_eq!(path, "/api/v1/pods");
    let manner = {
        let mut state = state.lock().unwrap();
        state.asked.push(query.clone());
        state.manner
    };
    if query.contains("watch=true") {
        let (lines, body) = tokio::sync::mpsc::channel::<String>(16);
        tokio::spawn(async move {
            while let Ok(line) = events.recv().await {
                if line.is_empty() || lines.send(line).await.is_err() {
                    return;
                }
            }
        });
        let body = futures_util::stream::unfold(body, |mut body| async {
            let line = body.recv().await?;
            Some((Ok(Frame::data(Bytes::from(line + "\n"))), body))
        });
        return Ok(Response::new(StreamBody::new(body).boxed_unsync()));
    }
    let (status, text) = match manner {
        Manner::Well => (200, LIST.to_owned()),
        Manner::Empty => {
            let empty = r#"{"metadata": {"resourceVersion": "1"}, "items": []}"#;
            (200, empty.to_owned())
        }
        Manner::Not => return std::future::pending().await,
        Manner::Nonsense => (200, LIST.replace("\"metadata\"", "7")),
        Manner::TooMuch => (200, LIST.to_owned() + &" ".repeat(ANSWER_MAX)),
        Manner::Forbidden => (403, FORBIDDEN.to_owned()),
    };
    let answer = Response::builder().status(status);
    let answer = answer.header("content-type", "application/json");
    Ok(answer.body(Full::from(text).boxed_unsync()).unwrap())
}

/// Waits until this is so of who is asked.
async fn until(pods: &Pods, is_so: impl Fn(&Asked) -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is_so(&pods.source()) {
        assert!(Instant::now() < end, "{}", pods.source());
        sleep(Duration::from_millis(20)).await;
    }
}

async fn named(pods: &Pods, id: &str) -> Arc<Container> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        match pods.of(id) {
            Known::Is(container) => return container,
            other => assert!(Instant::now() < end, "{other:?}, {}", pods.source()),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn short(container: &Container) -> [&str; 4] {
    let pod = container.pod.as_ref().unwrap();
    [&pod.namespace, &pod.name, &container.name, &container.image]
}

#[tokio::test]
async fn containers_of_every_kind_are_named() {
    let api = Api::start(Manner::Well).await;
    let pods = api.pods();
    let web = named(&pods, WEB).await;
    let image = "docker.io/library/python:3.12";
    assert_eq!(short(&web), ["shop", "web-0", "app", image]);
    let pod = web.pod.as_ref().unwrap();
    assert_eq!(pod.uid, "8f0c9d8e-a1b2-4c3d-8e9f-001122334455");
    assert_eq!(pod.labels["app.kubernetes.io/name"], "web");
    assert_eq!(pod.annotations["pyebpf/profile"], "true");
    assert!(!pod.annotations.contains_key("kubernetes.io/config.seen"));
    // Run before, and ended; run by `kubectl debug`; that ran until it was started again.
    let init = named(&pods, INIT).await;
    // Its status has no name of its image, but its pod does.
    assert_eq!(short(&init), ["shop", "web-0", "migrate", "shop/migrate:7"]);
    assert_eq!(named(&pods, DEBUG).await.name, "debugger");
    assert_eq!(named(&pods, BEFORE).await.name, "app");
    let asked = pods.source();
    assert_eq!((asked.source, asked.containers), (Source::Kubernetes, 4));
    let said = "the Kubernetes API, for the pods of node node-1";
    assert_eq!(asked.to_string(), said);
}

#[tokio::test]
async fn the_pods_of_this_node_alone_are_asked_for() {
    let api = Api::start(Manner::Well).await;
    let pods = api.pods();
    named(&pods, WEB).await;
    let end = Instant::now() + Duration::from_secs(30);
    while api.state.lock().unwrap().asked.len() < 2 && Instant::now() < end {
        sleep(Duration::from_millis(20)).await;
    }
    let state = api.state.lock().unwrap();
    assert_eq!(state.asked.len(), 2, "{state:?}");
    for query in &state.asked {
        assert!(
            query.contains("fieldSelector=spec.nodeName%3Dnode-1"),
            "{query}"
        );
    }
}

#[tokio::test]
async fn what_a_silent_watch_does_not_tell_of_is_not_there() {
    let api = Api::start(Manner::Well).await;
    let pods = api.pods();
    named(&pods, WEB).await;
    assert_eq!(pods.of(LATE), Known::NotYet);
    let patience = Duration::from_secs(1);
    let shared = pods.shared();
    shared.asks(Source::Kubernetes, "the API", String::new(), patience);
    let end = Instant::now() + 4 * LOOK;
    let never = loop {
        match pods.of(LATE) {
            Known::Never(why) => break why,
            known => assert!(Instant::now() < end, "{known:?}"),
        }
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(&*never, "the API does not know it");
}

fn event(kind: &str, change: impl FnOnce(&mut Value)) -> String {
    let list: Value = serde_json::from_str(LIST).unwrap();
    let mut pod = list["items"][0].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    change(&mut pod);
    json!({"type": kind, "object": pod}).to_string()
}

#[tokio::test]
async fn what_comes_and_goes_is_told_by_the_watch() {
    let api = Api::start(Manner::Well).await;
    let pods = api.pods();
    named(&pods, WEB).await;
    assert_eq!(pods.of(LATE), Known::NotYet);
    while api.events.receiver_count() == 0 {
        sleep(Duration::from_millis(20)).await;
    }
    let is_late = |pod: &mut Value| {
        pod["metadata"]["name"] = json!("web-1");
        pod["status"]["containerStatuses"][0]["containerID"] = json!(format!("cri-o://{LATE}"));
    };
    api.events.send(event("MODIFIED", is_late)).unwrap();
    assert_eq!(named(&pods, LATE).await.pod.as_ref().unwrap().name, "web-1");
    // What has gone stays known.
    api.events.send(event("DELETED", is_late)).unwrap();
    let is_relabelled = |pod: &mut Value| pod["metadata"]["labels"] = json!({"a": "b"});
    api.events.send(event("MODIFIED", is_relabelled)).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while !named(&pods, WEB)
        .await
        .pod
        .as_ref()
        .unwrap()
        .labels
        .contains_key("a")
    {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(20)).await;
    }
    named(&pods, LATE).await;
}

#[tokio::test]
async fn a_watch_that_breaks_is_begun_again() {
    let api = Api::start(Manner::Well).await;
    let pods = api.pods();
    named(&pods, WEB).await;
    for line in ["{\"type\": \"MODIFIED\", \"object\": 7}", "no json", ""] {
        while api.events.receiver_count() == 0 {
            sleep(Duration::from_millis(20)).await;
        }
        let asked = api.state.lock().unwrap().asked.len();
        api.events.send(line.to_owned()).unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while api.state.lock().unwrap().asked.len() == asked && !line.is_empty() {
            assert!(Instant::now() < end, "{line}: {}", pods.source());
            sleep(Duration::from_millis(20)).await;
        }
    }
    named(&pods, WEB).await;
}

#[tokio::test]
async fn an_api_that_refuses_or_talks_nonsense_is_told_of_and_asked_again() {
    for (manner, said) in [
        (
            Manner::Forbidden,
            "no answer now: the API says: pods is forbidden: User \"system:serviceaccount:pyebpf:pyebpf\" \
             cannot list resource \"pods\" in API group \"\" at the cluster scope: let this pod's \
             service account list and watch pods",
        ),
        (Manner::Nonsense, "failed to perform initial object list"),
        (Manner::TooMuch, "length limit exceeded"),
    ] {
        let api = Api::start(manner).await;
        let pods = api.pods();
        until(&pods, |asked| asked.failing.is_some()).await;
        let asked = pods.source();
        assert!(asked.to_string().contains(said), "{manner:?}: {asked}");
        assert_eq!(pods.of(WEB), Known::NotYet);
        api.set(Manner::Well);
        named(&pods, WEB).await;
        until(&pods, |asked| asked.failing.is_none()).await;
    }
}

#[tokio::test]
async fn a_node_without_pods_is_doubted() {
    let api = Api::start(Manner::Empty).await;
    let pods = api.pods();
    until(&pods, |asked| asked.failing.is_some()).await;
    let asked = pods.source();
    assert!(
        asked.to_string().contains("no pods on such a node"),
        "{asked}"
    );
    assert_eq!(asked.failures, 0);
}

#[tokio::test]
async fn an_api_that_hangs_is_told_of() {
    let api = Api::start(Manner::Not).await;
    let pods = api.pods();
    until(&pods, |asked| asked.failing.is_some()).await;
    let said = pods.source().to_string();
    assert!(said.contains("no answer within 20 s"), "{said}");
}
