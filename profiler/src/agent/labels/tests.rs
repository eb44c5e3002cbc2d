use super::*;

fn settings() -> Settings {
    let list = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
    Settings {
        pid: true,
        env: list(&["TENANT", "GIT.SHA=revision"]),
        pod: list(&["team", "app.kubernetes.io/version=version"]),
        fixed: list(&["cluster=west"]),
    }
}

fn pod(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Pod {
    let map = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        pairs
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    Pod {
        namespace: "shop".to_owned(),
        name: "web-1".to_owned(),
        uid: "u".to_owned(),
        labels: map(labels),
        annotations: map(annotations),
    }
}

fn in_container(id: &str) -> About {
    About {
        command_line: "python app.py".to_owned(),
        cgroup: format!("/kubepods/{id}"),
        container: id.to_owned(),
        around: Vec::new(),
    }
}

fn group(own: Labels, container: &str) -> Group {
    Group {
        container: container.into(),
        around: Vec::new(),
        own: Arc::new(own),
        command: "app.py".into(),
    }
}

#[test]
fn a_process_in_a_pod_has_all_labels() {
    let namer = Namer::new(&settings(), "node-1").unwrap();
    let about = in_container("c0ffee");
    let environment = || b"PATH=/bin\0TENANT=a=b\0GIT.SHA=12\0broken\0EMPTY=".to_vec();
    let own = namer.of_process(7, &about, environment);
    let labels = [
        ("app", "shop"),
        ("team", "red"),
        ("app.kubernetes.io/version", "3"),
    ];
    let container = Container {
        id: "c0ffee".to_owned(),
        name: "web".to_owned(),
        image: "shop:3".to_owned(),
        pod: Some(pod(&labels, &[])),
    };
    let labels = namer.of_group(&group(own, "c0ffee"), Some(&container));
    let expected = [
        ("TENANT", "a=b"),
        ("cluster", "west"),
        ("container", "web"),
        ("container_id", "c0ffee"),
        ("image", "shop:3"),
        ("namespace", "shop"),
        ("node", "node-1"),
        ("pid", "7"),
        ("pod", "web-1"),
        ("revision", "12"),
        ("service", "shop"),
        ("team", "red"),
        ("version", "3"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(labels, Labels::from(expected));
}

#[test]
fn the_service_is_what_the_pod_says_else_its_container_else_the_command() {
    let namer = Namer::new(&Settings::default(), "n").unwrap();
    let of = |container: Option<Container>| {
        let labels = namer.of_group(&group(Labels::new(), "c"), container.as_ref());
        labels["service"].clone()
    };
    let container = |pod: Option<Pod>| Container {
        name: "web".to_owned(),
        pod,
        ..Container::default()
    };
    let app = [("app", "shop"), ("app.kubernetes.io/name", "store")];
    let said = [("resource.opentelemetry.io/service.name", "checkout")];
    assert_eq!(of(Some(container(Some(pod(&app, &said))))), "checkout");
    assert_eq!(of(Some(container(Some(pod(&app, &[]))))), "store");
    assert_eq!(of(Some(container(Some(pod(&[], &[]))))), "web");
    assert_eq!(of(Some(container(None))), "web");
    assert_eq!(of(None), "app.py");
}

#[test]
fn a_process_of_the_host_is_labelled_as_one() {
    let namer = Namer::new(&Settings::default(), "n").unwrap();
    let host = |command: &str, cgroup: &str| {
        let about = About {
            command_line: command.to_owned(),
            cgroup: cgroup.to_owned(),
            container: String::new(),
            around: Vec::new(),
        };
        let own = namer.of_process(7, &about, Vec::new);
        let group = Group {
            own: Arc::new(own),
            ..Group::default()
        };
        namer.of_group(&group, None)
    };
    let labels = host("python3 -u /srv/jobs/nightly.py --all", "/user.slice");
    let expected = [
        ("host_process", "true"),
        ("node", "n"),
        ("service", "nightly.py"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(labels, Labels::from(expected));
    let unit = host("python3 x.py", "/system.slice/salt-minion.service");
    assert_eq!(unit["service"], "salt-minion");
}

#[test]
fn a_program_is_its_script_or_its_module() {
    for (command, expected) in [
        ("/usr/bin/python3.11 -m gunicorn app:wsgi", "gunicorn"),
        ("python -X dev -W ignore /a/b.py c", "b.py"),
        ("python -c import x", "python"),
        ("python", "python"),
        ("/opt/uwsgi --ini x", "uwsgi"),
        ("python -", "-"),
        ("", ""),
    ] {
        assert_eq!(program(command), expected, "{command}");
    }
}

#[test]
fn names_become_what_stores_take() {
    assert_eq!(
        label_name("app.kubernetes.io/name"),
        "app_kubernetes_io_name"
    );
    assert_eq!(label_name("2fast"), "_2fast");
    let error = Namer::new(
        &Settings {
            fixed: vec!["west".to_owned()],
            ..Settings::default()
        },
        "n",
    );
    assert!(error.unwrap_err().to_string().contains("--label west"));
    let long = "é".repeat(VALUE_MAX);
    let mut labels = Labels::new();
    put(&mut labels, "x", &long);
    assert!(labels["x"].len() <= VALUE_MAX && labels["x"].ends_with('é'));
}
