//! Whose the containers are, of a real containerd: pods and containers come and go, and each is named.

use std::path::Path;
use std::sync::mpsc;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pyebpf::agent::pods::{self, Container, Known, Pods, Source};
use pyebpf::target::Cgroups;
use pyebpf_tests::containerd::{Containerd, IMAGE};
use pyebpf_tests::{Parts, can_profile, skip};
use tokio::sync::oneshot;

/// A Python that waits.
const WAITS: [&str; 3] = ["/usr/bin/python3.13", "-c", "import time; time.sleep(600)"];

/// `Pods` on a thread of their own, as the agent has them.
struct Talking {
    pods: Pods,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Talking {
    fn to(socket: &Path) -> Result<Talking> {
        let settings = pods::Settings {
            source: Source::Auto,
            cri_socket: Some(socket.to_owned()),
        };
        let (sender, receiver) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build()?;
        let thread = spawn(move || {
            runtime.block_on(async {
                let pods = Pods::start(&settings, "node");
                if let Ok(pods) = &pods {
                    pods.chosen().await;
                }
                // Nobody waits for them when the test has failed.
                let _ = sender.send(pods);
                let _ = ended.await;
            });
        });
        Ok(Talking {
            pods: receiver.recv().context("the thread has ended")??,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// What is known of the container that this process is in, within a few seconds.
    fn whose(&self, pid: u32) -> Result<Container> {
        let groups = Cgroups::of(pid).context("the process has ended")?;
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match self.pods.of_groups(&groups) {
                Some(Known::Is(container)) => return Ok((*container).clone()),
                Some(Known::NotYet) => {
                    ensure!(Instant::now() < end, "{groups:?}: {}", self.pods.source());
                    sleep(Duration::from_millis(20));
                }
                other => bail!("{groups:?}: {other:?}"),
            }
        }
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Runs a test with a containerd and `Pods` that ask it.
fn with_containerd(test: &str, body: impl FnOnce(&Containerd, &Talking) -> Result<()>) {
    if !can_profile(test) {
        return;
    }
    if let Some(why) = Containerd::lacks() {
        return skip(test, &why);
    }
    let run = || {
        let containerd = Containerd::start()?;
        let talking = Talking::to(&containerd.socket())?;
        body(&containerd, &talking)
    };
    let mut parts = Parts::default();
    parts.note(test, run());
    parts.finish();
}

#[test]
fn containers_of_a_pod_are_named() {
    const TEST: &str = "containers_of_a_pod_are_named";
    with_containerd(TEST, |containerd, talking| {
        let source = talking.pods.source();
        ensure!(source.source == Source::Cri, "{source}");
        ensure!(source.said.contains("containerd 1."), "{source}");

        let labels = [("app", "web"), ("tier", "front")];
        let annotations = [("pyebpf/profile", "true")];
        let pod = containerd.pod("shop", "web-0", &labels, &annotations)?;
        let web = pod.container("web", &WAITS, &[])?;
        let worker = pod.container("worker", &WAITS, &[])?;
        for (container, name) in [(&web, "web"), (&worker, "worker")] {
            let known = talking.whose(container.pid()?)?;
            ensure!(known.id == container.id, "{known:?}");
            ensure!((&*known.name, &*known.image) == (name, IMAGE), "{known:?}");
            let of = known.pod.context("it has a pod")?;
            ensure!((&*of.namespace, &*of.name) == ("shop", "web-0"), "{of:?}");
            ensure!(of.uid == pod.uid(), "{of:?}");
            let has = |key: &str| of.labels.get(key).map(String::as_str);
            ensure!(has("app") == Some("web") && of.labels.len() == 2, "{of:?}");
            ensure!(of.annotations["pyebpf/profile"] == "true", "{of:?}");
        }
        // The sandbox's own process.
        let Known::Is(pause) = talking.pods.of(&pod.id) else {
            bail!("the sandbox is not known");
        };
        ensure!(pause.pod.as_ref().is_some_and(|pod| pod.name == "web-0"));

        // What is gone stays known.
        let id = worker.id.clone();
        worker.remove()?;
        ensure!(matches!(talking.pods.of(&id), Known::Is(_)));
        Ok(())
    });
}

#[test]
fn no_container_of_many_that_come_and_go_is_missed() {
    const TEST: &str = "no_container_of_many_that_come_and_go_is_missed";
    const CONTAINERS: u32 = 50;
    with_containerd(TEST, |containerd, talking| {
        let pod = containerd.pod("jobs", "batch", &[], &[])?;
        let began = Instant::now();
        for number in 0..CONTAINERS {
            let name = format!("job-{number}");
            let container = pod.container(&name, &WAITS, &[])?;
            let known = talking.whose(container.pid()?)?;
            ensure!(known.name == name, "{known:?}");
            container.remove()?;
        }
        let source = talking.pods.source();
        let took = began.elapsed().as_secs();
        eprintln!(
            "{CONTAINERS} containers in {took} s, {} answers",
            source.answers
        );
        ensure!(source.failures == 0, "{source}");
        ensure!(source.containers > CONTAINERS as usize, "{source:?}");
        Ok(())
    });
}
