//! Stores that take profiles, fail, are slow, refuse and come back: what is sent, waits and is lost.

use std::{collections::VecDeque, fs, io::Read as _, net::SocketAddr, path::Path};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::any,
};
use prost::Message as _;
use tokio::{net::TcpListener, time::sleep};

use super::*;
use crate::{
    agent::labels::Labels,
    output::pprof::proto,
    profile::{Function, LineShape, Meta, Process, Profile, Shape},
};

mod grpc;

const PACE: Pace = Pace {
    pause: Duration::from_millis(20),
    pause_most: Duration::from_millis(100),
    after_most: Duration::from_secs(5),
    patience: Duration::from_millis(300),
    spool_again: Duration::from_millis(50),
    memory: 1 << 20,
};

fn portion(pod: &str, functions: u32) -> Arc<Portion> {
    let meta = Meta {
        started: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        rate: 19,
        command: "pyebpf daemon".to_owned(),
        duration: Duration::from_secs(15),
    };
    let mut profile = Profile::new(
        meta,
        Shape {
            line: LineShape::Current,
            ..Shape::default()
        },
        false,
    );
    // As it is where processes and threads are folded.
    let process = profile.add_process(Process::default());
    let thread = profile.add_thread(process, 0, String::new());
    for number in 0..functions {
        let function = profile.function(Function {
            name: format!("Shop.sell_{}", number % 400),
            file: format!("/srv/shop/part_{}.py", number % 60),
            short_file: String::new(),
            first_line: 3,
            module: None,
        });
        let frame = profile.frame(function, Some(number % 90 + 1));
        let root = profile.marker("[root]");
        let stack = profile.stack([root, frame]);
        profile.record(0, thread, stack, 52_631_578);
    }
    let labels = [
        ("namespace", "shop"),
        ("pod", pod),
        ("container", "web"),
        ("service", "shop"),
    ];
    let labels: Labels = labels
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    Arc::new(Portion {
        labels: Arc::new(labels),
        profile,
    })
}

/// What a store has got.
#[derive(Clone)]
struct Got {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// How a store answers.
#[derive(Clone, Copy)]
enum Answer {
    Status(u16),
    RetryAfter(u16, u64),
    /// Not before the agent has lost its patience.
    Never,
    /// To those who show this token.
    For(&'static str),
}

/// A store: it answers as it is told, the last thing again and again.
#[derive(Clone)]
struct Store {
    address: SocketAddr,
    taken: Arc<Mutex<Vec<Got>>>,
    asked: Arc<Mutex<Vec<Instant>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl Store {
    async fn start(answers: &[Answer]) -> Store {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let store = Store {
            address: listener.local_addr().unwrap(),
            taken: Arc::default(),
            asked: Arc::default(),
            answers: Arc::new(Mutex::new(answers.iter().copied().collect())),
        };
        let of = store.clone();
        let answer = any(move |request: Request| async move { of.answer(request).await });
        let router = Router::new().fallback_service(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        store
    }

    fn tell(&self, answer: Answer) {
        *self.answers.lock().unwrap() = [answer].into();
    }

    async fn answer(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 24).await.unwrap();
        self.asked.lock().unwrap().push(Instant::now());
        let answer = {
            let mut answers = self.answers.lock().unwrap();
            match answers.len() {
                1 => answers[0],
                _ => answers.pop_front().unwrap(),
            }
        };
        let said = |status: u16| Response::builder().status(status);
        let answer = match answer {
            Answer::Status(status) => said(status),
            Answer::RetryAfter(status, seconds) => said(status).header("Retry-After", seconds),
            Answer::Never => {
                sleep(Duration::from_secs(5)).await;
                said(200)
            }
            Answer::For(token) => {
                let shown = parts.headers.get("authorization");
                said(if shown.is_some_and(|shown| shown == token) {
                    200
                } else {
                    401
                })
            }
        };
        let answer = answer.body(Body::from("said so")).unwrap();
        if answer.status() == StatusCode::OK {
            let path = parts.uri.path().to_owned();
            self.taken.lock().unwrap().push(Got {
                path,
                headers: parts.headers,
                body,
            });
        }
        answer
    }

    fn taken(&self) -> Vec<Got> {
        self.taken.lock().unwrap().clone()
    }
}

fn pyroscope(address: SocketAddr) -> Settings {
    let mut settings = Settings::default();
    settings.pyroscope.url = Some(format!("http://{address}"));
    settings
}

fn start(settings: &Settings) -> Export {
    Export::start_with(settings, "node-1", PACE).unwrap()
}

/// Waits until the first place is in this state.
async fn until(export: &Export, what: &str, is: impl Fn(&State) -> bool) -> State {
    for _ in 0..1000 {
        let state = export.state().remove(0);
        if is(&state) {
            return state;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come: {:?}", export.state());
}

fn send(export: &Export, profiles: std::ops::Range<usize>) {
    export.send(
        profiles
            .map(|number| portion(&format!("shop-{number}"), 10))
            .collect(),
    );
}

/// The pprof file in a push, and its labels, as Pyroscope reads them.
fn pushed(body: &[u8]) -> (Vec<(String, String)>, proto::Profile) {
    let request = pyroscope::tests::read(body);
    let mut profile = Vec::new();
    flate2::read::GzDecoder::new(&*request.1)
        .read_to_end(&mut profile)
        .unwrap();
    (request.0, proto::Profile::decode(&*profile).unwrap())
}

#[tokio::test]
async fn pyroscope_gets_what_it_asks_for() {
    let store = Store::start(&[Answer::Status(200)]).await;
    let mut settings = pyroscope(store.address);
    settings.pyroscope.tenant = Some("team-a".to_owned());
    let export = start(&settings);
    export.send(vec![portion("shop-1", 10)]);
    until(&export, "the profile", |state| state.sent == 1).await;
    let got = store.taken().remove(0);
    assert_eq!(got.path, "/push.v1.PusherService/Push");
    for (name, value) in [
        ("content-type", "application/proto"),
        ("connect-protocol-version", "1"),
        ("x-scope-orgid", "team-a"),
    ] {
        assert_eq!(got.headers[name], value);
    }
    let (labels, profile) = pushed(&got.body);
    let expected = [
        ("__name__", "process_cpu"),
        ("container", "web"),
        ("namespace", "shop"),
        ("pod", "shop-1"),
        ("service_name", "shop"),
    ];
    assert_eq!(
        labels,
        expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
    let text = |index: i64| &*profile.string_table[index as usize];
    let types = profile.sample_type.iter();
    let types: Vec<_> = types
        .map(|kind| (text(kind.r#type), text(kind.unit)))
        .collect();
    assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
    // Nothing of a process or thread where they are folded.
    assert!(profile.sample.iter().all(|sample| sample.label.is_empty()));
    assert!(
        profile
            .comment
            .iter()
            .any(|comment| text(*comment) == "label pod=shop-1")
    );
}

#[tokio::test]
async fn a_store_that_fails_and_comes_back_gets_everything() {
    let store = Store::start(&[
        Answer::Status(500),
        Answer::RetryAfter(429, 1),
        Answer::Status(503),
        Answer::Status(500),
    ])
    .await;
    let folder = tempfile::tempdir().unwrap();
    let mut settings = pyroscope(store.address);
    settings.spool.path = Some(folder.path().to_owned());
    settings.spool.max_size = crate::agent::settings::Bytes(1 << 20);
    let export = start(&settings);
    send(&export, 0..20);
    let state = until(&export, "the second round", |state| state.failed >= 8).await;
    assert_eq!((state.sent, state.waiting), (0, 20));
    assert!(
        state
            .last_error
            .unwrap()
            .starts_with("500 Internal Server Error: said so")
    );
    {
        // The store has asked for a second.
        let asked = store.asked.lock().unwrap();
        let waited = |pair: &[Instant]| pair[1] - pair[0] >= Duration::from_secs(1);
        assert!(asked.windows(2).any(waited), "{asked:?}");
    }
    store.tell(Answer::Never);
    let slow = |state: &State| state.last_error.as_deref() == Some("no answer within 300ms");
    until(&export, "the slowness", slow).await;
    store.tell(Answer::Status(200));
    let state = until(&export, "the last one", |state| state.sent == 20).await;
    assert_eq!(
        (state.waiting, state.waiting_bytes, state.last_error),
        (0, 0, None)
    );
    assert_eq!(state.dropped, [].into());
    assert_eq!(
        fs::read_dir(folder.path().join("pyroscope"))
            .unwrap()
            .count(),
        0
    );
    let mut pods: Vec<_> = store
        .taken()
        .iter()
        .map(|got| pushed(&got.body).0[3].1.clone())
        .collect();
    pods.sort();
    pods.dedup();
    assert_eq!(pods.len(), 20);
}

#[tokio::test]
async fn beyond_the_bound_the_oldest_go_and_are_counted() {
    // Nobody listens there.
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let size = {
        let portion = portion("shop-10", 10);
        let body = Format::Pprof.encode(&portion, "").unwrap();
        Item::new(1, Head::of(&portion), body).size
    };
    let mut settings = pyroscope(nobody);
    let pace = Pace {
        memory: 7 * size + size / 2,
        ..PACE
    };
    let export = Export::start_with(&settings, "", pace).unwrap();
    send(&export, 10..30);
    let state = until(&export, "all", |state| {
        state.waiting + state.dropped.values().sum::<u64>() == 20 && state.failed > 8
    })
    .await;
    assert!(state.last_error.unwrap().contains("refused"));
    export.end(Duration::from_millis(50)).await;
    let state = export.state().remove(0);
    let lost = (state.dropped["memory_full"], state.dropped["ended"]);
    assert_eq!(
        (lost.0 + lost.1, state.waiting, state.waiting_bytes),
        (20, 0, 0)
    );
    assert!((6..=8).contains(&lost.1), "{state:?}");

    // With a spool, and a start after it that finds what is there.
    let folder = tempfile::tempdir().unwrap();
    settings.spool.path = Some(folder.path().to_owned());
    settings.spool.max_size = crate::agent::settings::Bytes(5 * size + size / 2);
    let export = start(&settings);
    send(&export, 10..30);
    until(&export, "the spool", |state| state.failed > 0).await;
    export.end(Duration::from_millis(50)).await;
    let state = export.state().remove(0);
    assert_eq!(
        (state.waiting, state.dropped),
        (5, [("spool_full", 15)].into())
    );

    let store = Store::start(&[Answer::Status(200)]).await;
    settings.pyroscope.url = Some(format!("http://{}", store.address));
    let export = start(&settings);
    let state = until(&export, "the old ones", |state| state.sent == 5).await;
    assert_eq!((state.waiting, state.waiting_bytes), (0, 0));
    let mut pods: Vec<_> = store
        .taken()
        .iter()
        .map(|got| pushed(&got.body).0[3].1.clone())
        .collect();
    pods.sort();
    assert_eq!(
        pods,
        (25..30)
            .map(|number| format!("shop-{number}"))
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn what_a_store_cannot_take_is_refused_and_a_token_may_change() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "old").unwrap();
    let store = Store::start(&[Answer::Status(400), Answer::For("Bearer new")]).await;
    let mut settings = pyroscope(store.address);
    settings.pyroscope.token_file = Some(token.clone());
    let export = start(&settings);
    send(&export, 0..3);
    let state = until(&export, "a refusal", |state| state.retried > 2).await;
    assert_eq!((state.dropped, state.waiting), ([("refused", 1)].into(), 2));
    assert!(state.last_error.unwrap().starts_with("401 Unauthorized"));
    fs::write(&token, "new").unwrap();
    until(&export, "the rest", |state| {
        state.sent == 2 && state.waiting == 0
    })
    .await;
}

#[tokio::test]
async fn one_place_that_hangs_delays_no_other() {
    let store = Store::start(&[Answer::Never]).await;
    let folder = tempfile::tempdir().unwrap();
    let mut settings = pyroscope(store.address);
    settings.folder.path = Some(folder.path().join("profiles"));
    settings.folder.max_size = crate::agent::settings::Bytes(1 << 30);
    settings.folder.max_age = crate::agent::settings::Span(Duration::from_secs(3600));
    let export = start(&settings);
    assert_eq!(export.places().len(), 2);
    send(&export, 0..5);
    for _ in 0..200 {
        if export.state()[1].sent == 5 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    let states = export.state();
    assert_eq!((states[0].sent, states[1].sent), (0, 5));
    let file = folder
        .path()
        .join("profiles/shop.shop-3.web/2023-11-14T22-13-20.000Z.pb.gz");
    assert!(file.is_file());
    let labels = fs::read_to_string(file.with_file_name("labels.json")).unwrap();
    assert!(labels.contains("\"namespace\": \"shop\""), "{labels}");
}

#[tokio::test]
async fn a_folder_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.folder.path = Some(folder.path().to_owned());
    settings.folder.max_age = crate::agent::settings::Span(Duration::from_secs(3600));
    let size = Format::Pprof
        .encode(&portion("shop-1", 10), "")
        .unwrap()
        .len() as u64;
    settings.folder.max_size = crate::agent::settings::Bytes(3 * size + size / 2);
    let count = |path: &Path| fs::read_dir(path).unwrap().count();
    fs::write(folder.path().join("mine.txt"), "not the agent's").unwrap();
    for _ in 0..2 {
        // The second finds what the first has left.
        let export = start(&settings);
        send(&export, 1..8);
        export.end(Duration::from_secs(5)).await;
        assert_eq!(export.state()[0].sent, 7);
        assert_eq!(count(folder.path()), 4);
    }
}

#[tokio::test]
async fn a_collector_gets_profiles_over_http() {
    let store = Store::start(&[Answer::Status(200)]).await;
    let mut settings = Settings::default();
    settings.otlp.url = Some(format!("http://{}", store.address));
    settings.otlp.protocol = Some(settings::Protocol::Http);
    let export = start(&settings);
    export.send(vec![portion("shop-1", 10)]);
    until(&export, "the profile", |state| state.sent == 1).await;
    let got = store.taken().remove(0);
    assert_eq!(
        (&*got.path, &got.headers["content-encoding"]),
        ("/v1development/profiles", &"gzip".parse().unwrap())
    );
}

#[test]
fn a_portion_of_a_busy_container_is_small() {
    // Two processors at 19 Hz for 15 s, each sample with another stack of 40 frames.
    let Portion {
        labels,
        mut profile,
    } = Arc::into_inner(portion("shop-1", 0)).unwrap();
    let process = profile.add_process(Process::default());
    let thread = profile.add_thread(process, 0, String::new());
    for sample in 0..570_u32 {
        let stack: Vec<_> = (0..40_u32)
            .map(|depth| {
                // Stacks part from one another further up; 600 functions in 80 files.
                let number = if depth < 10 {
                    depth
                } else {
                    (sample * 7 + depth * depth * 13) % 600
                };
                let function = profile.function(Function {
                    name: format!("ShoppingCart{}.calculate_{number}", number % 50),
                    file: format!(
                        "/usr/lib/python3/dist-packages/shop/part_{}.py",
                        number % 80
                    ),
                    short_file: String::new(),
                    first_line: number + 1,
                    module: None,
                });
                profile.frame(function, Some(number + 1 + sample % 9))
            })
            .collect();
        let stack = profile.stack(stack);
        profile.record(0, thread, stack, 52_631_578);
    }
    let portion = Portion { labels, profile };
    let pprof = Format::Pprof.encode(&portion, "n").unwrap().len();
    let otlp = Format::Otlp { gzip: true }
        .encode(&portion, "n")
        .unwrap()
        .len();
    assert!(pprof < 100 << 10 && otlp < 100 << 10, "{pprof} {otlp}");
}
