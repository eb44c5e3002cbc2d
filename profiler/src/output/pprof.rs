//! pprof's gzipped protocol buffer: samples and CPU time per stack and thread, with functions, full
//! file names (tools look the sources up) and lines. Process and thread are labels, not frames:
//! pprof filters and groups by them.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use flate2::Compression;
use flate2::write::GzEncoder;
use indexmap::IndexSet;
use prost::Message;
use rustc_hash::FxHashMap;

use crate::profile::{FrameId, FunctionId, ModuleId, Profile, ThreadId, escape};

pub mod proto;

/// The mapping of all Python code.
const PYTHON: u64 = 1;

/// Writes the profile as pprof, piece by piece, so that thousands of deep stacks need not be in
/// memory at once.
pub fn write(profile: &Profile, out: &mut dyn Write) -> anyhow::Result<()> {
    write_labelled(profile, &BTreeMap::new(), out)
}

/// Writes it with what is known of all of it as comments, `label NAME=VALUE`, which
/// `go tool pprof -comments` shows.
pub fn write_labelled(
    profile: &Profile,
    labels: &BTreeMap<String, String>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut file = Pieces {
        out: GzEncoder::new(out, Compression::default()),
        buffer: Vec::new(),
        strings: IndexSet::from([String::new()]),
    };
    write_pieces(profile, labels, &mut file).context("writing the pprof file failed")
}

fn write_pieces(
    profile: &Profile,
    labels: &BTreeMap<String, String>,
    file: &mut Pieces,
) -> std::io::Result<()> {
    let head = head(profile, labels, file);
    file.piece(&head)?;
    write_modules(profile, file)?;
    write_frames(profile, file)?;
    write_samples(profile, file)?;
    let string_table = std::mem::take(&mut file.strings).into_iter().collect();
    file.piece(&proto::Profile { string_table, ..proto::Profile::default() })?;
    file.out.try_finish()
}

/// What was measured, when and how.
fn head(
    profile: &Profile,
    labels: &BTreeMap<String, String>,
    file: &mut Pieces,
) -> proto::Profile {
    let meta = profile.meta();
    let cpu = proto::ValueType { r#type: file.string("cpu"), unit: file.string("nanoseconds") };
    let samples = proto::ValueType { r#type: file.string("samples"), unit: file.string("count") };
    let started = meta.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut comments =
        vec![concat!("pyebpf ", env!("CARGO_PKG_VERSION")).to_owned(), escape(&meta.command)];
    let labels = labels.iter();
    comments.extend(labels.map(|(name, value)| escape(&format!("label {name}={value}"))));
    let counters = profile.counters().iter();
    comments.extend(counters.map(|(name, count)| format!("{name}: {count}")));
    proto::Profile {
        sample_type: vec![samples, cpu],
        mapping: vec![proto::Mapping {
            id: PYTHON,
            filename: file.string("python"),
            build_id: 0,
            has_functions: true,
            has_filenames: true,
            has_line_numbers: true,
            has_inline_frames: true,
        }],
        time_nanos: signed(started.as_nanos()),
        duration_nanos: signed(meta.duration.as_nanos()),
        period_type: Some(cpu),
        period: 1_000_000_000 / i64::from(meta.rate.max(1)),
        comment: comments.iter().map(|comment| file.string(comment)).collect(),
        default_sample_type: cpu.r#type,
        ..proto::Profile::default()
    }
}

/// A mapping for each library and program that native code is of. Its functions all are in the file:
/// those without a name have one that says so.
fn write_modules(profile: &Profile, file: &mut Pieces) -> std::io::Result<()> {
    let mut modules: BTreeMap<ModuleId, proto::Mapping> = BTreeMap::new();
    for id in profile.used_frames() {
        let frame = profile.frame_of(id);
        let function = profile.function_of(frame.function);
        let Some(id) = function.module else { continue };
        let mapping = modules.entry(id).or_insert_with(|| {
            let module = profile.module_of(id);
            proto::Mapping {
                id: mapping(Some(id)),
                filename: file.string(&module.path),
                build_id: file.string(&hex(&module.build_id)),
                has_functions: true,
                ..proto::Mapping::default()
            }
        });
        mapping.has_filenames |= !function.file.is_empty();
        mapping.has_line_numbers |= frame.line.is_some();
        // Who tells of lines tells of what was inlined.
        mapping.has_inline_frames |= frame.line.is_some();
    }
    let mapping = modules.into_values().collect();
    file.piece(&proto::Profile { mapping, ..proto::Profile::default() })
}

fn write_frames(profile: &Profile, file: &mut Pieces) -> std::io::Result<()> {
    let mut functions: IndexSet<FunctionId> = IndexSet::new();
    for id in profile.used_frames() {
        let frame = profile.frame_of(id);
        let (index, new) = functions.insert_full(frame.function);
        // Ids of pprof begin at 1; 0 means none.
        let function_id = index as u64 + 1;
        let mut piece = proto::Profile::default();
        let function = profile.function_of(frame.function);
        if new {
            piece.function.push(proto::Function {
                id: function_id,
                name: file.string(&escape(&function.name)),
                filename: file.string(&function.file),
                start_line: function.first_line.into(),
                // Empty on purpose: a name that equals its system name is taken for a mangled
                // C++ one by `go tool pprof`, which then cuts `<module>` away as a template.
                system_name: 0,
            });
        }
        let line = proto::Line { function_id, line: frame.line.unwrap_or(0).into() };
        piece.location.push(proto::Location {
            id: location(id),
            mapping_id: mapping(function.module),
            line: vec![line],
        });
        file.piece(&piece)?;
    }
    Ok(())
}

fn write_samples(profile: &Profile, file: &mut Pieces) -> std::io::Result<()> {
    let mut labels = FxHashMap::default();
    for thread in profile.threads_with_samples() {
        labels.insert(thread, thread_labels(profile, thread, file));
    }
    let mut frames = Vec::new();
    for (thread, stack, count) in profile.counts() {
        profile.frames_of(stack, &mut frames);
        let sample = proto::Sample {
            location_id: frames.iter().rev().map(|frame| location(*frame)).collect(),
            value: vec![signed(count.samples.into()), signed(count.time.into())],
            label: labels[&thread].clone(),
        };
        file.piece(&proto::Profile { sample: vec![sample], ..proto::Profile::default() })?;
    }
    Ok(())
}

/// Which process and thread it was. Where a profile folds them, the id of either is 0, and there is no
/// such label.
fn thread_labels(profile: &Profile, id: ThreadId, file: &mut Pieces) -> Vec<proto::Label> {
    let thread = profile.thread(id);
    let process = profile.process(thread.process);
    let name = if thread.name.is_empty() { &thread.comm } else { &thread.name };
    let mut number = |key, number: u32| proto::Label {
        key: file.string(key),
        num: number.into(),
        str: 0,
    };
    let ids = [("pid", process.pid), ("tid", thread.tid)].into_iter();
    let ids = ids.filter(|(_, id)| *id > 0);
    let mut labels: Vec<_> = ids.map(|(key, id)| number(key, id)).collect();
    for (key, text) in [
        ("command", &process.command_line),
        ("cgroup", &process.cgroup),
        ("container", &process.container),
        ("thread", name),
        ("comm", &thread.comm),
    ] {
        if !text.is_empty() {
            let str = file.string(&escape(text));
            labels.push(proto::Label { key: file.string(key), str, num: 0 });
        }
    }
    labels
}

fn location(frame: FrameId) -> u64 {
    frame.index() as u64 + 1
}

fn mapping(module: Option<ModuleId>) -> u64 {
    module.map_or(PYTHON, |module| PYTHON + 1 + u64::from(module.index()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// pprof's numbers are signed; none of ours gets there (2^63 ns are 292 years).
fn signed(number: u128) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A profile message that is written in pieces.
struct Pieces<'a> {
    out: GzEncoder<&'a mut dyn Write>,
    buffer: Vec<u8>,
    strings: IndexSet<String>,
}

impl Pieces<'_> {
    fn piece(&mut self, piece: &proto::Profile) -> std::io::Result<()> {
        self.buffer.clear();
        piece.encode(&mut self.buffer).expect("a Vec takes any number of bytes");
        self.out.write_all(&self.buffer)
    }

    fn string(&mut self, text: &str) -> i64 {
        let index = self
            .strings
            .get_index_of(text)
            .unwrap_or_else(|| self.strings.insert_full(text.to_owned()).0);
        index as i64
    }
}
