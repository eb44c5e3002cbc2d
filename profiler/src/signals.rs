//! SIGINT and SIGTERM as something to wait for. One request may come as several signals: those that
//! follow another at once are no second request.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

/// Within this time after a request, signals are the same one: `timeout` signals its child and then the
/// group that both are in (coreutils 9.1, src/timeout.c, `cleanup`). Nobody asks twice so quickly.
const SAME: Duration = Duration::from_millis(250);

/// Which signal it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// SIGINT: a terminal sends it to the whole foreground group, a profiled command included.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

/// Both signals, from the moment that this exists.
pub struct Signals(UnboundedReceiver<Asked>);

impl Signals {
    /// Takes the signals over from their default, which is to end the program. A thread of its own
    /// listens: it knows when each came, however long the recording is busy with something else.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn catch() -> Result<Signals> {
        let runtime = Builder::new_current_thread().enable_io().build();
        let runtime = runtime.context("cannot wait for signals")?;
        let entered = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        drop(entered);
        let (sender, receiver) = unbounded_channel();
        let listen = async move {
            let mut last = None;
            loop {
                let asked = tokio::select! {
                    _ = interrupt.recv() => Asked::Interrupt,
                    _ = terminate.recv() => Asked::Terminate,
                };
                if is_new(&mut last, Instant::now()) && sender.send(asked).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(listen))
            .context("cannot wait for signals")?;
        Ok(Signals(receiver))
    }

    /// The next request.
    pub async fn next(&mut self) -> Asked {
        match self.0.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }
}

/// Whether a signal that came now is a request of its own; `last` is when the last request came.
fn is_new(last: &mut Option<Instant>, now: Instant) -> bool {
    let new = last.is_none_or(|last| now.duration_since(last) > SAME);
    if new {
        *last = Some(now);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_follow_at_once_are_the_same_request() {
        let start = Instant::now();
        let mut last = None;
        let mut new = |milliseconds| is_new(&mut last, start + Duration::from_millis(milliseconds));
        assert!(new(0));
        assert!(!new(1) && !new(250), "both are of the first");
        assert!(new(251), "the first is over, whatever followed it");
        assert!(!new(252));
        assert!(new(5000));
    }
}
