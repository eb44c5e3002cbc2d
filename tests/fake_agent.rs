//! What the agent serves, without an agent: a loop that takes no samples answers requests with the
//! profile made by hand, and a client that sends what it is told.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use pyebpf::agent::{
    export::state::State,
    serve::{self, Bound, Settings, Shared},
    status::{Process, Status},
    watch::{Refused, Request, WATCHES_MAX, Whose},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, watch},
    time::sleep,
};

use crate::example;

/// How long a second of a profile takes here.
pub const SECOND: Duration = Duration::from_millis(20);

/// An agent that is none, for as long as its runtime runs.
pub struct FakeAgent {
    pub bound: Bound,
    pub status: watch::Sender<Arc<Status>>,
    /// Profiles that are being taken.
    pub taking: Arc<AtomicUsize>,
}

impl FakeAgent {
    /// One with these settings, at ports that are free; it has the processes of the example.
    ///
    /// # Errors
    /// What keeps it from serving.
    pub async fn start(settings: Settings) -> Result<FakeAgent> {
        let (requests, asked) = mpsc::channel(WATCHES_MAX);
        let (status, following) = watch::channel(Arc::new(status()));
        let shared = Shared {
            requests,
            status: following,
            places: Box::new(|| vec![place()]),
        };
        let bound = serve::start(&settings, shared).await?;
        let taking = Arc::default();
        tokio::spawn(answer(asked, Arc::clone(&taking)));
        Ok(FakeAgent {
            bound,
            status,
            taking,
        })
    }

    /// One that people reach on loopback, and probes on a listener of their own.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn local() -> FakeAgent {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let settings = Settings {
            listen: Some(any),
            probes: Some(any),
            ..Settings::default()
        };
        let agent = FakeAgent::start(settings).await;
        agent.expect("loopback has free ports")
    }

    /// Where people ask.
    ///
    /// # Panics
    /// When it listens nowhere.
    pub fn people(&self) -> SocketAddr {
        self.bound.listen.expect("the settings have an address")
    }

    /// Where probes ask.
    ///
    /// # Panics
    /// When it listens nowhere.
    pub fn probes(&self) -> SocketAddr {
        self.bound.probes.expect("the settings have an address")
    }

    /// Waits until so many profiles are being taken.
    pub async fn until_taking(&self, number: usize) {
        while self.taking.load(SeqCst) != number {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// As the loop publishes it once a second.
pub fn status() -> Status {
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let cart = [
        label("namespace", "shop"),
        label("pod", "cart-7d9f"),
        label("container", "web"),
    ];
    let process = |pid, command: &str, samples, complete| Process {
        pid,
        command: command.to_owned(),
        python: "3.12.1".to_owned(),
        samples,
        complete,
        ..Process::default()
    };
    Status {
        up: Duration::from_secs(60),
        rate: 19,
        rate_asked: 19,
        outcomes: [("complete", 1000), ("truncated_depth", 3)].into(),
        processes: vec![
            Arc::new(Process {
                labels: Arc::new(cart.into()),
                ..process(41, "python3 shop.py --sort 'a;b'", 900, 897)
            }),
            Arc::new(process(77, "/usr/bin/python3 -m größe <x & y>", 103, 103)),
            Arc::new(Process {
                excluded: true,
                ..process(90, "python3 secret.py", 0, 0)
            }),
        ],
        ..Status::default()
    }
}

fn place() -> State {
    State {
        name: "parca",
        sent: 12,
        waiting: 3,
        last_error: Some("connection refused".to_owned()),
        ..State::default()
    }
}

async fn answer(mut asked: mpsc::Receiver<Request>, taking: Arc<AtomicUsize>) {
    while let Some(mut request) = asked.recv().await {
        let refused = match &request.whose {
            Whose::Everyone | Whose::Pid(41 | 77) => None,
            Whose::Pod(pod) if pod == "shop/cart-7d9f" => None,
            Whose::Container(container) if container == "web" => None,
            nobody => Some(Refused::Nobody(format!("{nobody:?}"))),
        };
        if let Some(refused) = refused {
            // It may have gone away.
            let _ = request.answer.send(Err(refused));
            continue;
        }
        taking.fetch_add(1, SeqCst);
        let taking = Arc::clone(&taking);
        tokio::spawn(async move {
            let seconds = request.duration.as_secs() as u32;
            tokio::select! {
                () = sleep(SECOND * seconds) => {
                    let _ = request.answer.send(Ok(example::profile(request.shape)));
                }
                () = request.answer.closed() => {}
            }
            taking.fetch_sub(1, SeqCst);
        });
    }
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// The status line and the headers, their names in lower case.
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Asks for a path with these further lines of the request's head, each with its end.
///
/// # Errors
/// When there is no connection, or what comes is no answer.
pub async fn get(address: SocketAddr, path: &str, further: &str) -> Result<Reply> {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{further}\r\n");
    ask(address, &request).await
}

/// Sends a request as it stands.
///
/// # Errors
/// As for [`get`].
pub async fn ask(address: SocketAddr, request: &str) -> Result<Reply> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.with_context(|| format!("no answer: {:?}", String::from_utf8_lossy(&bytes)))?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok(Reply {
        status: status.with_context(|| format!("no status: {head}"))?,
        head,
        body: bytes[end + 4..].to_owned(),
    })
}
