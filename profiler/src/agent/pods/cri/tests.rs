use std::time::Instant;

use super::{
    fake::{Fake, Manner},
    *,
};

fn texts(texts: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = texts
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()));
    owned.collect()
}

fn container(id: &str, sandbox: &str, name: &str, image: &str) -> cri::Container {
    cri::Container {
        id: id.to_owned(),
        pod_sandbox_id: sandbox.to_owned(),
        metadata: Some(cri::ContainerMetadata {
            name: name.to_owned(),
        }),
        image: Some(cri::ImageSpec {
            image: image.to_owned(),
            ..cri::ImageSpec::default()
        }),
        state: RUNNING,
        ..cri::Container::default()
    }
}

fn sandbox(id: &str) -> cri::PodSandbox {
    cri::PodSandbox {
        id: id.to_owned(),
        metadata: Some(cri::PodSandboxMetadata {
            name: "web-0".to_owned(),
            uid: "u-1".to_owned(),
            namespace: "shop".to_owned(),
        }),
        labels: texts(&[("app", "web"), ("io.kubernetes.pod.name", "web-0")]),
        annotations: texts(&[
            ("pyebpf/profile", "true"),
            ("kubernetes.io/config.seen", "2026"),
            ("last-applied", &"x".repeat(5000)),
        ]),
    }
}

async fn listed(fake: &Fake) -> Vec<Container> {
    let mut runtime = Runtime::at(&fake.socket()).await.unwrap();
    runtime.list().await.unwrap()
}

fn find<'a>(containers: &'a [Container], id: &str) -> &'a Container {
    containers
        .iter()
        .find(|container| container.id == id)
        .unwrap()
}

#[tokio::test]
async fn containers_have_the_pod_of_their_sandbox() {
    let fake = Fake::start();
    fake.set(|state| {
        state.sandboxes = vec![sandbox("s")];
        state.containers = vec![container("c", "s", "app", "python:3.12")];
    });
    let mut runtime = Runtime::at(&fake.socket()).await.unwrap();
    assert_eq!(runtime.name, "fake 1.2");
    let listed = runtime.list().await.unwrap();
    let pod = Pod {
        namespace: "shop".to_owned(),
        name: "web-0".to_owned(),
        uid: "u-1".to_owned(),
        labels: texts(&[("app", "web")]),
        annotations: texts(&[("pyebpf/profile", "true")]),
    };
    let app = Container {
        id: "c".to_owned(),
        name: "app".to_owned(),
        image: "python:3.12".to_owned(),
        pod: Some(pod.clone()),
    };
    assert_eq!(*find(&listed, "c"), app);
    let pause = find(&listed, "s");
    assert_eq!((pause.name.as_str(), pause.pod.as_ref()), ("", Some(&pod)));
    assert_eq!(fake.count("ListImages"), 0);
}

#[tokio::test]
async fn without_its_sandbox_a_container_has_the_pod_that_its_labels_name() {
    let fake = Fake::start();
    let labels = texts(&[
        ("io.kubernetes.pod.name", "web-0"),
        ("io.kubernetes.pod.namespace", "shop"),
        ("io.kubernetes.pod.uid", "u-1"),
    ]);
    fake.set(|state| {
        let named = cri::Container {
            labels,
            ..container("c", "gone", "app", "i")
        };
        state.containers = vec![named, container("d", "", "by-hand", "i")];
    });
    let listed = listed(&fake).await;
    let pod = find(&listed, "c").pod.clone().unwrap();
    assert_eq!((&*pod.namespace, &*pod.name), ("shop", "web-0"));
    assert_eq!(find(&listed, "d").pod, None);
}

#[tokio::test]
async fn an_image_that_is_an_id_is_named_and_asked_for_once() {
    let fake = Fake::start();
    let id = format!("sha256:{}", "a1".repeat(32));
    let gone = "b2".repeat(32);
    fake.set(|state| {
        state.images = vec![cri::Image {
            id: id.clone(),
            repo_tags: vec!["python:3.12".to_owned(), "python:3".to_owned()],
            repo_digests: vec!["python@sha256:1".to_owned()],
        }];
        let mut said = container("d", "s", "d", &id);
        let image = said.image.as_mut().unwrap();
        image.user_specified_image = "my/python".to_owned();
        state.containers = vec![
            container("c", "s", "c", &id),
            said,
            container("e", "s", "e", &gone),
        ];
    });
    let mut runtime = Runtime::at(&fake.socket()).await.unwrap();
    for _ in 0..3 {
        let listed = runtime.list().await.unwrap();
        for (container, image) in [("c", "python:3.12"), ("d", "my/python"), ("e", &gone)] {
            assert_eq!(find(&listed, container).image, image);
        }
    }
    assert_eq!(fake.count("ListImages"), 1);
}

#[tokio::test]
async fn texts_are_bounded() {
    let fake = Fake::start();
    fake.set(|state| {
        let mut large = sandbox("s");
        let many = (0..1000).map(|key| (format!("a{key}"), "é".repeat(200)));
        large.annotations.extend(many);
        state.sandboxes = vec![large];
        state.containers = vec![container("c", "s", &"é".repeat(9999), "i")];
    });
    let listed = listed(&fake).await;
    let container = find(&listed, "c");
    assert_eq!(container.name.len(), 512);
    let annotations = &container.pod.as_ref().unwrap().annotations;
    assert_eq!(annotations.len(), 64);
    assert_eq!(annotations["pyebpf/profile"], "true");
    assert!(container.size() < 40_000);
}

async fn wrong(manner: Manner) -> String {
    let fake = Fake::start();
    fake.set(|state| state.manner = manner);
    let error = Runtime::at(&fake.socket()).await.unwrap_err();
    format!("{error:#}")
}

#[tokio::test]
async fn what_is_wrong_with_a_runtime_is_said() {
    let no_cri = wrong(Manner::NoCri).await;
    assert!(no_cri.contains("does not speak CRI v1"), "{no_cri}");
    let nonsense = wrong(Manner::Nonsense).await;
    assert!(nonsense.contains("Version: "), "{nonsense}");
    let large = wrong(Manner::TooMuch).await;
    assert!(large.contains("too large"), "{large}");

    let folder = tempfile::TempDir::new().unwrap();
    let missing = Runtime::at(&folder.path().join("no.sock")).await;
    assert_eq!(missing.unwrap_err().to_string(), "not there");
    let file = folder.path().join("file.sock");
    std::fs::write(&file, "").unwrap();
    let refused = format!("{:#}", Runtime::at(&file).await.unwrap_err());
    assert!(refused.contains("refused"), "{refused}");
}

#[tokio::test]
async fn a_runtime_that_hangs_is_given_up() {
    for manner in [Manner::Not, Manner::Deaf] {
        let began = Instant::now();
        let hangs = wrong(manner).await;
        assert!(hangs.contains("does not answer within 5 s"), "{hangs}");
        assert!(began.elapsed() < 2 * ANSWER);
    }
}
