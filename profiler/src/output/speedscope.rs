//! speedscope's own JSON (its file-format-schema.json): a `sampled` profile per thread, one entry a
//! sample in the order of time, weights in nanoseconds. Written as it is made: the lists of frames
//! of all samples are never in memory.

use std::io::Write;

use anyhow::{Context, ensure};
use indexmap::IndexSet;
use rustc_hash::FxHashMap;
use serde::ser::{Serialize, SerializeSeq, Serializer};

use crate::profile::{FrameId, Moment, Profile, ThreadId, escape};

/// Writes the profile as speedscope's JSON. The profile must have a timeline. An empty profile gets
/// one empty thread, because speedscope refuses a file without any.
pub fn write(profile: &Profile, out: &mut dyn Write) -> anyhow::Result<()> {
    ensure!(
        profile.has_timeline(),
        "a speedscope file needs every sample in the order of time, but this profile has counts only"
    );
    let processes = profile.processes_with_samples() > 1;
    let mut frames = IndexSet::new();
    let mut of_frame = FxHashMap::default();
    for id in profile.used_frames() {
        of_frame.insert(id, intern(&mut frames, frame(profile, id)));
    }
    let threads = profile.threads_with_samples().into_iter().map(|thread| {
        let roots = profile.root_labels(thread, processes);
        let roots = roots.into_iter().map(|name| {
            intern(&mut frames, Frame { name, file: None, line: None })
        });
        Thread { profile, thread, roots: roots.collect(), of_frame: &of_frame }
    });
    let threads: Vec<Thread> = threads.collect();
    let file = File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        exporter: concat!("pyebpf ", env!("CARGO_PKG_VERSION")),
        name: escape(&profile.meta().command),
        active_profile_index: 0,
        shared: Shared { frames },
        profiles: Threads(threads),
    };
    serde_json::to_writer(&mut *out, &file).context("writing the speedscope file failed")?;
    writeln!(out).context("writing the speedscope file failed")
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: &'static str,
    name: String,
    active_profile_index: u32,
    shared: Shared,
    profiles: Threads<'a>,
}

#[derive(serde::Serialize)]
struct Shared {
    frames: IndexSet<Frame>,
}

/// Frames that read the same are one: speedscope tells frames apart by their index alone.
#[derive(PartialEq, Eq, Hash, serde::Serialize)]
struct Frame {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

fn frame(profile: &Profile, id: FrameId) -> Frame {
    let shown = profile.frame_of(id);
    let function = profile.function_of(shown.function);
    let source = profile.shown_file(function);
    let file = match profile.shown_module(function) {
        // Native code whose source is not known.
        Some(module) if source.is_empty() => Some(module),
        _ => (!function.is_marker()).then_some(source),
    };
    let file = file.map(str::to_owned);
    Frame { name: escape(&function.name), file, line: shown.line }
}

fn intern(frames: &mut IndexSet<Frame>, frame: Frame) -> usize {
    frames.insert_full(frame).0
}

struct Threads<'a>(Vec<Thread<'a>>);

impl Serialize for Threads<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for thread in &self.0 {
            list.serialize_element(&thread.sampled())?;
        }
        if self.0.is_empty() {
            list.serialize_element(&Sampled::new("no samples".to_owned(), Samples::default()))?;
        }
        list.end()
    }
}

struct Thread<'a> {
    profile: &'a Profile,
    thread: ThreadId,
    /// Frames below all stacks of the thread.
    roots: Vec<usize>,
    of_frame: &'a FxHashMap<FrameId, usize>,
}

impl Thread<'_> {
    fn sampled(&self) -> Sampled<'_> {
        let process = self.profile.process_label(self.profile.thread(self.thread).process);
        let name = format!("{process} {}", self.profile.thread_label(self.thread));
        let moments = self.profile.moments(self.thread);
        Sampled::new(name, Samples { thread: Some(self), moments })
    }
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Sampled<'a> {
    r#type: &'static str,
    name: String,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    weights: Vec<u32>,
    samples: Samples<'a>,
}

impl<'a> Sampled<'a> {
    fn new(name: String, samples: Samples<'a>) -> Self {
        let weights: Vec<u32> = samples.moments.iter().map(|moment| moment.weight).collect();
        Self {
            r#type: "sampled",
            name,
            unit: "nanoseconds",
            start_value: 0,
            end_value: weights.iter().map(|weight| u64::from(*weight)).sum(),
            weights,
            samples,
        }
    }
}

/// A list of frame indices per sample, root first.
#[derive(Default)]
struct Samples<'a> {
    thread: Option<&'a Thread<'a>>,
    moments: Vec<Moment>,
}

impl Serialize for Samples<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.moments.len()))?;
        let (mut frames, mut indices) = (Vec::new(), Vec::new());
        if let Some(thread) = self.thread {
            for moment in &self.moments {
                thread.profile.frames_of(moment.stack, &mut frames);
                indices.clone_from(&thread.roots);
                indices.extend(frames.iter().map(|frame| thread.of_frame[frame]));
                list.serialize_element(&indices)?;
            }
        }
        list.end()
    }
}
