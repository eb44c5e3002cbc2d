//! A node's container runtime, asked through its socket by the container runtime interface (CRI), v1:
//! all containers and pods that it has, with their names, labels and images. Changes nothing there.

pub mod messages;

use std::{collections::BTreeMap, mem::take, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use prost::Message;
use rustc_hash::FxHashMap;
use tokio::time::timeout;
use tonic::{
    Code, Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use self::messages as cri;
use super::{Container, Pod};

/// Where runtimes have their sockets: containerd, K3s, k0s, CRI-O, cri-dockerd.
pub(super) const SOCKETS: [&str; 5] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
];
/// How long a runtime may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Most bytes of an answer, as for kubelet (kubernetes, `staging/src/k8s.io/cri-client/pkg/util`).
const ANSWER_MAX: usize = 16 << 20;
/// The state of a container that runs (`CONTAINER_RUNNING`).
const RUNNING: i32 = 1;

/// A connection to a runtime. It is made anew at the next request after it breaks.
#[derive(Debug)]
pub(super) struct Runtime {
    grpc: Grpc<Channel>,
    /// Its name and version.
    pub(super) name: String,
    /// Names of images by their ids. One that has none is its own.
    images: FxHashMap<String, String>,
}

impl Runtime {
    /// The runtime that has this socket, and answers.
    ///
    /// # Errors
    /// When there is no socket, when it does not answer in time, or does not speak CRI v1.
    pub(super) async fn at(socket: &Path) -> Result<Runtime> {
        match socket.try_exists() {
            Ok(true) => {}
            Ok(false) => bail!("not there"),
            Err(error) => return Err(error.into()),
        }
        let address = socket.to_str().context("its name is no text")?;
        let channel = Endpoint::from_shared(format!("unix://{address}"))?
            .connect_timeout(ANSWER)
            .connect_lazy();
        let mut runtime = Runtime {
            grpc: Grpc::new(channel).max_decoding_message_size(ANSWER_MAX),
            name: String::new(),
            images: FxHashMap::default(),
        };
        let request = cri::VersionRequest::default();
        let version: cri::VersionResponse =
            runtime.ask("RuntimeService", "Version", request).await?;
        runtime.name = format!("{} {}", version.runtime_name, version.runtime_version);
        Ok(runtime)
    }

    /// All containers that it has, sandboxes included (they have no names); those that run come last.
    ///
    /// # Errors
    /// When it does not answer in time, or with what can't be read.
    pub(super) async fn list(&mut self) -> Result<Vec<Container>> {
        let all = cri::ListRequest {};
        let listed: cri::ListContainersResponse =
            self.ask("RuntimeService", "ListContainers", all).await?;
        // After the containers: so that a container's sandbox is there, too.
        let sandboxes: cri::ListPodSandboxResponse =
            self.ask("RuntimeService", "ListPodSandbox", all).await?;
        let mut containers = listed.containers;
        containers.sort_by_key(|container| container.state == RUNNING);
        let ids = containers.iter().filter_map(image_id);
        if { ids }.any(|id| !self.images.contains_key(id)) {
            self.list_images(&containers).await?;
        }
        Ok(joined(containers, sandboxes.items, &self.images))
    }

    /// Gets the names of images that containers have by their ids alone.
    async fn list_images(&mut self, containers: &[cri::Container]) -> Result<()> {
        let all = cri::ListRequest {};
        let listed: cri::ListImagesResponse = self.ask("ImageService", "ListImages", all).await?;
        // What has gone is asked for once.
        let ids = containers.iter().filter_map(image_id);
        self.images = ids.map(|id| (id.to_owned(), id.to_owned())).collect();
        for image in listed.images {
            let mut names = image.repo_tags.into_iter().chain(image.repo_digests);
            if let (Some(known), Some(name)) = (self.images.get_mut(&image.id), names.next()) {
                *known = name;
            }
        }
        Ok(())
    }

    async fn ask<Q, A>(&mut self, service: &str, method: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.{service}/{method}"))?;
        let asked = async {
            self.grpc
                .ready()
                .await
                .map_err(|error| anyhow!("{}", causes(&error)))?;
            let codec = ProstCodec::<Q, A>::default();
            let answer = self.grpc.unary(Request::new(request), path, codec).await;
            answer.map_err(|status| match status.code() {
                Code::Unimplemented => anyhow!("it does not speak CRI v1 ({})", status.message()),
                _ => anyhow!("{}", causes(&status)),
            })
        };
        let answer = timeout(ANSWER, asked).await;
        let seconds = ANSWER.as_secs();
        let answer = answer.unwrap_or_else(|_| bail!("it does not answer within {seconds} s"));
        Ok(answer.with_context(|| method.to_owned())?.into_inner())
    }
}

/// An error with all that has caused it: tonic's own say little.
fn causes(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_said = cause.to_string();
        if !said.contains(&cause_said) {
            said = format!("{said}: {cause_said}");
        }
        next = cause.source();
    }
    said
}

/// The id of a container's image, where it has no name with it.
fn image_id(container: &cri::Container) -> Option<&str> {
    let image = container.image.as_ref()?;
    let is_named = !image.user_specified_image.is_empty() || !is_image_id(&image.image);
    (!is_named).then_some(&*image.image)
}

/// Whether this is what containerd (with `sha256:`) and CRI-O (without) call an image that has an id
/// alone.
fn is_image_id(image: &str) -> bool {
    let digits = image.strip_prefix("sha256:").unwrap_or(image);
    digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// Containers with the pods of their sandboxes, and the sandboxes, before them.
fn joined(
    containers: Vec<cri::Container>,
    sandboxes: Vec<cri::PodSandbox>,
    images: &FxHashMap<String, String>,
) -> Vec<Container> {
    let mut joined = Vec::with_capacity(containers.len() + sandboxes.len());
    let mut pods = FxHashMap::default();
    for sandbox in sandboxes {
        let metadata = sandbox.metadata.unwrap_or_default();
        let pause = Container {
            id: sandbox.id.clone(),
            pod: Some(Pod {
                namespace: metadata.namespace,
                name: metadata.name,
                uid: metadata.uid,
                labels: sandbox.labels,
                annotations: sandbox.annotations,
            }),
            ..Container::default()
        };
        let pause = pause.bounded();
        pods.insert(sandbox.id, pause.pod.clone());
        joined.push(pause);
    }
    joined.extend(containers.into_iter().map(|mut container| {
        let id = image_id(&container).map(str::to_owned);
        let image = container.image.take().unwrap_or_default();
        let image = match id {
            Some(id) => images.get(&id).cloned().unwrap_or(id),
            None if image.user_specified_image.is_empty() => image.image,
            None => image.user_specified_image,
        };
        let metadata = container.metadata.take().unwrap_or_default();
        let own = Container {
            id: container.id,
            name: metadata.name,
            image,
            // kubelet gives every container its pod's name, too.
            pod: from_labels(&mut container.labels),
        };
        let mut own = own.bounded();
        if let Some(pod) = pods.get(&container.pod_sandbox_id) {
            own.pod.clone_from(pod);
        }
        own
    }));
    joined
}

/// The containers in these bytes, as if they were both answers.
pub(super) fn listed(bytes: &[u8]) -> Vec<Container> {
    let containers = cri::ListContainersResponse::decode(bytes).unwrap_or_default();
    let sandboxes = cri::ListPodSandboxResponse::decode(bytes).unwrap_or_default();
    joined(
        containers.containers,
        sandboxes.items,
        &FxHashMap::default(),
    )
}

/// The pod that a container's labels name (kubernetes, `pkg/kubelet/types/labels.go`).
fn from_labels(labels: &mut BTreeMap<String, String>) -> Option<Pod> {
    let mut label = |name: &str| {
        let label = labels.get_mut(&format!("io.kubernetes.pod.{name}"));
        label.map(take)
    };
    Some(Pod {
        name: label("name")?,
        namespace: label("namespace")?,
        uid: label("uid").unwrap_or_default(),
        ..Pod::default()
    })
}

#[cfg(test)]
pub(super) mod fake;
#[cfg(test)]
mod tests;
