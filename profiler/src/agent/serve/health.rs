//! Whether the agent lives (`/healthz`: restart it if not) and whether it samples (`/readyz`).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{extract::State, http::StatusCode, response::Response};
use tokio::{sync::watch, time::Instant};

use super::{
    Answers,
    refusal::{Refusal, text_of},
};
use crate::agent::status::Status;

/// The loop tells its status once a second; after so long it hangs.
const LATE: Duration = Duration::from_secs(10);

/// For how long it may load its programs and look for processes before that.
const BEGIN: Duration = Duration::from_secs(120);

/// When the loop was heard of.
pub(super) struct Health {
    started: Instant,
    heard: Mutex<Option<Instant>>,
}

impl Health {
    /// Listens to the loop for as long as it runs.
    pub(super) fn follow(mut status: watch::Receiver<Arc<Status>>) -> Arc<Health> {
        let now = Instant::now();
        // Whether there was one already.
        let heard = has_sampled(&status.borrow_and_update()).then_some(now);
        let health = Arc::new(Health {
            started: now,
            heard: Mutex::new(heard),
        });
        let following = Arc::clone(&health);
        tokio::spawn(async move {
            while status.changed().await.is_ok() {
                if has_sampled(&status.borrow_and_update()) {
                    *following
                        .heard
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                }
            }
        });
        health
    }

    /// What is wrong at this time.
    fn fault(&self, now: Instant) -> Option<String> {
        let (since, allowed, what) = match self.heard() {
            Some(heard) => (heard, LATE, "nothing was heard of the loop that samples"),
            None => (self.started, BEGIN, "sampling has not begun"),
        };
        let silent = now - since;
        (silent > allowed).then(|| format!("{what} for {} s", silent.as_secs()))
    }

    fn heard(&self) -> Option<Instant> {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn has_sampled(status: &Status) -> bool {
    status.up > Duration::ZERO
}

/// `/healthz`.
pub(super) async fn alive(State(answers): State<Arc<Answers>>) -> Result<Response, Refusal> {
    match answers.health.fault(Instant::now()) {
        Some(fault) => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, fault)),
        None => Ok(text_of("ok\n".to_owned())),
    }
}

/// `/readyz`: sampling has begun. Places that can't be reached are shown; profiles wait for them.
pub(super) async fn ready(State(answers): State<Arc<Answers>>) -> Result<Response, Refusal> {
    if answers.health.heard().is_none() {
        return Err(Refusal::later("sampling has not begun", 1));
    }
    let status = Arc::clone(&answers.shared.status.borrow());
    let mut text = format!(
        "ok\nsampling for {} s, now at {} Hz\n",
        status.up.as_secs(),
        status.rate
    );
    for place in (answers.shared.places)() {
        text += &format!(
            "{}: {} sent, {} waiting",
            place.name, place.sent, place.waiting
        );
        if place.last_error.is_some() {
            // The words may have an address in them, which is nobody's business here.
            text += ", the last attempt failed";
        }
        text += "\n";
    }
    Ok(text_of(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_hangs_is_told_from_one_that_begins() {
        let seconds = Duration::from_secs;
        let (status, following) = watch::channel(Arc::<Status>::default());
        let health = Health::follow(following);
        let started = health.started;
        assert_eq!(health.fault(started + seconds(119)), None);
        let late = health.fault(started + seconds(121));
        assert_eq!(late.as_deref(), Some("sampling has not begun for 121 s"));

        let sampled = Status {
            up: seconds(1),
            ..Status::default()
        };
        status.send(Arc::new(sampled)).unwrap();
        while health.heard().is_none() {
            tokio::task::yield_now().await;
        }
        let heard = health.heard().unwrap();
        assert_eq!(health.fault(heard + seconds(9)), None);
        let late = health.fault(heard + seconds(11)).unwrap();
        assert!(late.starts_with("nothing was heard"), "{late}");
    }
}
