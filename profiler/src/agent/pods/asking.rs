//! Asks whose the containers are that the loop meets: chooses whom to ask, asks at once for an id that
//! is new, for many with one request, and else seldom. The loop itself never waits.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::{
    Asked, Container, Known, Settings, Source,
    cri::{Runtime, SOCKETS},
    cut, kubernetes,
    table::Table,
};
use crate::target::Cgroups;

/// Least time between two requests for all containers, and how often the time that one took, so that
/// asking takes a small part of a CPU however many containers come and go.
const GAP: Duration = Duration::from_millis(250);
const GAP_BY_COST: u32 = 20;
/// How often all containers are listed while every one is known.
const REFRESH: Duration = Duration::from_secs(300);
/// After how long a runtime is asked again that did not answer; twice that after each failure.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// For how long a runtime is asked for a container that its answers do not have. It knows of one
/// before that starts; of a sandbox, when its network is ready.
const CRI_PATIENCE: Duration = Duration::from_secs(15);
/// How long each of several sockets may take to answer at the start.
const PROBE: Duration = Duration::from_secs(2);

/// Whose each container is. Clones are the same.
#[derive(Clone, Debug)]
pub struct Pods {
    shared: Arc<Shared>,
}

/// What the one who asks and the one who wants to know have in common.
#[derive(Debug)]
pub(super) struct Shared {
    table: Mutex<Table>,
    /// There is an id that is not known.
    wanted: Notify,
    asked: watch::Sender<Asked>,
}

impl Pods {
    /// Begins to ask, as the settings say, on the current runtime of tokio, until that ends. `node` is
    /// the name of this node in Kubernetes.
    ///
    /// # Errors
    /// When the settings contradict each other.
    pub fn start(settings: &Settings, node: &str) -> Result<Pods> {
        let pods = Pods::idle();
        let sockets = match &settings.cri_socket {
            Some(socket) => vec![socket.clone()],
            None => SOCKETS.map(PathBuf::from).to_vec(),
        };
        let place = Place {
            source: settings.source,
            sockets,
            node: node.to_owned(),
            is_in_kubernetes: kubernetes::is_there(),
        };
        tokio::spawn(place.ask(Arc::clone(&pods.shared)));
        Ok(pods)
    }

    /// One of which nobody answers what it asks for.
    pub(super) fn idle() -> Pods {
        let asked = Asked {
            said: "looking for who knows whose containers these are".to_owned(),
            ..Asked::default()
        };
        let shared = Shared {
            table: Mutex::default(),
            wanted: Notify::new(),
            asked: watch::Sender::new(asked),
        };
        Pods {
            shared: Arc::new(shared),
        }
    }

    /// One that has nobody to ask.
    #[cfg(test)]
    pub(crate) fn nobody() -> Pods {
        let pods = Pods::idle();
        pods.shared.asks_nobody("this is a test");
        pods
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// What is known of the container with this id. Never waits; asks, when it is new.
    pub fn of(&self, id: &str) -> Known {
        let (known, is_new) = self.shared.table().of(id, Instant::now());
        if is_new {
            self.shared.wanted.notify_one();
        }
        known
    }

    /// What is known of the innermost container in these groups that is known: in a pod there may be
    /// containers of which only those know that are in it. `None` when they are in none.
    pub fn of_groups(&self, groups: &Cgroups) -> Option<Known> {
        let innermost = groups.container()?;
        Some(self.of_nested(innermost, groups.containers()))
    }

    /// What is known of this container, or else of one of those that are around it: where nodes are
    /// containers themselves, what runs in one of a pod may be known by either.
    pub fn of_nested<'a>(&self, innermost: &str, all: impl Iterator<Item = &'a str>) -> Known {
        let mut best = self.of(innermost);
        for id in all {
            if matches!(best, Known::Is(_)) {
                break;
            }
            match self.of(id) {
                Known::Never(_) => {}
                known => best = known,
            }
        }
        best
    }

    /// Who is asked, and how that goes.
    pub fn source(&self) -> Asked {
        let mut asked = self.shared.asked.borrow().clone();
        asked.containers = self.shared.table().len();
        asked
    }

    /// Likewise, when it has been decided: after a few seconds at most.
    pub async fn chosen(&self) -> Asked {
        let mut asked = self.shared.asked.subscribe();
        // The sender is in `self`.
        let _ = asked.wait_for(|asked| asked.source != Source::Auto).await;
        self.source()
    }
}

impl Shared {
    /// Held for as long as a few thousand containers are put into it, at most.
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing is left half-done where something could panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is asked from now on. `patience`: for how long, for what its answers do not have.
    pub(super) fn asks(&self, source: Source, who: &str, said: String, patience: Duration) {
        self.table().asks(who.to_owned(), patience);
        self.asked.send_modify(|asked| {
            asked.source = source;
            asked.said = said;
            asked.failing = None;
        });
    }

    /// That nobody can be asked, for this reason.
    fn asks_nobody(&self, why: &str) {
        self.table().asks_nobody(why);
        self.asked.send_modify(|asked| {
            asked.source = Source::None;
            asked.said = format!("nobody: {why}");
            asked.failing = None;
        });
    }

    /// Takes in an answer. `since`: when all was asked for, where all of it is in the answer.
    pub(super) fn learn(&self, containers: Vec<Container>, since: Option<Instant>) {
        let mut table = self.table();
        table.learn(containers);
        if let Some(since) = since {
            table.answered(since);
        }
        drop(table);
        self.asked.send_modify(|asked| {
            asked.answers += 1;
            asked.failing = None;
        });
    }

    /// Notes that by now everything has been told.
    pub(super) fn answered(&self, by: Instant) {
        self.table().answered(by);
    }

    /// Notes that an answer can't be the right one.
    pub(super) fn doubts(&self, why: String) {
        self.asked.send_modify(|asked| asked.failing = Some(why));
    }

    /// Notes that there was no answer.
    pub(super) fn failed(&self, error: String) {
        self.asked.send_modify(|asked| {
            asked.failures += 1;
            asked.failing = Some(cut(error));
        });
    }
}

/// Where somebody may be who can be asked.
#[derive(Debug)]
struct Place {
    source: Source,
    sockets: Vec<PathBuf>,
    node: String,
    /// Whether there is what leads to an API.
    is_in_kubernetes: bool,
}

impl Place {
    async fn ask(self, shared: Arc<Shared>) {
        match self.source {
            Source::None => return shared.asks_nobody("the settings say so"),
            Source::Kubernetes => return kubernetes::ask(&shared, &self.node, "").await,
            Source::Auto | Source::Cri => {}
        }
        let (runtime, socket, others) = match self.runtime().await {
            Ok(found) => found,
            Err(why) => tokio::select! {
                () = self.ask_others(&shared, &why) => return,
                // It may start later than the agent, and knows of containers earlier than others.
                found = self.later() => found,
            },
        };
        let who = format!("{} at {}", runtime.name, socket.display());
        let said = format!("the container runtime, {who}{others}");
        shared.asks(Source::Cri, &who, said, CRI_PATIENCE);
        ask_runtime(&shared, runtime, socket).await;
    }

    /// For as long as no runtime answers; `why` that is so.
    async fn ask_others(&self, shared: &Shared, why: &str) {
        match self.source {
            Source::Auto if self.is_in_kubernetes => {
                return kubernetes::ask(shared, &self.node, why).await;
            }
            Source::Auto => shared.asks_nobody(&format!(
                "{why}; no Kubernetes API: KUBERNETES_SERVICE_HOST and KUBECONFIG are not set"
            )),
            _ => shared.asks_nobody(why),
        }
        std::future::pending().await
    }

    /// The first runtime that answers from now on.
    async fn later(&self) -> (Runtime, &Path, String) {
        let mut wait = RETRY;
        loop {
            sleep(wait).await;
            if let Ok(found) = self.runtime().await {
                return found;
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// The first runtime that answers, its socket, and what is wrong with those before it; or what is
    /// wrong with all of them.
    async fn runtime(&self) -> Result<(Runtime, &Path, String), String> {
        let (mut missing, mut wrong) = (Vec::new(), Vec::new());
        for socket in &self.sockets {
            let found = timeout(PROBE, Runtime::at(socket)).await;
            let why = match found {
                // Those that are not there are no news.
                Ok(Ok(runtime)) => return Ok((runtime, socket, wrong.concat())),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => format!("it does not answer within {} s", PROBE.as_secs()),
            };
            match socket.exists() {
                true => wrong.push(format!("; {}: {why}", socket.display())),
                false => missing.push(socket.display().to_string()),
            }
        }
        let missing = match &*missing.join(", ") {
            "" => String::new(),
            missing => format!("; not there: {missing}"),
        };
        Err(format!("no container runtime{}{missing}", wrong.concat()))
    }
}

/// Asks this runtime, for ever.
async fn ask_runtime(shared: &Shared, mut runtime: Runtime, socket: &Path) {
    let mut retry = RETRY;
    loop {
        let began = Instant::now();
        match runtime.list().await {
            Ok(containers) => {
                shared.learn(containers, Some(began));
                retry = RETRY;
                sleep(GAP.max(began.elapsed() * GAP_BY_COST)).await;
                wanted(shared, began + REFRESH).await;
            }
            Err(error) => {
                shared.failed(format!("{error:#}"));
                sleep(retry).await;
                retry = (retry * 2).min(RETRY_MAX);
                // It may have been started anew, as another version.
                if let Ok(anew) = Runtime::at(socket).await {
                    runtime = anew;
                }
            }
        }
    }
}

/// Waits until there is something to ask for, at the latest until then.
async fn wanted(shared: &Shared, latest: Instant) {
    loop {
        let due = shared.table().due().map_or(latest, |due| due.min(latest));
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        tokio::select! {
            () = sleep(left) => return,
            () = shared.wanted.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests;
