//! Profiles on their way to where the user wants them: a folder, or stores of continuous profiles.
//!
//! [`Export::send`] takes them from the loop and waits for nobody. Each is encoded once for each format
//! that a place wants (`item`) and goes into a queue of each place (`queue`), from which a task of the
//! place's own (`courier`) sends it there, keeps it in a spool (`spool`) while the place is away, and
//! counts what gets lost (`state`). Delivery is at least once: a store that fails after it has taken a
//! profile gets it again.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use prost::bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

use self::{
    access::Access,
    courier::{Courier, Pace},
    folder::Folder,
    item::{Format, Head, Item},
    otlp::Otlp,
    parca::Parca,
    places::Place,
    pyroscope::Pyroscope,
    queue::Queue,
    settings::Store,
    spool::Spool,
    state::{Reason, Shared, State},
};
use super::{labels::Portion, settings::Settings};

mod access;
mod courier;
mod folder;
mod grpc;
mod http;
mod item;
mod otlp;
mod parca;
mod places;
mod pyroscope;
mod queue;
pub mod settings;
mod spool;
pub mod state;

/// How many intervals may wait to be encoded.
const INTERVALS_MAX: usize = 4;

/// Sends profiles to every place that the settings name. Threads share it.
pub struct Export {
    portions: mpsc::Sender<Message>,
    states: Arc<[Shared]>,
    ending: watch::Sender<Option<Instant>>,
    tasks: Mutex<Option<Tasks>>,
}

struct Tasks {
    encoder: JoinHandle<()>,
    couriers: Vec<JoinHandle<()>>,
}

enum Message {
    Portions(Vec<Arc<Portion>>),
    End,
}

/// A place, as what encodes sees it.
struct Outlet {
    format: Format,
    queue: Arc<Queue>,
}

impl Export {
    /// Starts to send to the places that the settings name, as tasks of the runtime that it is called
    /// in. `node` is this node's name.
    ///
    /// # Errors
    /// When settings are wrong, or a folder can't be written. A store that is away is no error.
    pub fn start(settings: &Settings, node: &str) -> Result<Export> {
        Export::start_with(settings, node, Pace::default())
    }

    fn start_with(settings: &Settings, node: &str, pace: Pace) -> Result<Export> {
        super::install_crypto();
        let (ending, end) = watch::channel(None);
        let (mut states, mut outlets, mut couriers) = (Vec::new(), Vec::new(), Vec::new());
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut first = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX / 2);
        for (name, url, place) in places(settings)? {
            let shared = Shared::new(name, url);
            let queue = Arc::new(Queue::new(shared.clone(), pace.memory));
            let spool = match (&settings.spool.path, &place) {
                // The spool would be on the same disk.
                (_, Place::Folder(_)) | (None, _) => None,
                (Some(path), _) => Some(Spool::open(&path.join(name), settings.spool.max_size.0)?),
            };
            let last = spool.as_ref().and_then(Spool::last);
            // Clocks may be set back.
            first = first.max(last.map_or(0, |last| last.saturating_add(1)));
            outlets.push(Outlet {
                format: place.format(),
                queue: queue.clone(),
            });
            states.push(shared.clone());
            let courier = Courier::new(Arc::new(place), queue, shared, pace, spool);
            couriers.push(tokio::spawn(courier.run(end.clone())));
        }
        let (portions, incoming) = mpsc::channel(INTERVALS_MAX);
        let states: Arc<[Shared]> = states.into();
        let encoder = tokio::spawn(encode(
            incoming,
            outlets,
            states.clone(),
            node.into(),
            first,
        ));
        Ok(Export {
            portions,
            states,
            ending,
            tasks: Mutex::new(Some(Tasks { encoder, couriers })),
        })
    }

    /// Takes profiles that are to be sent; never waits: where too many wait already, these are counted
    /// as dropped.
    pub fn send(&self, portions: Vec<Arc<Portion>>) {
        let profiles = portions.len() as u64;
        let reason = match self.portions.try_send(Message::Portions(portions)) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(_)) => Reason::Behind,
            Err(mpsc::error::TrySendError::Closed(_)) => Reason::Ended,
        };
        for state in &*self.states {
            state.never_had(reason, profiles);
        }
    }

    /// How it goes: a state for each place.
    pub fn state(&self) -> Vec<State> {
        self.states.iter().map(Shared::read).collect()
    }

    /// Where profiles go, for people.
    pub fn places(&self) -> Vec<String> {
        let states = self.state().into_iter();
        let place = states.map(|State { name, url, .. }| match name {
            "folder" => format!("the folder {url}"),
            name => format!("{name} at {url}"),
        });
        place.collect()
    }

    /// Sends what has come in, for as long as `patience`; what is left then is in the spool, or counted
    /// as dropped.
    pub async fn end(&self, patience: Duration) {
        let tasks = self
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(tasks) = tasks else { return };
        let by = Instant::now() + patience;
        // Each fails where the other side is gone, which is what is wanted.
        let _ = self.portions.send(Message::End).await;
        let _ = tasks.encoder.await;
        let _ = self.ending.send(Some(by));
        for courier in tasks.couriers {
            let _ = courier.await;
        }
    }
}

/// Every place that the settings name, with its name and address; the folder where they name none.
fn places(settings: &Settings) -> Result<Vec<(&'static str, String, Place)>> {
    let mut places = Vec::new();
    let mut add = |store: Option<Store>, place: &dyn Fn(Arc<Access>) -> Result<Place>| {
        let Some(store) = store else { return Ok(()) };
        let section = store.section;
        let access = Arc::new(Access::of(&store)?);
        let url = access.url.to_string();
        let place = place(access).with_context(|| format!("cannot send to {section} at {url}"))?;
        places.push((section, url, place));
        anyhow::Ok(())
    };
    add(settings.pyroscope.store(), &|access| {
        Ok(Place::Pyroscope(Pyroscope::new(access)?))
    })?;
    add(settings.parca.store(), &|access| {
        Ok(Place::Parca(Parca::new(access)?))
    })?;
    let protocol = settings.otlp.protocol;
    add(settings.otlp.store(), &|access| {
        Ok(Place::Otlp(Otlp::new(access, protocol)?))
    })?;
    if settings.folder.path.is_some() || places.is_empty() {
        let (folder, path) = Folder::open(&settings.folder)?;
        places.push(("folder", path.display().to_string(), Place::Folder(folder)));
    }
    Ok(places)
}

/// Encodes what comes in, until there is nothing more to come, where that keeps nobody waiting.
async fn encode(
    mut incoming: mpsc::Receiver<Message>,
    outlets: Vec<Outlet>,
    states: Arc<[Shared]>,
    node: Arc<str>,
    first: u64,
) {
    let mut formats: Vec<Format> = Vec::new();
    for Outlet { format, .. } in &outlets {
        if !formats.contains(format) {
            formats.push(*format);
        }
    }
    let formats: Arc<[Format]> = formats.into();
    let mut numbers = first..;
    while let Some(Message::Portions(portions)) = incoming.recv().await {
        for portion in portions {
            let (formats, node) = (formats.clone(), node.clone());
            let encoded = spawn_blocking(move || {
                let body = |format: &Format| (*format, format.encode(&portion, &node));
                let bodies: Vec<(Format, Result<Bytes>)> = formats.iter().map(body).collect();
                (Head::of(&portion), bodies)
            });
            let encoded = encoded.await.ok();
            let number = numbers.next().unwrap_or(u64::MAX);
            for (outlet, state) in outlets.iter().zip(&*states) {
                let encoded = encoded.as_ref().and_then(|(head, bodies)| {
                    let (_, body) = bodies.iter().find(|(format, _)| *format == outlet.format)?;
                    Some((head.clone(), body.as_ref().ok()?.clone()))
                });
                match encoded {
                    Some((head, body)) => outlet.queue.push(Item::new(number, head, body)),
                    None => state.never_had(Reason::Unencodable, 1),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
