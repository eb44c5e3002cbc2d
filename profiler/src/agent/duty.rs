//! What the agent does between two readings of the ring buffer, and never for long: it ends intervals,
//! passes finished profiles on, answers who asks for one, watches its budget and tells how it goes.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use profiler_ebpf::Counter;
use tokio::sync::{mpsc, watch};

use super::{
    budget::{Advice, Budget},
    cost::{self, Cost},
    labels::Portion,
    parts::Parts,
    status::Status,
    watch::Request,
};
use crate::{session::Session, talk::say};

/// How often it looks at its cost, at new processes, and tells how it goes.
const TICK: Duration = Duration::from_secs(1);

/// Most notices that are said; nobody reads more.
const SAID_MAX: usize = 1000;

/// All that it has to do.
pub struct Duty {
    interval: Duration,
    pub budget: Budget,
    pub asked: mpsc::Receiver<Request>,
    pub status: watch::Sender<Arc<Status>>,
    /// Takes profiles that are done.
    pub send: Box<dyn FnMut(Vec<Arc<Portion>>)>,
    rate_asked: u32,
    /// What was said, and is said once.
    said: BTreeSet<String>,
    began: Instant,
    next_cut: Instant,
    next_tick: Instant,
    kernel_memory: u64,
}

impl Duty {
    /// Begins its first interval.
    pub fn new(
        (interval, rate): (Duration, u32),
        budget: Budget,
        (asked, status): (mpsc::Receiver<Request>, watch::Sender<Arc<Status>>),
        send: Box<dyn FnMut(Vec<Arc<Portion>>)>,
    ) -> Duty {
        let began = Instant::now();
        Duty {
            interval,
            budget,
            asked,
            status,
            send,
            rate_asked: rate,
            said: BTreeSet::new(),
            began,
            next_cut: began + interval,
            next_tick: began,
            kernel_memory: cost::of_maps(),
        }
    }

    /// Does what is due.
    pub fn turn(&mut self, session: &mut Session<Parts>) {
        let now = Instant::now();
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            let Session {
                targets, recorder, ..
            } = session;
            recorder.sink.follow(targets);
            if let Err(error) = self.look_at_cost(session, now) {
                session.recorder.tally.notice(format!("{error:#}"));
            }
            for notice in session.recorder.tally.take_notices() {
                if self.said.len() < SAID_MAX && self.said.insert(notice.clone()) {
                    say(notice);
                }
            }
        }
        while let Ok(request) = self.asked.try_recv() {
            session.recorder.sink.watch(request);
        }
        let recorder = &mut session.recorder;
        recorder
            .sink
            .answer(&recorder.profile, &mut recorder.symbols);
        if now >= self.next_cut {
            self.next_cut += self.interval;
            if self.next_cut <= now {
                // The machine was asleep, or the agent stopped.
                self.next_cut = now + self.interval;
            }
            recorder.sink.cut(session.kernel.rate());
        }
        self.pass_on(session, false);
    }

    /// The end: what there is of the last interval goes where the others went.
    pub fn end(&mut self, session: &mut Session<Parts>) {
        session.recorder.sink.cut(session.kernel.rate());
        self.pass_on(session, true);
        self.asked.close();
    }

    fn pass_on(&mut self, session: &mut Session<Parts>, all: bool) {
        let recorder = &mut session.recorder;
        if recorder.sink.has_waiting() {
            let finished = recorder.sink.finished(&mut recorder.symbols, all);
            if !finished.is_empty() {
                (self.send)(finished);
            }
        }
        recorder.renew(Parts::forget_ids);
    }

    fn look_at_cost(&mut self, session: &mut Session<Parts>, now: Instant) -> Result<()> {
        let counts = session.kernel.counts()?;
        let kernel = Duration::from_nanos(counts.counter(Counter::Nanoseconds));
        let cost = Cost::now(kernel);
        let memory = cost.memory + self.kernel_memory;
        if let Advice::Rate(rate) = self.budget.read(now, cost, memory) {
            session.kernel.set_rate(rate)?;
            say(format_args!(
                "taking {rate} samples a second and CPU from now on, of {} that are asked for: the \
                 budget is {} and {} of memory",
                self.rate_asked, self.budget.settings.max_cpu, self.budget.settings.max_memory
            ));
        }
        let Session {
            kernel: programs,
            targets,
            recorder,
            ..
        } = session;
        recorder.tally.not_looked = targets.missed();
        recorder.tally.events_lost = targets.events_lost();
        let tally = &recorder.tally;
        self.status.send_replace(Arc::new(Status {
            up: self.began.elapsed(),
            rate: programs.rate(),
            rate_asked: self.rate_asked,
            outcomes: tally.by_outcome(),
            losses: tally.by_loss(&counts),
            kernel_time: kernel,
            kernel_runs: counts.walks(),
            cpu: cost.cpu,
            memory: cost.memory,
            kernel_memory: self.kernel_memory,
            lowered: self.budget.lowered.clone(),
            portions: recorder.sink.made,
            excluded: recorder.sink.excluded,
            processes: recorder.sink.processes(targets),
        }));
        Ok(())
    }
}
