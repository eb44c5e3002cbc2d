//! What a store made of others' code understands of what the agent pushes: an OpenTelemetry collector of
//! the project's own messages (`readers/collector.py`). Where they are missing, the test says so. And what
//! becomes of profiles where the spool's disk is full.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pyebpf::{
    agent::{
        export::{Export, settings::Protocol, state::State},
        labels::{Labels, Portion},
        settings::{Bytes, Settings},
    },
    profile::{LineShape, Shape},
};
use pyebpf_tests::{can_profile, example, installed, skip};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// How long a request may take, whose first try fails.
const PATIENCE: Duration = Duration::from_secs(30);

const SHAPE: Shape = Shape {
    line: LineShape::Current,
    threads: true,
    full_filenames: true,
    processes: true,
};

/// The collector. Ends when dropped.
struct Collector {
    process: Child,
    lines: BufReader<ChildStdout>,
    ports: Value,
}

impl Collector {
    /// With TLS, where there are certificates. `None` where its packages are missing.
    fn start(test: &str, certificates: Option<&Path>) -> Result<Option<Collector>> {
        let Some(python) = installed(test, "venv/bin/python3") else {
            return Ok(None);
        };
        let has = Command::new(&python)
            .args([
                "-c",
                "import grpc, opentelemetry.proto.profiles.v1development.profiles_pb2",
            ])
            .stderr(Stdio::null())
            .status()?;
        if !has.success() {
            skip(test, "grpcio and opentelemetry-proto are missing");
            return Ok(None);
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("readers/collector.py");
        let mut process = Command::new(python)
            .arg("-Wignore")
            .arg(script)
            .args(certificates)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(process.stdout.take().unwrap());
        let mut collector = Collector {
            process,
            lines,
            ports: Value::Null,
        };
        collector.ports = collector.line()?;
        Ok(Some(collector))
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the collector said {line:?}"))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_collector_of_the_official_messages_understands_profiles_over_grpc_and_http() -> Result<()>
{
    let test = "a_collector_of_the_official_messages_understands_profiles_over_grpc_and_http";
    let Some(mut collector) = Collector::start(test, None)? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let token = folder.path().join("token");
    std::fs::write(&token, "correct-horse\n")?;
    for (way, protocol) in [("grpc", Protocol::Grpc), ("http", Protocol::Http)] {
        let mut settings = Settings::default();
        settings.otlp.url = Some(format!("http://127.0.0.1:{}", collector.ports[way]));
        settings.otlp.protocol = Some(protocol);
        settings.otlp.token_file = Some(token.clone());
        settings.otlp.tenant = Some("team-a".to_owned());
        let export = Export::start(&settings, "node-1")?;
        export.send(vec![Arc::new(portion())]);
        is_sent(way, &export).await?;
        let state = export.state().remove(0);
        // It was not ready for the first try.
        ensure!(state.retried == 1 && state.dropped.is_empty(), "{state:?}");
        let got = collector.line()?;
        check(way, &got).with_context(|| format!("{got:#}"))?;
        export.end(Duration::ZERO).await;
    }
    Ok(())
}

async fn is_sent(way: &str, export: &Export) -> Result<()> {
    let sent = async {
        while export.state()[0].sent == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let sent = timeout(PATIENCE, sent).await;
    sent.with_context(|| format!("{way}: {:?}", export.state()))
}

#[tokio::test]
async fn with_tls_both_sides_show_certificates_of_an_authority_of_their_own() -> Result<()> {
    let test = "with_tls_both_sides_show_certificates_of_an_authority_of_their_own";
    let folder = tempfile::tempdir()?;
    let script = r#"
        request="openssl req -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2"
        $request -x509 -keyout ca.key -out ca.pem -subj /CN=authority
        for who in it us; do
            $request -x509 -CA ca.pem -CAkey ca.key -keyout $who.key -out $who.pem -subj /CN=$who \
                -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=IP:127.0.0.1
        done"#;
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(folder.path());
    let made = command.output()?;
    if !made.status.success() {
        skip(
            test,
            &format!("openssl: {}", String::from_utf8_lossy(&made.stderr)),
        );
        return Ok(());
    }
    let Some(mut collector) = Collector::start(test, Some(folder.path()))? else {
        return Ok(());
    };
    for (way, protocol) in [("grpc", Protocol::Grpc), ("http", Protocol::Http)] {
        let mut settings = Settings::default();
        settings.otlp.url = Some(format!("https://127.0.0.1:{}", collector.ports[way]));
        settings.otlp.protocol = Some(protocol);
        // Known to nobody, and without a certificate.
        let stranger = Export::start(&settings, "node-1")?;
        stranger.send(vec![Arc::new(portion())]);
        stranger.end(Duration::from_secs(1)).await;
        let state = stranger.state().remove(0);
        ensure!(state.sent == 0 && state.failed > 0, "{state:?}");
        ensure!(state.dropped == [("ended", 1)].into(), "{state:?}");

        let file = |name: &str| Some(folder.path().join(name));
        settings.otlp.ca_file = file("ca.pem");
        settings.otlp.cert_file = file("us.pem");
        settings.otlp.key_file = file("us.key");
        let export = Export::start(&settings, "node-1")?;
        export.send(vec![Arc::new(portion())]);
        is_sent(way, &export).await?;
        ensure!(collector.line()?["way"] == way, "it came another way");
    }
    Ok(())
}

fn portion() -> Portion {
    let labels = [
        ("namespace", "shop"),
        ("pod", "cart-7d9f"),
        ("container", "web"),
        ("container_id", "0123456789ab"),
        ("image", "registry.example/shop:7"),
        ("service", "cart"),
        ("node", "node-1"),
        ("pid", "41"),
        ("team", "größe"),
    ];
    let labels: Labels = labels
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    Portion {
        labels: Arc::new(labels),
        profile: example::profile(SHAPE),
    }
}

fn check(way: &str, got: &Value) -> Result<()> {
    ensure!(got["problems"] == json!([]), "the protocol asks for more");
    ensure!(got["way"] == way, "it came another way");
    for (name, value) in [
        ("authorization", "Bearer correct-horse"),
        ("x-scope-orgid", "team-a"),
    ] {
        ensure!(got["headers"][name] == value, "{name}");
    }
    for (name, value) in [
        ("k8s.namespace.name", json!("shop")),
        ("k8s.pod.name", json!("cart-7d9f")),
        ("k8s.container.name", json!("web")),
        ("k8s.node.name", json!("node-1")),
        ("host.name", json!("node-1")),
        ("container.id", json!("0123456789ab")),
        ("service.name", json!("cart")),
        ("process.pid", json!(41)),
        ("team", json!("größe")),
    ] {
        ensure!(got["resource"][name] == value, "{name}");
    }
    let profile = example::profile(SHAPE);
    let meta = profile.meta();
    ensure!(
        got["type"] == "cpu/nanoseconds" && got["period_type"] == "cpu/nanoseconds",
        "types"
    );
    ensure!(got["period"] == 1_000_000_000 / meta.rate, "period");
    ensure!(got["lasted"] == meta.duration.as_nanos() as u64, "duration");
    let began = meta.started.duration_since(std::time::UNIX_EPOCH)?;
    ensure!(got["began"] == began.as_nanos() as u64, "start");

    let samples = got["samples"].as_array().context("no samples")?;
    let values = samples
        .iter()
        .filter_map(|sample| sample["values"][0].as_u64());
    ensure!(
        values.sum::<u64>() == example::SAMPLES * example::WEIGHT,
        "the total"
    );
    let python = |name: &str, file: &str, first: u32, line: u32| json!({"type": "cpython", "module": "", "lines": [[name, file, first, line]]});
    let decode = json!([
        python(
            "JSON.decode",
            "/usr/lib/python3.11/json/decoder.py",
            330,
            337
        ),
        python("Shop.sell", "/srv/shop/shop.py", 10, 14),
        python("<module>", "/srv/shop/shop.py", 1, 90),
    ]);
    let decode = samples.iter().find(|sample| sample["stack"] == decode);
    let decode = decode.context("a stack of Python")?;
    ensure!(decode["values"] == json!([5 * example::WEIGHT]), "{decode}");
    let thread = json!({"process.pid": 41, "thread.id": 41, "thread.name": "MainThread"});
    ensure!(decode["attributes"] == thread, "{decode}");
    let libz = "/usr/lib/x86_64-linux-gnu/libz.so.1.2.13";
    let leaves = [
        json!({"type": "native", "module": libz, "process.executable.build_id.gnu": "be010f",
               "lines": [["adler32_z", "", 0, 0]]}),
        json!({"type": "kernel", "module": "[ext4]", "lines": [["ext4_file_read_iter", "", 0, 0]]}),
        json!({"type": null, "module": "", "lines": [["[unreadable: thread state]", "", 0, 0]]}),
    ];
    for leaf in leaves {
        ensure!(
            samples.iter().any(|sample| sample["stack"][0] == leaf),
            "{leaf}"
        );
    }
    Ok(())
}

/// A file system of 64 KiB. Dropping it takes it away.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Result<Small> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(folder.path());
        ensure!(command.status()?.success(), "cannot mount a tmpfs");
        Ok(Small(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_under_the_spool_is_said_and_the_rest_waits_in_memory() -> Result<()> {
    const PROFILES: u64 = 60;
    let test = "a_full_disk_under_the_spool_is_said_and_the_rest_waits_in_memory";
    if !can_profile(test) {
        return Ok(());
    }
    let small = Small::mount()?;
    let mut settings = Settings::default();
    // Nobody listens there.
    settings.parca.url = Some("http://127.0.0.1:9".to_owned());
    settings.spool.path = Some(small.0.path().to_owned());
    settings.spool.max_size = Bytes(64 << 20);
    let export = Export::start(&settings, "node-1")?;
    for _ in 0..PROFILES / 20 {
        let portion = || Portion {
            labels: Arc::default(),
            profile: example::profile(Shape::default()),
        };
        export.send((0..20).map(|_| Arc::new(portion())).collect());
    }
    let full = |state: &State| {
        let said = state.spool_error.as_deref().unwrap_or_default();
        said.contains("No space left on device") && state.waiting == PROFILES
    };
    for _ in 0..1000 {
        if full(&export.state()[0]) {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    let state = export.state().remove(0);
    ensure!(full(&state) && state.dropped.is_empty(), "{state:?}");
    export.end(Duration::from_millis(100)).await;
    // What found room is for the next start, the rest is counted.
    let state = export.state().remove(0);
    let (kept, lost) = (state.waiting, state.dropped["spool_failed"]);
    ensure!(kept > 0 && lost > 0 && kept + lost == PROFILES, "{state:?}");
    let files = std::fs::read_dir(small.0.path().join("parca"))?.count();
    assert_eq!(files as u64, kept);
    Ok(())
}
