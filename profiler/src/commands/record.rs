//! `pyebpf record`: check, load, sample, write, summarise.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use tokio::process::Child;

use crate::{
    bpf::{Kernel, Settings},
    cli::{Native, Record, Selection, Stats},
    destination::{Destination, Temporary},
    preflight,
    profile::{Meta, Profile},
    progress::Progress,
    recorder::{Recorder, Whole},
    session::{End, Session, Watched},
    signals::{Asked, Signals},
    symbolize::kernel::{Kernel as KernelNames, kallsyms::Fault},
    talk::say,
    target::{
        Groups,
        command::{self, Patience},
    },
};

/// Records a profile as `config` says; the exit code is the command's when there is one.
///
/// # Errors
/// Whatever kept the profile from being recorded or written.
pub fn run(config: Record) -> Result<ExitCode> {
    preflight::check()?;
    preflight::check_rate(config.rate)?;
    let destination = Destination::check(&path_of(&config), "-o")?;
    let stats = match &config.stats {
        Some(Stats::File(path)) => Some(Destination::check(path, "--stats")?),
        Some(Stats::Stderr) | None => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let result = runtime.block_on(record(config, destination, stats));
    // A profile that is still being written when the user asks to quit at once is not waited for.
    runtime.shutdown_background();
    result
}

async fn record(
    config: Record,
    destination: Destination,
    stats: Option<Destination>,
) -> Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let kernel = Kernel::load(Settings {
        rate: config.rate,
        all_processes: config.selection.is_open(),
        follow_children: config.children || config.selection.is_open(),
        log: config.bpf_log,
        ring: config.buffer,
        steps: config.steps,
        native: config.native.is_some(),
        kernel: config.kernel,
        timed: false,
    })?;
    let arguments: Vec<String> = std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let meta = Meta {
        started: SystemTime::now(),
        rate: config.rate,
        command: arguments.join(" "),
        duration: Duration::ZERO,
    };
    let profile = Profile::new(meta, config.shape, config.format.needs_timeline());
    let mut recorder = Recorder::new(profile, config.gil_only, Whole);
    if config.native == Some(Native::All) {
        recorder.symbols.unfold();
    }
    if config.kernel {
        show_kernel(&mut recorder)?;
    }
    let mut session = Session::new(kernel, recorder);
    let mut child = select(&mut session, &config, &destination)?;
    let watched = match (&config.selection, &mut child) {
        (Selection::Pids(pids), _) => Watched::Pids(pids.clone()),
        (_, Some(child)) => Watched::Command(child),
        _ => Watched::Everything,
    };
    let mut progress = Progress::new(config.is_quiet());
    let end = session
        .run(config.limit, watched, &mut signals, |session| {
            progress.show(session);
        })
        .await;
    progress.done();
    let status = match &mut child {
        Some(child) => {
            let patience = match &end {
                // A terminal has told the command, too: it may clean up after itself.
                Ok(End::Signal(Asked::Interrupt)) => Patience::Wait,
                _ => Patience::None,
            };
            tokio::select! {
                status = command::end(child, patience) => status?,
                _ = signals.next() => {
                    child.start_kill().context("cannot end the command")?;
                    bail!("interrupted twice: the command was killed, the profile was not written");
                }
            }
        }
        None => None,
    };
    let end = end?;
    let said = write(session, &config, destination, end, signals).await?;
    if config.is_quiet() {
        say(&said.json);
    } else {
        say(said.text.trim_end());
    }
    if let Some(place) = stats {
        place
            .open(&Temporary::default())?
            .write(|out| Ok(writeln!(out, "{}", said.json)?))
            .context("the summary was not written")?;
    }
    Ok(status.map_or(ExitCode::SUCCESS, |status| {
        ExitCode::from(command::exit_code(status))
    }))
}

/// Reads the names of the kernel's functions, or says what keeps pyebpf from it.
fn show_kernel(recorder: &mut Recorder) -> Result<()> {
    let names = KernelNames::read();
    match names.fault() {
        None => {}
        Some(Fault::Hidden) => {
            let missing = preflight::hidden_kernel_names(&preflight::Facts::gather()?);
            recorder.tally.notice(missing.to_string());
        }
        Some(fault) => {
            let notice = format!("the kernel's frames have no names: {fault}");
            recorder.tally.notice(notice);
        }
    }
    recorder.symbols.kernel = Some(names);
    Ok(())
}

/// Makes what the user selected known to the kernel, and starts the command if there is one.
fn select(
    session: &mut Session,
    config: &Record,
    destination: &Destination,
) -> Result<Option<Child>> {
    let Session {
        targets, kernel, ..
    } = session;
    match &config.selection {
        Selection::All => {
            targets.follow_all(kernel, None)?;
            if targets.running() == 0 && !config.is_quiet() {
                say("no Python process runs yet: waiting for one");
            }
            Ok(None)
        }
        Selection::Within {
            cgroups,
            containers,
        } => {
            targets.follow_all(kernel, Some(Groups::find(cgroups, containers)?))?;
            if targets.running() == 0 && !config.is_quiet() {
                say("no Python process runs there yet: waiting for one");
            }
            Ok(None)
        }
        Selection::Pids(pids) => {
            for &pid in pids {
                targets.add_named(kernel, pid, config.children)?;
            }
            Ok(None)
        }
        Selection::Command(program) => {
            let child = command::start(program, *destination == Destination::Stdout)?;
            let Some(pid) = child.id() else {
                bail!("the command ended at once");
            };
            targets.follow(kernel, pid)?;
            if config.children {
                targets.add_descendants(kernel, pid)?;
            }
            Ok(Some(child))
        }
    }
}

/// What there is to say at the end.
struct Said {
    text: String,
    json: String,
}

/// Writes the profile, unless another signal says to quit at once, and gives the summary.
async fn write(
    session: Session,
    config: &Record,
    destination: Destination,
    end: End,
    mut signals: Signals,
) -> Result<Said> {
    let named = !config.selection.is_open();
    let counts = session.kernel.counts()?;
    let none_found = session.targets.met() == 0;
    let Recorder {
        mut profile,
        tally,
        symbols,
        ..
    } = session.recorder;
    profile.set_counters(tally.counters(&symbols, &counts, named));
    let output = match &destination {
        Destination::File(path) | Destination::Stream(path) => Some(path.clone()),
        Destination::Stdout => None,
    };
    let about = (end.name(), output.as_deref());
    let json = tally.json(about, &profile, &symbols, &counts, named);
    let mut text = String::new();
    if end == End::TargetsGone {
        text += "every process that was named has ended\n";
    }
    text += &tally.summary(&profile, &symbols, &counts, named);
    if none_found && matches!(config.selection, Selection::Command(_)) {
        text +=
            "the command ran no CPython; with `--subprocesses` its children are looked at, too\n";
    }
    if let Some(path) = output {
        text += &format!("wrote {}\n", path.display());
    }
    let temporary = Temporary::default();
    let guard = temporary.clone();
    let format = config.format;
    // Even opening may block: a named pipe waits for its reader.
    let writing = tokio::task::spawn_blocking(move || {
        destination
            .open(&guard)?
            .write(|out| format.write(&profile, out))
    });
    tokio::select! {
        written = writing => written.context("the writer failed")??,
        _ = signals.next() => {
            temporary.remove();
            bail!("interrupted: the profile was not written");
        }
    }
    Ok(Said { text, json })
}

/// The output that was asked for, or a name from the target and the time.
fn path_of(config: &Record) -> PathBuf {
    if let Some(path) = &config.output {
        return path.clone();
    }
    let target = match &config.selection {
        Selection::All => "python".to_owned(),
        Selection::Within {
            cgroups,
            containers,
        } => last_part(cgroups.iter().chain(containers).next()),
        Selection::Pids(pids) => pids[0].to_string(),
        Selection::Command(program) => last_part(program.first()),
    };
    let time = humantime::format_rfc3339_seconds(SystemTime::now());
    let extension = config.format.extensions()[0];
    PathBuf::from(format!("{target}-{time}.{extension}"))
}

/// What follows a path's last slash.
fn last_part(path: Option<&impl AsRef<Path>>) -> String {
    let name = path.and_then(|path| path.as_ref().file_name());
    name.map_or_else(
        || "python".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}
