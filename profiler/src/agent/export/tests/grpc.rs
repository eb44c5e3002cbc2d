//! Parca, and a collector, as stores that speak gRPC: they keep what they get and answer as they are told.

use std::convert::Infallible;

use ::http::{Request, Response};
use flate2::read::GzDecoder;
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesPartialSuccess, ExportProfilesServiceRequest, ExportProfilesServiceResponse,
};
use tokio::task::JoinSet;

use super::*;

#[derive(Default)]
struct Told {
    got: Vec<Got>,
    /// What it answers: the status, and a message where that is 0.
    status: u16,
    answer: Vec<u8>,
}

/// The store. Ends when dropped.
struct Fake {
    url: Option<String>,
    state: Arc<Mutex<Told>>,
    _server: JoinSet<()>,
}

impl Fake {
    async fn start() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state: Arc<Mutex<Told>> = Arc::default();
        let mut server = JoinSet::new();
        let shared = state.clone();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                connections.spawn(async move {
                    let answer = service_fn(|request| answer(shared.clone(), request));
                    let server = http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Fake {
            url: Some(format!("http://{address}")),
            state,
            _server: server,
        }
    }

    fn set(&self, status: u16, answer: Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        (state.status, state.answer) = (status, answer);
    }

    /// What it got since this was asked last.
    fn take(&self) -> Vec<Got> {
        std::mem::take(&mut self.state.lock().unwrap().got)
    }
}

type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(state: Arc<Mutex<Told>>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    // "Length-Prefixed-Message": whether it is compressed, and its length.
    let (prefix, body) = body.split_at(5);
    let length = u32::from_be_bytes(prefix[1..].try_into().unwrap());
    assert_eq!(length as usize, body.len());
    let mut message = Vec::new();
    match prefix[0] {
        0 => message.extend(body),
        _ => drop(GzDecoder::new(body).read_to_end(&mut message).unwrap()),
    }
    let mut state = state.lock().unwrap();
    state.got.push(Got {
        path: head.uri.path().to_owned(),
        headers: head.headers,
        body: message.into(),
    });
    let mut body = Vec::new();
    if state.status == 0 {
        body.push(0);
        body.extend((state.answer.len() as u32).to_be_bytes());
        body.extend(&state.answer);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", state.status.into());
    let body = Full::new(Bytes::from(body)).with_trailers(async { Some(Ok(trailers)) });
    let answer = Response::builder().header("content-type", "application/grpc");
    Ok(answer.body(body.boxed_unsync()).unwrap())
}

/// Sends a profile there; gives the state once `is` says that it is settled.
async fn sent(settings: &Settings, is: impl Fn(&State) -> bool) -> State {
    let export = start(settings);
    send(&export, 1..2);
    let state = until(&export, "the end of it", is).await;
    export.end(Duration::ZERO).await;
    state
}

#[tokio::test]
async fn parca_gets_labels_in_order_and_a_pprof() {
    let fake = Fake::start().await;
    let mut settings = Settings::default();
    settings.parca.url = fake.url.clone();
    settings.parca.user = Some("me".to_owned());
    settings.parca.tenant = Some("team-a".to_owned());
    sent(&settings, |state| state.sent == 1).await;
    let got = fake.take().remove(0);
    let path = "/parca.profilestore.v1alpha1.ProfileStoreService/WriteRaw";
    assert_eq!(got.path, path);
    assert_eq!(got.headers["x-scope-orgid"], "team-a");
    assert_eq!(got.headers["authorization"], "Basic bWU6");
    let (labels, pprof) = parca::tests::read(&got.body);
    let expected = [
        ("__name__", "process_cpu"),
        ("container", "web"),
        ("namespace", "shop"),
        ("pod", "shop-1"),
        ("service_name", "shop"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(labels, expected);
    let mut plain = Vec::new();
    GzDecoder::new(&*pprof).read_to_end(&mut plain).unwrap();
    let profile = proto::Profile::decode(&*plain).unwrap();
    let count: i64 = profile.sample.iter().map(|sample| sample.value[0]).sum();
    assert_eq!(count, 10);
}

#[tokio::test]
async fn what_a_grpc_store_answers_decides() {
    let fake = Fake::start().await;
    let mut settings = Settings::default();
    settings.parca.url = fake.url.clone();
    // INVALID_ARGUMENT: it is the profile's fault.
    fake.set(3, Vec::new());
    let state = sent(&settings, |state| state.failed == 1).await;
    assert_eq!(
        (state.retried, state.dropped.values().sum()),
        (0, 1),
        "{state:?}"
    );
    // UNAUTHENTICATED, UNAVAILABLE, INTERNAL: it may be mended.
    for status in [16, 14, 13] {
        fake.set(status, Vec::new());
        let export = start(&settings);
        send(&export, 1..2);
        until(&export, "a failure", |state| state.failed > 0).await;
        fake.set(0, Vec::new());
        let state = until(&export, "the profile", |state| state.sent == 1).await;
        assert!(state.retried > 0 && state.dropped.is_empty(), "{state:?}");
        export.end(Duration::ZERO).await;
    }
    drop(fake);
    let state = sent(&settings, |state| state.failed > 1).await;
    assert!(state.dropped.is_empty(), "{state:?}");
}

#[tokio::test]
async fn a_token_is_read_again_when_it_changes() {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "old\n").unwrap();
    let mut settings = Settings::default();
    settings.parca.url = fake.url.clone();
    settings.parca.token_file = Some(file.clone());
    fake.set(16, Vec::new());
    let export = start(&settings);
    send(&export, 1..2);
    until(&export, "a failure", |state| state.failed > 0).await;
    fs::write(&file, "new, and longer\n").unwrap();
    let shown = |got: &Got| got.headers["authorization"].clone();
    assert!(fake.take().iter().all(|got| shown(got) == "Bearer old"));
    let is_new = || {
        fake.take()
            .iter()
            .any(|got| shown(got) == "Bearer new, and longer")
    };
    until(&export, "the new one", |_| is_new()).await;
}

#[tokio::test]
async fn a_collector_that_takes_a_request_without_its_profile_has_refused_it() {
    let fake = Fake::start().await;
    let mut settings = Settings::default();
    settings.otlp.url = fake.url.clone();
    let answer = |rejected_profiles| {
        let partial_success = Some(ExportProfilesPartialSuccess {
            rejected_profiles,
            error_message: "too old".to_owned(),
        });
        ExportProfilesServiceResponse { partial_success }.encode_to_vec()
    };
    // Taken, with a warning.
    fake.set(0, answer(0));
    sent(&settings, |state| state.sent == 1).await;
    let got = fake.take().remove(0);
    assert_eq!(got.headers["grpc-encoding"], "gzip");
    let request = ExportProfilesServiceRequest::decode(got.body).unwrap();
    assert_eq!(request.resource_profiles.len(), 1);
    fake.set(0, answer(1));
    let state = sent(&settings, |state| state.failed == 1).await;
    assert!(
        state.dropped.values().sum::<u64>() == 1 && state.retried == 0,
        "{state:?}"
    );
    let said = state.last_error.unwrap_or_default();
    assert!(said.contains("too old"), "{said}");
}
