//! The Kubernetes API, of which the pods of this node are watched: their statuses have the ids of their
//! containers. Needs to list and to watch pods, and nothing else.

use std::{
    env,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use futures_util::StreamExt as _;
use http_body_util::Limited;
use kube::{
    Api, Client, Config,
    api::ApiResource,
    client::ClientBuilder,
    core::Object,
    runtime::watcher::{self, Event},
};
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use tower::util::MapResponseLayer;

use super::{Container, Pod, Source, asking::Shared};

/// Most bytes of an answer. An object may have 1.5 MB (etcd), and events of a watch are many: it is
/// begun anew when it has had as many.
const ANSWER_MAX: usize = 32 << 20;
/// Pods an answer.
const PAGE: u32 = 20;
/// How long the API may take to list the pods.
const ANSWER: Duration = Duration::from_secs(20);
/// How often a watch is looked after.
const LOOK: Duration = Duration::from_secs(5);
/// A watch without any event, not even one that nothing has happened, has broken. The API ends one
/// after five minutes.
const SILENCE: Duration = Duration::from_secs(600);
/// For how long a container is waited for that no pod has: kubelet tells of a new one after seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Whether this process has what leads to an API: is in a pod, or was given a file that does.
pub(super) fn is_there() -> bool {
    ["KUBERNETES_SERVICE_HOST", "KUBECONFIG"]
        .iter()
        .any(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// Watches the pods of this node, for ever. `others`: why nobody else is asked.
pub(super) async fn ask(shared: &Shared, node: &str, others: &str) {
    ask_as(shared, node, others, client).await;
}

/// Likewise, each time through a client that is made so.
async fn ask_as<F>(shared: &Shared, node: &str, others: &str, client: impl Fn() -> F)
where
    F: Future<Output = Result<Client>>,
{
    let others = match others {
        "" => String::new(),
        _ => format!("; {others}"),
    };
    let said = format!("the Kubernetes API, for the pods of node {node}{others}");
    let who = format!("the Kubernetes API, asked for the pods of node {node},");
    shared.asks(Source::Kubernetes, &who, said, PATIENCE);
    let mut retry = RETRY;
    loop {
        let error = match client().await {
            Ok(client) => watch(shared, client, node, &mut retry).await,
            Err(error) => error,
        };
        shared.failed(format!("{error:#}"));
        sleep(retry).await;
        retry = (retry * 2).min(RETRY_MAX);
    }
}

/// From the file that KUBECONFIG names, else as a pod's service account.
async fn client() -> Result<Client> {
    let mut config = Config::infer().await.context("no way to the API")?;
    config.connect_timeout = Some(ANSWER);
    bounded(config)
}

/// One whose answers have a bound.
fn bounded(config: Config) -> Result<Client> {
    // Refused where somebody has done so before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = ClientBuilder::try_from(config).context("no way to the API")?;
    let bound = MapResponseLayer::new(|answer: http::Response<_>| {
        answer.map(|body| Limited::new(body, ANSWER_MAX))
    });
    Ok(client.with_layer(&bound).build())
}

/// Watches until something is wrong, and tells what.
async fn watch(shared: &Shared, client: Client, node: &str, retry: &mut Duration) -> anyhow::Error {
    let pods: Api<Slim> = Api::all_with(client, &resource());
    let config = watcher::Config::default()
        .fields(&format!("spec.nodeName={node}"))
        .page_size(PAGE);
    let mut events = pin!(watcher::watcher(pods, config));
    let mut began = Instant::now();
    let mut heard = began;
    let mut pods_here = 0;
    let mut is_listed = false;
    loop {
        match timeout(LOOK, events.next()).await {
            Ok(Some(Ok(event))) => {
                *retry = RETRY;
                heard = Instant::now();
                match event {
                    Event::Init => {
                        began = Instant::now();
                        is_listed = false;
                        pods_here = 0;
                    }
                    Event::InitDone => {
                        is_listed = true;
                        shared.learn(Vec::new(), Some(began));
                        if pods_here == 0 {
                            shared.doubts("it has no pods on such a node: see --node".to_owned());
                        }
                    }
                    Event::InitApply(pod) | Event::Apply(pod) | Event::Delete(pod) => {
                        pods_here += 1;
                        let all_since = is_listed.then(Instant::now);
                        shared.learn(containers(pod), all_since);
                    }
                }
            }
            Ok(Some(Err(error))) => return with_remedy(error),
            Ok(None) => return anyhow!("the watch has ended"),
            Err(_) => {
                let limit = if is_listed { SILENCE } else { ANSWER };
                if heard.elapsed() >= limit {
                    return anyhow!("no answer within {} s", limit.as_secs());
                }
                // That nothing is told is an answer, too.
                if is_listed {
                    shared.answered(Instant::now());
                }
            }
        }
    }
}

/// What the API says, and what to do where that is known.
fn with_remedy(error: watcher::Error) -> anyhow::Error {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    match &error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status)) => {
            let remedy = match status.code {
                401 => ": the token of this pod's service account is not taken",
                403 => ": let this pod's service account list and watch pods",
                _ => "",
            };
            anyhow!("the API says: {}{remedy}", status.message)
        }
        _ => error.into(),
    }
}

fn resource() -> ApiResource {
    ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        plural: "pods".to_owned(),
    }
}

/// A pod, as far as it is read here.
type Slim = Object<Spec, Status>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    containers: Option<Vec<Image>>,
    init_containers: Option<Vec<Image>>,
    ephemeral_containers: Option<Vec<Image>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Image {
    name: String,
    image: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    image: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    /// What it is now and what it was before it was started again.
    state: Option<State>,
    last_state: Option<State>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Terminated {
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

/// The containers of the pod in these bytes.
pub(super) fn read(bytes: &[u8]) -> Vec<Container> {
    serde_json::from_slice(bytes).map_or_else(|_| Vec::new(), containers)
}

/// The containers of a pod that have been started.
fn containers(pod: Slim) -> Vec<Container> {
    let images: Vec<Image> = [
        pod.spec.containers,
        pod.spec.init_containers,
        pod.spec.ephemeral_containers,
    ]
    .into_iter()
    .flatten()
    .flatten()
    .collect();
    let status = pod.status.unwrap_or_default();
    let statuses = [
        status.container_statuses,
        status.init_container_statuses,
        status.ephemeral_container_statuses,
    ];
    let metadata = pod.metadata;
    let pod = Pod {
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        uid: metadata.uid.unwrap_or_default(),
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
    };
    let mut containers = Vec::new();
    for status in statuses.into_iter().flatten().flatten() {
        let ended = [status.last_state, status.state].into_iter().flatten();
        let ended = ended.filter_map(|state| state.terminated?.container_id);
        let wanted = images.iter().find(|image| image.name == status.name);
        // The status may have an image's id alone.
        let image = match wanted {
            Some(wanted) if status.image.is_empty() || status.image.starts_with("sha256:") => {
                &wanted.image
            }
            _ => &status.image,
        };
        for id in ended.chain(status.container_id) {
            // containerd://ID, cri-o://ID, docker://ID
            let Some((_, id)) = id.split_once("://").filter(|(_, id)| !id.is_empty()) else {
                continue;
            };
            let container = Container {
                id: id.to_owned(),
                name: status.name.clone(),
                image: image.clone(),
                pod: Some(pod.clone()),
            };
            containers.push(container.bounded());
        }
    }
    containers
}

#[cfg(test)]
mod tests;
