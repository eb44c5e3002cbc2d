//! The agent's page in a real browser, a headless Chromium: what a person sees there and clicks. Where
//! there is no Chromium or no node, the tests say so.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use pyebpf::agent::serve::Settings;
use pyebpf_tests::{fake_agent::FakeAgent, skip};
use serde_json::{Value, json};

const ROWS: &str =
    "[...document.querySelectorAll('#processes tr')].map(tr => tr.dataset.pid).join()";

const TOKEN: &str = "correct-horse-battery-staple";

/// The browser that is there, by the names under which distributions have it.
fn chromium(test: &str) -> Option<&'static str> {
    let starts = |program: &str| {
        let mut command = Command::new(program);
        let command = command
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !starts("node") {
        skip(test, "node does not start");
        return None;
    }
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = names.into_iter().find(|name| starts(name));
    if found.is_none() {
        skip(test, "there is no Chromium");
    }
    found
}

/// What was seen at these steps; see `readers/page.mjs`.
async fn browse(chromium: &'static str, address: SocketAddr, steps: Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("readers/page.mjs");
    let browsing = tokio::task::spawn_blocking(move || {
        let mut command = Command::new("node");
        command
            .arg(script)
            .arg(chromium)
            .arg(format!("http://{address}/"));
        command.arg(steps.to_string()).output().unwrap()
    });
    let output = browsing.await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn a_click_on_a_process_draws_its_flame_graph() {
    let test = "a_click_on_a_process_draws_its_flame_graph";
    let Some(chromium) = chromium(test) else {
        return;
    };
    let agent = FakeAgent::local().await;
    let steps = json!([
        { "until": "document.querySelectorAll('#processes tr').length === 3" },
        { "see": ["rows", ROWS] },
        { "see": ["row", "document.querySelector('[data-pid=\"41\"]').innerText"] },
        { "click": "[data-pid='41'] td:nth-child(2)" },
        { "drawn": "JSON.decode (json/decoder.py" },
        { "see": ["whose", "document.querySelector('#whose').textContent"] },
        { "see": ["trouble", "document.querySelector('#trouble').hidden"] },
        // Its own script works: a click on a frame makes it as wide as the picture.
        { "act": "document.querySelector('#unzoom').classList.contains('hide')" },
        { "act": "[...document.querySelectorAll('#frames g')].find(g => g.textContent.includes('JSON.decode')).dispatchEvent(new MouseEvent('click', { bubbles: true }))" },
        { "act": "!document.querySelector('#unzoom').classList.contains('hide')" },
        { "act": "unzoom(), true" },
        { "type": ["#within", "decode (json"] },
        // 5 of 27 samples: what is no regular expression is taken as it stands.
        { "act": "document.querySelector('#matched').textContent === 'Matched: 18.5%'" },
        // The picture can't reach the page, nor the page the picture.
        { "see": ["apart", "document.querySelector('iframe').contentDocument === null"] },
        // One that is left out is not profiled.
        { "click": "[data-pid='90'] td:nth-child(2)" },
        { "see": ["still", "document.querySelector('#whose').textContent"] },
        { "click": "[data-pid='41'] td:nth-child(5) button" },
        { "until": "document.querySelector('#whose').textContent === 'pod cart-7d9f'" },
        { "until": "document.querySelector('#stop').hidden" },
        { "drawn": "Shop.sell" },
        { "see": ["pod", "document.querySelector('#trouble').hidden"] },
        { "see": ["link", "document.querySelector('[data-format=pprof]').getAttribute('href')"] },
    ]);
    let seen = browse(chromium, agent.people(), steps).await;
    assert_eq!(seen["rows"], "41,77,90");
    let row = seen["row"].as_str().unwrap();
    for cell in [
        "python3 shop.py --sort 'a;b'",
        "3.12.1",
        "shop",
        "cart-7d9f",
        "web",
        "900",
        "99.6 %",
    ] {
        assert!(row.contains(cell), "{cell}: {row}");
    }
    assert_eq!(seen["whose"], "41: python3 shop.py --sort 'a;b'");
    assert_eq!(seen["whose"], seen["still"]);
    for yes in ["trouble", "apart", "pod"] {
        assert_eq!(seen[yes], true, "{yes}");
    }
    assert_eq!(
        seen["link"],
        "/profile?pod=shop%2Fcart-7d9f&seconds=10&format=pprof"
    );
    assert_eq!(seen["complaints"], json!([]));
}

#[tokio::test]
async fn processes_are_searched_and_sorted() {
    let Some(chromium) = chromium("processes_are_searched_and_sorted") else {
        return;
    };
    let agent = FakeAgent::local().await;
    let steps = json!([
        { "until": "document.querySelectorAll('#processes tr').length === 3" },
        { "click": "th:nth-child(1) button" },
        { "click": "th:nth-child(1) button" },
        { "see": ["descending", ROWS] },
        // What has no pod comes last.
        { "click": "th:nth-child(5) button" },
        { "see": ["pods", ROWS] },
        { "type": ["#search", "GRÖSSE <x"] },
        { "see": ["none", ROWS] },
        { "click": "#search" },
        { "see": ["clear", "document.querySelector('#search').value = ''"] },
        { "type": ["#search", "größe <x"] },
        { "see": ["found", ROWS] },
        { "see": ["shown", "document.querySelector('#shown').textContent"] },
    ]);
    let seen = browse(chromium, agent.people(), steps).await;
    assert_eq!(seen["descending"], "90,77,41");
    assert_eq!(seen["pods"], "41,77,90");
    assert_eq!((&seen["none"], &seen["found"]), (&"".into(), &"77".into()));
    assert_eq!(seen["shown"], "1 of 3 are shown");
    assert_eq!(seen["complaints"], json!([]));
}

#[tokio::test]
async fn a_failure_is_shown_and_live_profiles_go_on_until_they_are_stopped() {
    let test = "a_failure_is_shown_and_live_profiles_go_on_until_they_are_stopped";
    let Some(chromium) = chromium(test) else {
        return;
    };
    let agent = FakeAgent::local().await;
    let steps = json!([
        { "click": "[data-pid='77'] td:nth-child(2)" },
        { "click": "#live" },
        { "drawn": "größe.数" },
        { "see": ["first", "window.first = document.querySelector('iframe'), true"] },
        { "until": "document.querySelector('iframe') !== window.first" },
        { "drawn": "größe.数" },
        { "see": ["longer", "document.querySelector('#seconds').value = '300'"] },
        { "until": "/[0-9]{3} s/.test(document.querySelector('#left').textContent)" },
        { "click": "#stop" },
        { "until": "document.querySelector('#stop').hidden" },
        { "see": ["gone", "profile({ query: { pid: 4242 }, words: 'gone' })"] },
        { "until": "!document.querySelector('#trouble').hidden" },
        { "see": ["trouble", "document.querySelector('#trouble').textContent"] },
        { "click": "#close" },
        { "see": ["closed", "document.querySelector('#profile').hidden && !document.querySelector('iframe')"] },
    ]);
    let seen = browse(chromium, agent.people(), steps).await;
    let trouble = seen["trouble"].as_str().unwrap();
    assert!(
        trouble.contains("no Python runs here that is Pid(4242)"),
        "{trouble}"
    );
    assert_eq!(seen["closed"], true);
    agent.until_taking(0).await;
}

#[tokio::test]
async fn the_page_asks_for_a_token_and_shows_it_with_what_it_asks() {
    let test = "the_page_asks_for_a_token_and_shows_it_with_what_it_asks";
    let Some(chromium) = chromium(test) else {
        return;
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), TOKEN).unwrap();
    let settings = Settings {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        token_file: Some(file.path().to_owned()),
        ..Settings::default()
    };
    let agent = FakeAgent::start(settings).await.unwrap();
    let steps = json!([
        { "until": "!document.querySelector('#ask-token').hidden" },
        { "see": ["before", ROWS] },
        { "type": ["#token", TOKEN] },
        { "click": "#ask-token button" },
        { "until": "document.querySelectorAll('#processes tr').length === 3" },
        { "see": ["asked", "document.querySelector('#ask-token').hidden"] },
        { "click": "#everything" },
        { "drawn": "JSON.decode (json/decoder.py" },
    ]);
    let seen = browse(chromium, agent.people(), steps).await;
    assert_eq!(
        (&seen["before"], &seen["asked"]),
        (&"".into(), &true.into())
    );
}
