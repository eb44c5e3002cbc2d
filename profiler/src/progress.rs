//! What a terminal shows while a recording runs; nothing where stderr is no terminal, or is for programs.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::{profile::plural, session::Session, tally::Tally};

/// How often the line changes.
const EVERY: Duration = Duration::from_millis(250);

/// One line on stderr: time, samples, processes, losses.
pub struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    shown: Instant,
}

impl Progress {
    /// Shows nothing yet, and nothing ever where it is to be quiet.
    pub fn new(quiet: bool) -> Progress {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg}").expect("a valid template");
            ProgressBar::new_spinner().with_style(style)
        });
        let now = Instant::now();
        Progress {
            bar,
            started: now,
            shown: now,
        }
    }

    /// Shows where the recording stands, if it is time to.
    pub fn show(&mut self, session: &Session) {
        let Some(bar) = &self.bar else { return };
        if self.shown.elapsed() < EVERY {
            return;
        }
        self.shown = Instant::now();
        let lost = session
            .kernel
            .counts()
            .map_or(0, |counts| Tally::lost(&counts));
        bar.set_message(format!(
            "{} · {} · {} · {lost} lost · Ctrl-C ends and writes the profile",
            HumanDuration(Duration::from_secs(self.started.elapsed().as_secs())),
            plural(
                session.recorder.profile.total().samples,
                "sample",
                "samples"
            ),
            plural(
                session.targets.running() as u64,
                "Python process",
                "Python processes"
            ),
        ));
        bar.tick();
    }

    /// Takes the line away.
    pub fn done(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
