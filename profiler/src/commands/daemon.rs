//! `pyebpf daemon`: check, load, start those that talk, sample until told to stop, send the rest.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::sync::{mpsc, watch};

use crate::{
    agent::{
        budget::Budget, duty::Duty, labels::Namer, parts::Parts, selection::Selection,
        settings::Settings, talking::Talking,
    },
    bpf::{Kernel, Settings as Programs, Steps},
    cli::{Limit, Native},
    destination::{Destination, Temporary},
    preflight,
    profile::{Meta, Profile, Shape},
    recorder::Recorder,
    session::{Session, Watched},
    signals::Signals,
    talk::say,
};

/// Most requests for profiles that wait to be looked at.
const REQUESTS_MAX: usize = 64;

/// Prints all settings as they would be used.
///
/// # Errors
/// When stdout can't be written.
pub fn print(settings: &Settings) -> Result<ExitCode> {
    Destination::Stdout
        .open(&Temporary::default())?
        .write(|out| Ok(out.write_all(settings.to_toml().as_bytes())?))?;
    Ok(ExitCode::SUCCESS)
}

/// Profiles all Python, as `settings` say, until it is told to stop.
///
/// # Errors
/// Whatever keeps it from beginning.
pub fn run(settings: Settings) -> Result<ExitCode> {
    preflight::check()?;
    preflight::check_rate(settings.rate)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let result = runtime.block_on(daemon(settings));
    runtime.shutdown_background();
    result
}

async fn daemon(settings: Settings) -> Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let node = settings.node.clone().unwrap_or_else(host_name);
    let namer = Namer::new(&settings.labels, &node)?;
    let selection = Selection::new(settings.select.clone())?;
    let kernel = Kernel::load(Programs {
        rate: settings.rate,
        all_processes: true,
        follow_children: true,
        log: false,
        ring: None,
        steps: Steps::Best,
        native: settings.native.is_some(),
        kernel: false,
        timed: true,
    })?;
    let (requests, asked) = mpsc::channel(REQUESTS_MAX);
    let (publish, status) = watch::channel(Default::default());
    let talking = Talking::start(&settings, &node, requests, status).await?;
    say(format_args!(
        "sampling at {} Hz, a profile for each container every {}",
        settings.rate, settings.interval
    ));
    let parts = Parts::new((namer, selection, talking.pods.clone()), settings.rate);
    let mut recorder = Recorder::new(book(settings.rate), false, parts);
    if settings.native == Some(Native::All) {
        recorder.symbols.unfold();
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let budget = Budget::new(settings.budget.clone(), cpus, settings.rate);
    let mut duty = Duty::new(
        (settings.interval.0, settings.rate),
        budget,
        (asked, publish),
        Box::new({
            let export = talking.export.clone();
            move |portions| export.send(portions)
        }),
    );
    let mut session = Session::new(kernel, recorder);
    let Session {
        targets, kernel, ..
    } = &mut session;
    targets.follow_all(kernel, None)?;
    let everything = Watched::Everything;
    let each_poll = |session: &mut Session<Parts>| duty.turn(session);
    session
        .run(Limit::Unlimited, everything, &mut signals, each_poll)
        .await?;
    duty.end(&mut session);
    // What is not sent by then is in the spool.
    let ending = tokio::task::spawn_blocking(|| talking.end());
    tokio::select! {
        _ = ending => {}
        _ = signals.next() => bail!("interrupted twice: the last profiles were not sent"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Names and stacks of everything that was seen since it began.
fn book(rate: u32) -> Profile {
    let meta = Meta {
        started: std::time::SystemTime::now(),
        rate,
        command: "pyebpf daemon".to_owned(),
        duration: Duration::ZERO,
    };
    Profile::new(meta, Shape::default(), false)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
