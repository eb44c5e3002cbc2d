//! The thread that talks, while another one samples: to container runtimes, to stores, and to whoever
//! asks. It has a runtime of its own, so that neither waits for the other.

use std::{sync::Arc, thread::JoinHandle, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    runtime::Builder,
    sync::{oneshot, watch},
};

use super::{
    export::Export,
    pods::Pods,
    serve::{self, Shared},
    settings::Settings,
    status::Status,
    watch::Requests,
};
use crate::talk::say;

/// For how long what is left is sent at the end, before it goes into the spool: orchestrators kill after
/// half a minute.
const PATIENCE: Duration = Duration::from_secs(10);

/// A hold on the thread.
pub struct Talking {
    pub pods: Pods,
    pub export: Arc<Export>,
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Talking {
    /// Starts the thread, on the node of this name, and waits until it listens. Says where it does, and
    /// where profiles go.
    ///
    /// # Errors
    /// When something of it can't begin.
    pub async fn start(
        settings: &Settings,
        node: &str,
        requests: Requests,
        status: watch::Receiver<Arc<Status>>,
    ) -> Result<Talking> {
        let (begun, result) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let settings = settings.clone();
        let node = node.to_owned();
        let talk = move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = match runtime.context("cannot start the event loop that talks") {
                Ok(runtime) => runtime,
                Err(error) => return drop(begun.send(Err(error))),
            };
            runtime.block_on(async {
                let parts = begin(&settings, &node, requests, status).await;
                let export = parts.as_ref().ok().map(|(_, export)| export.clone());
                // Nobody waits who has given up.
                let _ = begun.send(parts);
                if let Some(export) = export {
                    // Dropped: the loop has failed.
                    let _ = ended.await;
                    export.end(PATIENCE).await;
                }
            });
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new()
            .name("pyebpf-talk".to_owned())
            .spawn(talk)
            .context("cannot start the thread that talks")?;
        let (pods, export) = result
            .await
            .map_err(|_| anyhow!("the thread that talks has ended at once"))??;
        Ok(Talking {
            pods,
            export,
            end,
            thread,
        })
    }

    /// Sends what is left, as far as that is quick.
    pub fn end(self) {
        let _ = self.end.send(());
        let _ = self.thread.join();
    }
}

async fn begin(
    settings: &Settings,
    node: &str,
    requests: Requests,
    status: watch::Receiver<Arc<Status>>,
) -> Result<(Pods, Arc<Export>)> {
    let pods = Pods::start(&settings.pods, node)?;
    let export = Arc::new(Export::start(settings, node)?);
    let state = export.clone();
    let shared = Shared {
        requests,
        status,
        places: Box::new(move || state.state()),
    };
    let bound = serve::start(&settings.serve, shared).await?;
    for place in export.places() {
        say(format_args!("profiles go to {place}"));
    }
    if let Some(address) = bound.listen {
        say(format_args!(
            "page, profiles and processes: http://{address}/"
        ));
    }
    if let Some(address) = bound.probes {
        say(format_args!("health and metrics: http://{address}/"));
    }
    let asked = pods.clone();
    tokio::spawn(async move {
        say(format_args!(
            "whose a container is, is asked of {}",
            asked.chosen().await
        ));
    });
    Ok((pods, export))
}
