//! What the agent answers over HTTP, beside a loop that takes no samples: formats, probes, whom it
//! refuses and what it withstands.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use pyebpf::agent::{serve::Settings, status::Status, watch::WATCHES_MAX};
use pyebpf_tests::fake_agent::{FakeAgent, Reply, ask, get};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const TOKEN: &str = "correct-horse-battery-staple";

/// Requests of the test that asks for everything at once.
const AT_ONCE: usize = 2000;

#[tokio::test]
async fn a_profile_comes_in_each_format_under_its_type_and_a_name() {
    let agent = FakeAgent::local().await;
    for (query, kind, extension, inside) in [
        ("?seconds=1", "image/svg+xml", ".svg", "JSON.decode"),
        (
            "?pid=41&seconds=1&format=raw",
            "text/plain; charset=utf-8",
            ".txt",
            "JSON.decode",
        ),
        (
            "?pod=shop/cart-7d9f&seconds=1&format=speedscope",
            "application/json",
            ".json",
            "JSON.decode",
        ),
        (
            "?container=web&seconds=1&format=pprof",
            "application/octet-stream",
            ".pb.gz",
            "\u{1f}",
        ),
    ] {
        let reply = get(agent.people(), &format!("/profile{query}"), "")
            .await
            .unwrap();
        assert_eq!(reply.status, 200, "{query}: {}", reply.text());
        assert!(
            reply.head.contains(&format!("content-type: {kind}\r\n")),
            "{}",
            reply.head
        );
        let disposition = reply
            .head
            .lines()
            .find(|line| line.starts_with("content-disposition"));
        assert!(
            disposition.unwrap().ends_with(&format!("{extension}\"")),
            "{}",
            reply.head
        );
        assert!(
            reply.head.contains("x-content-type-options: nosniff"),
            "{}",
            reply.head
        );
        assert!(reply.text().contains(inside), "{query}");
    }
    // A picture on a page of its own may run its script, but not in our name.
    let picture = get(agent.people(), "/profile?seconds=1", "").await.unwrap();
    assert!(
        picture.head.contains("sandbox allow-scripts"),
        "{}",
        picture.head
    );
}

#[tokio::test]
async fn who_asks_for_nonsense_is_told_what_to_do() {
    let agent = FakeAgent::local().await;
    let long = format!("/profile?pod={}", "a".repeat(20_000));
    for (path, status, words) in [
        (
            "/profile?seconds=301",
            400,
            "seconds=\"301\": give a whole number from 1 to 300",
        ),
        (
            "/profile?pid=42&seconds=1",
            404,
            "/processes lists those that do",
        ),
        ("/profile?pid=41&pod=x", 400, "give one of"),
        ("/profile?%zz=%", 400, "is nothing that can be asked for"),
        (
            "/profile/../../etc/passwd",
            404,
            "there is no \"/profile/../../etc/passwd\"",
        ),
        ("/etc/passwd", 404, "/processes"),
        (&long, 431, ""),
    ] {
        let reply = get(agent.people(), path, "").await.unwrap();
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
        assert!(reply.text().contains(words), "{path}: {}", reply.text());
    }
    let request = "POST /profile HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let reply = ask(agent.people(), request).await.unwrap();
    assert_eq!(
        (reply.status, &*reply.text()),
        (405, "nothing can be changed here: use GET\n")
    );
    assert_eq!(
        ask(agent.people(), "\x16\x03\x01nonsense\r\n\r\n")
            .await
            .unwrap()
            .status,
        400
    );
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_profile() {
    let agent = FakeAgent::local().await;
    let mut stream = TcpStream::connect(agent.people()).await.unwrap();
    let request = "GET /profile?seconds=300 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    agent.until_taking(1).await;
    drop(stream);
    // Were it not ended, it would take 6 s.
    timeout(Duration::from_secs(3), agent.until_taking(0))
        .await
        .unwrap();
}

#[tokio::test]
async fn one_profile_too_many_is_told_to_come_back() {
    let agent = FakeAgent::local().await;
    let address = agent.people();
    let asking = (0..WATCHES_MAX).map(|_| tokio::spawn(get_owned(address, "/profile?seconds=50")));
    let asking: Vec<_> = asking.collect();
    agent.until_taking(WATCHES_MAX).await;
    let reply = get(address, "/profile?seconds=1", "").await.unwrap();
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.head.contains("retry-after: 5"), "{}", reply.head);
    assert!(
        reply.text().contains("8 profiles are being taken already"),
        "{}",
        reply.text()
    );
    let metrics = get(agent.probes(), "/metrics", "").await.unwrap();
    assert!(
        metrics.text().contains("\npyebpf_requested_profiles 8\n"),
        "{}",
        metrics.text()
    );
    for asked in asking {
        assert_eq!(asked.await.unwrap().status, 200);
    }
    assert_eq!(
        get(address, "/profile?seconds=1", "").await.unwrap().status,
        200
    );
}

#[tokio::test]
async fn the_loops_refusals_reach_who_asked() {
    let agent = FakeAgent::local().await;
    let reply = get(agent.people(), "/profile?pod=nowhere&seconds=1", "")
        .await
        .unwrap();
    assert_eq!(reply.status, 404);
    assert!(
        reply.text().contains("Pod(\"nowhere\")"),
        "{}",
        reply.text()
    );
}

#[tokio::test]
async fn processes_are_listed_for_programs_and_for_people() {
    let agent = FakeAgent::local().await;
    let reply = get(agent.people(), "/processes", "").await.unwrap();
    assert!(
        reply.head.contains("content-type: application/json"),
        "{}",
        reply.head
    );
    let listed: Value = serde_json::from_slice(&reply.body).unwrap();
    let first = &listed["processes"][0];
    assert_eq!(
        (&first["pid"], &first["python"]),
        (&41.into(), &"3.12.1".into())
    );
    assert_eq!(first["labels"]["pod"], "cart-7d9f");
    assert_eq!(
        (&first["samples"], &first["complete"]),
        (&900.into(), &897.into())
    );
    assert_eq!(listed["processes"][2]["excluded"], true);
    assert_eq!(listed["rate"], 19);

    // What is kept is not shown again when there is something new.
    agent.status.send(Arc::new(Status::default())).unwrap();
    let reply = get(agent.people(), "/processes", "").await.unwrap();
    let listed: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(listed["processes"].as_array().unwrap().len(), 0);

    let agent = FakeAgent::local().await;
    for (path, further) in [
        ("/processes?text", ""),
        ("/processes", "Accept: text/plain\r\n"),
    ] {
        let text = get(agent.people(), path, further).await.unwrap().text();
        assert!(
            text.contains("99.7%     shop/cart-7d9f/web  python3 shop.py"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn probes_tell_nothing_of_processes_and_answer_to_any_name() {
    let agent = FakeAgent::local().await;
    for address in [agent.probes(), agent.people()] {
        assert_eq!(get(address, "/healthz", "").await.unwrap().text(), "ok\n");
        let ready = get(address, "/readyz", "").await.unwrap();
        assert_eq!(ready.status, 200);
        assert!(
            ready
                .text()
                .contains("parca: 12 sent, 3 waiting, the last attempt failed"),
            "{}",
            ready.text()
        );
        let metrics = get(address, "/metrics", "").await.unwrap();
        assert!(
            metrics
                .head
                .contains("content-type: text/plain; version=0.0.4"),
            "{}",
            metrics.head
        );
        assert!(
            metrics
                .text()
                .contains("pyebpf_samples_total{outcome=\"complete\"} 1000\n")
        );
    }
    for path in ["/", "/profile", "/processes", "/page.js"] {
        assert_eq!(
            get(agent.probes(), path, "").await.unwrap().status,
            404,
            "{path}"
        );
    }
    let request = "GET /metrics HTTP/1.1\r\nHost: node-7.example:7958\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(agent.probes(), request).await.unwrap().status, 200);
}

#[tokio::test]
async fn it_is_ready_once_it_has_sampled() {
    let agent = FakeAgent::local().await;
    let status = Arc::clone(&agent.status.borrow());
    // A new one begins without.
    let (requests, _asked) = tokio::sync::mpsc::channel(1);
    let (publish, following) = tokio::sync::watch::channel(Arc::<Status>::default());
    let shared = pyebpf::agent::serve::Shared {
        requests,
        status: following,
        places: Box::new(Vec::new),
    };
    let settings = Settings {
        probes: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        ..Settings::default()
    };
    let bound = pyebpf::agent::serve::start(&settings, shared)
        .await
        .unwrap();
    let probes = bound.probes.unwrap();
    let reply = get(probes, "/readyz", "").await.unwrap();
    assert_eq!(
        (reply.status, &*reply.text()),
        (503, "sampling has not begun\n")
    );
    assert_eq!(get(probes, "/healthz", "").await.unwrap().status, 200);
    publish.send(status).unwrap();
    let ready = async { while get(probes, "/readyz", "").await.unwrap().status != 200 {} };
    timeout(Duration::from_secs(5), ready).await.unwrap();
}

#[tokio::test]
async fn names_that_are_not_ours_are_refused() {
    let agent = FakeAgent::local().await;
    let request = |line: &str, hosts: &str| {
        format!("GET {line} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n")
    };
    for (line, hosts, status) in [
        ("/processes", "Host: evil.example\r\n", 421),
        ("/", "Host: evil.example:7957\r\n", 421),
        ("/healthz", "Host: evil.example\r\n", 421),
        (
            "/profile?seconds=1",
            "Host: localhost.evil.example\r\n",
            421,
        ),
        ("http://evil.example/processes", "Host: localhost\r\n", 421),
        ("/processes", "", 400),
        (
            "/processes",
            "Host: localhost\r\nHost: evil.example\r\n",
            400,
        ),
        ("/processes", "Host: localhost:1\r\n", 200),
        ("/processes", "Host: [::1]\r\n", 200),
        (
            "/processes",
            "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
            403,
        ),
        (
            "/",
            "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
            200,
        ),
        (
            "/processes",
            "Host: localhost\r\nSec-Fetch-Site: same-origin\r\n",
            200,
        ),
    ] {
        let reply = ask(agent.people(), &request(line, hosts)).await.unwrap();
        assert_eq!(reply.status, status, "{line} {hosts}: {}", reply.text());
    }
}

#[tokio::test]
async fn others_need_a_token() {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let open = Settings {
        listen: Some(any),
        ..Settings::default()
    };
    let error = FakeAgent::start(open.clone())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("--token-file") && error.contains("openssl rand"),
        "{error}"
    );

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{TOKEN}\n")).unwrap();
    let guarded = Settings {
        token_file: Some(file.path().to_owned()),
        hosts: vec!["node.example".to_owned()],
        ..open
    };
    let agent = FakeAgent::start(guarded).await.unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], agent.people().port()));
    let with = |value: &str| format!("Authorization: {value}\r\n");
    for (path, further, status) in [
        ("/processes", String::new(), 401),
        ("/profile?seconds=1", String::new(), 401),
        ("/metrics", String::new(), 401),
        ("/processes", with(&format!("Basic {TOKEN}")), 401),
        ("/processes", with("Bearer"), 401),
        ("/processes", with("Bearer "), 401),
        ("/processes", with(&format!("Bearer {}", &TOKEN[1..])), 401),
        ("/processes", with(&format!("Bearer {TOKEN}x")), 401),
        ("/processes", with(&format!("Bearer {TOKEN}")), 200),
        ("/profile?seconds=1", with(&format!("bearer {TOKEN}")), 200),
        ("/healthz", String::new(), 200),
        ("/readyz", String::new(), 200),
        // The page tells nothing; it asks for the token itself.
        ("/", String::new(), 200),
        ("/page.js", String::new(), 200),
    ] {
        let reply = get(address, path, &further).await.unwrap();
        assert_eq!(reply.status, status, "{path} {further}: {}", reply.text());
        assert_eq!(
            reply.head.contains("www-authenticate: Bearer"),
            status == 401
        );
    }
    let request = "GET / HTTP/1.1\r\nHost: node.example\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(address, request).await.unwrap().status, 200);
}

#[tokio::test]
async fn thousands_at_once_are_answered_or_refused() {
    let agent = FakeAgent::local().await;
    let (people, probes) = (agent.people(), agent.probes());
    let asking = (0..AT_ONCE).map(|at| {
        let path = ["/processes", "/metrics", "/", "/profile?seconds=1"][at % 4];
        tokio::spawn(async move { get(people, path, "").await.map(|reply| reply.status) })
    });
    let asking: Vec<_> = asking.collect();
    // Meanwhile a kubelet is answered.
    assert_eq!(get(probes, "/healthz", "").await.unwrap().status, 200);
    let (mut answered, mut refused, mut reset) = (0, 0, 0);
    for asked in asking {
        match timeout(Duration::from_secs(60), asked)
            .await
            .unwrap()
            .unwrap()
        {
            Ok(200) => answered += 1,
            Ok(503) => refused += 1,
            Ok(other) => panic!("answered with {other}"),
            // Refused before all of the request had come.
            Err(_) => reset += 1,
        }
    }
    assert_eq!(answered + refused + reset, AT_ONCE);
    assert!(
        answered >= 100,
        "{answered} answered, {refused} refused, {reset} reset"
    );
    agent.until_taking(0).await;
    assert_eq!(
        get(people, "/profile?seconds=1", "").await.unwrap().status,
        200
    );
}

#[tokio::test]
async fn who_sends_no_whole_request_loses_the_connection_and_blocks_nobody() {
    let agent = FakeAgent::local().await;
    // All the room there is for people.
    let mut slow = Vec::new();
    for _ in 0..128 {
        let mut stream = TcpStream::connect(agent.people()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
        slow.push(stream);
    }
    // One that found the last room is answered.
    let refused = async {
        while get(agent.people(), "/", "")
            .await
            .is_ok_and(|reply| reply.status == 200)
        {}
    };
    timeout(Duration::from_secs(5), refused).await.unwrap();
    assert_eq!(
        get(agent.probes(), "/healthz", "").await.unwrap().status,
        200
    );
    let metrics = get(agent.probes(), "/metrics", "").await.unwrap().text();
    assert!(
        !metrics.contains("\npyebpf_connections_refused_total 0\n"),
        "{metrics}"
    );
    for stream in &mut slow {
        let mut rest = Vec::new();
        let read = stream.read_to_end(&mut rest);
        timeout(Duration::from_secs(20), read)
            .await
            .unwrap()
            .unwrap();
    }
    assert_eq!(get(agent.people(), "/", "").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_connection_that_asks_for_nothing_more_is_closed() {
    let agent = FakeAgent::local().await;
    let mut stream = TcpStream::connect(agent.people()).await.unwrap();
    let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    assert!(bytes.starts_with(b"HTTP/1.1 200"));
}

async fn get_owned(address: SocketAddr, path: &'static str) -> Reply {
    get(address, path, "").await.unwrap()
}
