use super::*;
use crate::agent::pods::cri::{
    fake::{Fake, Manner},
    messages,
};

fn container(number: usize) -> messages::Container {
    messages::Container {
        id: id(number),
        metadata: Some(messages::ContainerMetadata {
            name: format!("app-{number}"),
        }),
        ..messages::Container::default()
    }
}

fn id(number: usize) -> String {
    format!("{number:064x}")
}

fn pods(socket: PathBuf) -> Pods {
    let settings = Settings {
        source: Source::Cri,
        cri_socket: Some(socket),
    };
    Pods::start(&settings, "node").unwrap()
}

/// Asks until it is decided or `seconds` have passed.
async fn decided(pods: &Pods, id: &str, seconds: u64) -> Known {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let known = pods.of(id);
        if known != Known::NotYet || Instant::now() > end {
            return known;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn is_named(pods: &Pods, number: usize, seconds: u64) {
    let known = decided(pods, &id(number), seconds).await;
    let Known::Is(container) = known else {
        panic!("{number}: {known:?}, {}", pods.source());
    };
    assert_eq!(container.name, format!("app-{number}"));
}

#[tokio::test]
async fn what_is_there_and_what_comes_is_named() {
    let fake = Fake::start();
    fake.set(|state| state.containers.push(container(1)));
    let pods = pods(fake.socket());
    assert_eq!(pods.of(&id(1)), Known::NotYet);
    is_named(&pods, 1, 5).await;
    fake.set(|state| state.containers = vec![container(2)]);
    is_named(&pods, 2, 5).await;
    // It is gone and still known.
    is_named(&pods, 1, 0).await;
    let asked = pods.chosen().await;
    assert_eq!((asked.source, asked.containers), (Source::Cri, 2));
    let socket = fake.socket();
    let said = format!("the container runtime, fake 1.2 at {}", socket.display());
    assert_eq!(asked.to_string(), said);
}

#[tokio::test]
async fn many_that_are_new_are_one_request() {
    let fake = Fake::start();
    let pods = pods(fake.socket());
    pods.chosen().await;
    sleep(2 * GAP).await;
    let before = fake.count("ListContainers");
    fake.set(|state| state.containers = (0..500).map(container).collect());
    for number in 0..500 {
        pods.of(&id(number));
    }
    is_named(&pods, 499, 5).await;
    for number in 0..500 {
        is_named(&pods, number, 0).await;
    }
    assert_eq!(fake.count("ListContainers"), before + 1);
}

#[tokio::test]
async fn without_anything_new_nobody_is_asked() {
    let fake = Fake::start();
    fake.set(|state| state.containers.push(container(1)));
    let pods = pods(fake.socket());
    is_named(&pods, 1, 5).await;
    for _ in 0..50 {
        pods.of(&id(1));
        sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(fake.count("ListContainers"), 1);
}

#[tokio::test]
async fn an_id_that_comes_late_is_named_when_it_does() {
    let fake = Fake::start();
    let pods = pods(fake.socket());
    assert_eq!(decided(&pods, &id(7), 2).await, Known::NotYet);
    fake.set(|state| state.containers.push(container(7)));
    is_named(&pods, 7, 10).await;
}

#[tokio::test]
async fn a_runtime_that_is_started_anew_is_found_again() {
    let mut fake = Fake::start();
    fake.set(|state| state.containers.push(container(1)));
    let pods = pods(fake.socket());
    is_named(&pods, 1, 5).await;
    fake.stop().await;
    fake.set(|state| state.containers.push(container(2)));
    assert_eq!(decided(&pods, &id(2), 1).await, Known::NotYet);
    let asked = pods.source();
    assert!(asked.failures > 0 && asked.failing.is_some(), "{asked}");
    assert!(asked.to_string().contains("; no answer now: "), "{asked}");
    is_named(&pods, 1, 0).await;
    fake.serve();
    is_named(&pods, 2, 10).await;
    assert_eq!(pods.source().failing, None);
}

#[tokio::test]
async fn a_runtime_that_comes_to_its_senses_is_asked_again() {
    for manner in [Manner::Nonsense, Manner::TooMuch, Manner::Not] {
        let fake = Fake::start();
        let pods = pods(fake.socket());
        pods.chosen().await;
        fake.set(|state| state.manner = manner);
        sleep(2 * GAP).await;
        assert_eq!(decided(&pods, &id(1), 6).await, Known::NotYet);
        assert!(pods.source().failing.is_some(), "{manner:?}");
        fake.set(|state| {
            state.manner = Manner::Well;
            state.containers.push(container(1));
        });
        is_named(&pods, 1, 30).await;
    }
}

#[tokio::test]
async fn a_runtime_may_come_after_the_agent() {
    let mut fake = Fake::start();
    fake.stop().await;
    std::fs::remove_file(fake.socket()).unwrap();
    let pods = pods(fake.socket());
    let asked = pods.chosen().await;
    assert_eq!(asked.source, Source::None);
    let said = format!(
        "nobody: no container runtime; not there: {}",
        fake.socket().display()
    );
    assert_eq!(asked.to_string(), said);
    let known = pods.of(&id(1));
    assert!(matches!(&known, Known::Never(why) if why.contains("not there")));
    fake.set(|state| state.containers.push(container(1)));
    fake.serve();
    asks(&pods, Source::Cri).await;
    is_named(&pods, 1, 5).await;
}

/// Waits until this is asked.
async fn asks(pods: &Pods, source: Source) {
    let end = Instant::now() + Duration::from_secs(20);
    while pods.source().source != source {
        assert!(Instant::now() < end, "{}", pods.source());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_api_is_asked_until_there_is_a_runtime() {
    let fake = Fake::start();
    fake.set(|state| {
        state.manner = Manner::NoCri;
        state.containers.push(container(1));
    });
    let pods = Pods::idle();
    let place = Place {
        source: Source::Auto,
        sockets: vec![fake.socket()],
        node: "node-1".to_owned(),
        is_in_kubernetes: true,
    };
    tokio::spawn(place.ask(pods.shared()));
    asks(&pods, Source::Kubernetes).await;
    let said = pods.source().said;
    let expected = "the Kubernetes API, for the pods of node node-1; no container runtime; ";
    assert!(said.starts_with(expected), "{said}");
    assert!(
        said.contains("cri.sock: Version: it does not speak CRI v1"),
        "{said}"
    );
    fake.set(|state| state.manner = Manner::Well);
    asks(&pods, Source::Cri).await;
    is_named(&pods, 1, 5).await;
}

#[tokio::test]
async fn of_nested_containers_the_innermost_is_meant_that_is_known() {
    let fake = Fake::start();
    fake.set(|state| state.containers = vec![container(1), container(2)]);
    let pods = pods(fake.socket());
    is_named(&pods, 1, 5).await;
    let of = |path: &str| {
        let text = format!("4:memory:{path}\n0::{path}\n");
        pods.of_groups(&Cgroups::parse(text.as_bytes()))
    };
    let name = |known| match known {
        Some(Known::Is(container)) => container.name.clone(),
        other => format!("{other:?}"),
    };
    let (first, second, stranger) = (id(1), id(2), id(3));
    assert_eq!(of("/user.slice"), None);
    assert_eq!(
        name(of(&format!("/kubepods/{first}/docker/{second}"))),
        "app-2"
    );
    assert_eq!(
        name(of(&format!("/kubepods/{first}/docker/{stranger}"))),
        "app-1"
    );
    assert_eq!(of(&format!("/docker/{stranger}")), Some(Known::NotYet));
}

#[tokio::test]
async fn nobody_is_asked_where_the_settings_say_so() {
    let settings = Settings {
        source: Source::None,
        cri_socket: None,
    };
    let pods = Pods::start(&settings, "node").unwrap();
    let said = pods.chosen().await.to_string();
    assert_eq!(said, "nobody: the settings say so");
    assert!(matches!(pods.of(&id(1)), Known::Never(_)));
}

#[tokio::test]
async fn the_first_socket_that_answers_is_taken_and_the_others_are_told_of() {
    let (off, on) = (Fake::start(), Fake::start());
    off.set(|state| state.manner = Manner::NoCri);
    let place = Place {
        source: Source::Auto,
        sockets: vec!["/nowhere".into(), off.socket(), on.socket()],
        node: String::new(),
        is_in_kubernetes: false,
    };
    let (runtime, socket, others) = place.runtime().await.unwrap();
    assert_eq!((&*runtime.name, socket), ("fake 1.2", &*on.socket()));
    let expected = off.socket();
    let expected = format!("; {}: ", expected.display());
    assert!(
        others.starts_with(&expected) && !others.contains("nowhere"),
        "{others}"
    );
    assert!(others.contains("does not speak CRI v1"), "{others}");
}
