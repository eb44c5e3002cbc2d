//! A real containerd, started in a folder of the test's own, with pods and containers in it that run
//! Pythons of Debian sid, made and removed through its CRI as kubelet does. When it is dropped all of
//! them end: it runs in namespaces of its own.

mod image;
pub mod messages;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::mem::zeroed;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use prost::Message;
use pyebpf::agent::pods::cri::messages::ListImagesResponse;
use pyebpf::target::Cgroups;
use tempfile::TempDir;
use tokio::runtime::{self, Runtime};
use tonic::{
    Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel,
    transport::Endpoint,
};
use tonic_prost::ProstCodec;

use self::messages as cri;
use crate::pythons::cache;
use crate::start::find;
use crate::workload::folder;

/// The image that all containers are of: Pythons, and what they need.
pub const IMAGE: &str = "docker.io/pyebpf/python:test";
/// Where containers find the workloads of `python/`.
pub const SCRIPTS: &str = "/mnt";
/// How long it may take to start, on a machine at work.
const START: Duration = Duration::from_secs(60);
/// A file system in memory, and how many bytes have to be free there: twice what is used.
const MEMORY: &str = "/dev/shm";
const SPACE: u64 = 1 << 30;
/// `NamespaceMode` of CRI.
const CONTAINER: i32 = 1;
const NODE: i32 = 2;

/// A containerd that runs. Drop it after its pods.
#[derive(Debug)]
pub struct Containerd {
    process: Child,
    runtime: Runtime,
    client: RefCell<Grpc<Channel>>,
    /// The id of the image.
    image: String,
    /// The control group of all pods.
    group: String,
    pods: Cell<u32>,
    // Dropped last.
    folder: TempDir,
}

impl Containerd {
    /// Why there can be none on this machine, if so.
    pub fn lacks() -> Option<String> {
        let missing = ["unshare", "runc", "tar", "sha256sum"].map(|name| (name, find(name)));
        if let Some((program, _)) = missing.iter().find(|(_, found)| found.is_none()) {
            return Some(format!("there is no {program}"));
        }
        let Some(root) = root() else {
            return Some("there is no root folder of Debian sid".to_owned());
        };
        match programs() {
            Some(programs) if programs.join("containerd").is_file() => image::lacks(&root),
            _ => Some("there is no containerd: `cargo xtask setup --tests` unpacks one".to_owned()),
        }
    }

    /// Starts one that has the image [`IMAGE`].
    ///
    /// # Errors
    /// When it does not answer, with the end of what it logs.
    pub fn start() -> Result<Containerd> {
        // In memory: it syncs files to disk, which takes minutes where others write there.
        let folder = match free(MEMORY) {
            SPACE.. => TempDir::new_in(MEMORY)?,
            _ => TempDir::new()?,
        };
        let started = Containerd::begin(folder.path());
        let (process, runtime, client) = started?;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut containerd = Containerd {
            process,
            runtime,
            client: RefCell::new(client),
            image: String::new(),
            group: format!("pyebpf-test-kubepods-{}-{number}", std::process::id()),
            pods: Cell::new(0),
            folder,
        };
        let image = containerd.wait().and_then(|()| containerd.import());
        containerd.image =
            image.with_context(|| format!("containerd says: {}", containerd.log()))?;
        Ok(containerd)
    }

    fn begin(folder: &Path) -> Result<(Child, Runtime, Grpc<Channel>)> {
        let config = folder.join("config.toml");
        fs::write(&config, settings(folder))?;
        let log = File::create(folder.join("log"))?;
        let programs = programs().context("there is no containerd")?;
        let path = std::env::var("PATH").unwrap_or_default();
        // All that it starts ends with the first process of its PID namespace, and so do its mounts.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.arg(programs.join("containerd")).arg("--config");
        command
            .arg(config)
            .env("PATH", format!("{}:{path}", programs.display()));
        command.stdin(Stdio::null()).stdout(log.try_clone()?);
        command.stderr(log);
        // SAFETY: prctl with PR_SET_PDEATHSIG takes no pointers, and is safe after a fork.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let process = command.spawn().context("cannot start containerd")?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = {
            let _entered = runtime.enter();
            let socket = folder.join("containerd.sock");
            let address = format!("unix://{}", socket.display());
            Grpc::new(Endpoint::from_shared(address)?.connect_lazy())
        };
        Ok((process, runtime, client))
    }

    /// Waits until its CRI answers.
    fn wait(&self) -> Result<()> {
        let end = Instant::now() + START;
        loop {
            let answer = self.ask::<_, cri::Empty>("RuntimeService/Version", cri::Empty {});
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Gives it the image; the id that it has there.
    fn import(&self) -> Result<String> {
        let root = root().context("there is no root folder of Debian sid")?;
        let archive = self.folder.path().join("image.tar");
        image::make(IMAGE, &root, &archive)?;
        let ctr = programs().context("there is no containerd")?.join("ctr");
        let mut import = Command::new(ctr);
        import.arg("--address").arg(self.socket());
        import.args(["--namespace", "k8s.io", "images", "import"]);
        image::run(import.arg(&archive))?;
        fs::remove_file(archive)?;
        let images: ListImagesResponse = self.ask("ImageService/ListImages", cri::Empty {})?;
        let mut images = images.images.into_iter();
        let own = images.find(|image| image.repo_tags.iter().any(|name| name == IMAGE));
        Ok(own.context("CRI does not know the image")?.id)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("containerd.sock")
    }

    /// Starts a pod with these labels and annotations, in the network of the host.
    ///
    /// # Errors
    /// When containerd refuses.
    pub fn pod(
        &self,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
        annotations: &[(&str, &str)],
    ) -> Result<Pod<'_>> {
        self.pods.set(self.pods.get() + 1);
        let uid = format!(
            "{:08x}-0000-4000-8000-{:012x}",
            std::process::id(),
            self.pods.get()
        );
        let own = [
            ("io.kubernetes.pod.name", name),
            ("io.kubernetes.pod.namespace", namespace),
            ("io.kubernetes.pod.uid", &uid),
        ];
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                uid: uid.clone(),
            }),
            labels: texts(&[&own, labels].concat()),
            annotations: texts(annotations),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/besteffort/pod{uid}", self.group),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(NAMESPACES),
                }),
            }),
        };
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
        };
        let answer: cri::PodSandboxId = self.ask("RuntimeService/RunPodSandbox", request)?;
        Ok(Pod {
            containerd: self,
            id: answer.pod_sandbox_id,
            config,
        })
    }

    fn ask<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.{method}"))?;
        let mut client = self.client.borrow_mut();
        let answer = self.runtime.block_on(async {
            client.ready().await?;
            let mut request = Request::new(request);
            request.set_timeout(START);
            let codec = ProstCodec::<Q, A>::default();
            Ok::<_, anyhow::Error>(client.unary(request, path, codec).await?)
        });
        Ok(answer.with_context(|| method.to_owned())?.into_inner())
    }

    /// The end of what it has logged.
    fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // What it started is killed by the kernel, soon.
        let is_gone = (0..200).any(|_| {
            sleep(Duration::from_millis(10));
            let groups = fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
            let own = groups.filter_map(|entry| Some(entry.ok()?.path().join(&self.group)));
            let own = own.chain([Path::new("/sys/fs/cgroup").join(&self.group)]);
            { own }.all(|path| remove_groups(&path))
        });
        if !is_gone {
            eprintln!("control groups named {} are left behind", self.group);
        }
    }
}

/// Removes a control group and those below it; whether none is left.
fn remove_groups(path: &Path) -> bool {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    fs::remove_dir(path).is_ok() || !path.exists()
}

/// A pod that runs. Dropping it ends and removes it and its containers.
#[derive(Debug)]
pub struct Pod<'a> {
    containerd: &'a Containerd,
    /// The id of its sandbox.
    pub id: String,
    config: cri::PodSandboxConfig,
}

impl<'a> Pod<'a> {
    /// Starts a container that runs this command, with these environment variables; workloads are in
    /// [`SCRIPTS`].
    ///
    /// # Errors
    /// When containerd refuses.
    pub fn container(
        &self,
        name: &str,
        command: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Container<'a>> {
        let mut labels = self.config.labels.clone();
        labels.insert("io.kubernetes.container.name".to_owned(), name.to_owned());
        let envs = variables.iter().map(|(key, value)| cri::KeyValue {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        });
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: name.to_owned(),
            }),
            // kubelet has looked for the id before.
            image: Some(cri::ImageSpec {
                image: self.containerd.image.clone(),
                ..cri::ImageSpec::default()
            }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            envs: envs.collect(),
            mounts: vec![cri::Mount {
                container_path: SCRIPTS.to_owned(),
                host_path: folder().display().to_string(),
                readonly: true,
            }],
            labels,
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(NAMESPACES),
                }),
            }),
        };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let id: cri::ContainerId = self
            .containerd
            .ask("RuntimeService/CreateContainer", request)?;
        let container = Container {
            containerd: self.containerd,
            id: id.container_id.clone(),
        };
        let _: cri::Empty = self.containerd.ask("RuntimeService/StartContainer", id)?;
        Ok(container)
    }

    /// The uid that it was given.
    pub fn uid(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |pod| &pod.uid)
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        for method in [
            "RuntimeService/StopPodSandbox",
            "RuntimeService/RemovePodSandbox",
        ] {
            let request = cri::PodSandboxId {
                pod_sandbox_id: self.id.clone(),
            };
            if let Err(error) = self.containerd.ask::<_, cri::Empty>(method, request) {
                eprintln!("pod {} may be left behind: {error:#}", self.id);
            }
        }
    }
}

/// A container that was started. Its pod removes it, or [`remove`](Self::remove).
#[derive(Debug)]
pub struct Container<'a> {
    containerd: &'a Containerd,
    pub id: String,
}

impl Container<'_> {
    /// A process in it, by its id on the host.
    ///
    /// # Errors
    /// When none is seen for a while.
    pub fn pid(&self) -> Result<u32> {
        for _ in 0..200 {
            let pids = fs::read_dir("/proc")?.flatten();
            let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            if let Some(pid) = pids.find(|&pid| {
                Cgroups::of(pid).is_some_and(|groups| groups.container() == Some(&self.id))
            }) {
                return Ok(pid);
            }
            sleep(Duration::from_millis(20));
        }
        anyhow::bail!("no process is in container {}", self.id)
    }

    /// Kills and removes it.
    ///
    /// # Errors
    /// When containerd refuses.
    pub fn remove(self) -> Result<()> {
        let request = cri::ContainerId {
            container_id: self.id,
        };
        // Without a timeout it is killed at once.
        let _: cri::Empty = self
            .containerd
            .ask("RuntimeService/StopContainer", request.clone())?;
        let _: cri::Empty = self
            .containerd
            .ask("RuntimeService/RemoveContainer", request)?;
        Ok(())
    }
}

/// As kubelet has them for a pod with `hostNetwork`, which needs no network plugin.
const NAMESPACES: cri::NamespaceOption = cri::NamespaceOption {
    network: NODE,
    pid: CONTAINER,
};

fn texts(texts: &[(&str, &str)]) -> BTreeMap<String, String> {
    let texts = texts.iter();
    texts
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// How many bytes are free on the file system of this folder.
fn free(folder: &str) -> u64 {
    let Ok(path) = CString::new(folder) else {
        return 0;
    };
    // SAFETY: a `statvfs` is numbers, for which zeros are values.
    let mut found: libc::statvfs = unsafe { zeroed() };
    // SAFETY: a string that ends in NUL, and room for the answer.
    match unsafe { libc::statvfs(path.as_ptr(), &mut found) } {
        0 => found.f_bavail.saturating_mul(found.f_frsize),
        _ => 0,
    }
}

fn root() -> Option<PathBuf> {
    Some(cache()?.join("roots/sid")).filter(|root| root.is_dir())
}

fn programs() -> Option<PathBuf> {
    Some(cache()?.join("containerd/usr/bin"))
}

/// The settings of a containerd that keeps everything in this folder. `restrict_oom_score_adj`: one
/// that may not lower its own score may not lower those of containers.
fn settings(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/run"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{folder}/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
"#
    )
}
