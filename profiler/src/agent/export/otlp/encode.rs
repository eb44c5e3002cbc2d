//! A profile as a request to a collector: its stacks, leaf first, with the CPU time in each, and of each
//! frame whether it is Python's, native or the kernel's (`profile.frame.type`).

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher as _, Hash},
    time::UNIX_EPOCH,
};

use opentelemetry_proto::tonic::{
    collector::profiles::v1development::ExportProfilesServiceRequest,
    common::v1::InstrumentationScope,
    profiles::v1development::{
        Function, Line, Location, Mapping, Profile as Message, ResourceProfiles, Sample,
        ScopeProfiles, Stack, ValueType,
    },
};
use prost::Message as _;

use super::{
    resource::resource,
    tables::{Known, Tables, index},
};
use crate::{
    agent::labels::Portion,
    profile::{FrameId, FunctionId, ModuleId, Profile, StackId, ThreadId, escape},
};

/// The bytes of a request with this profile alone.
pub(in crate::agent::export) fn encode(portion: &Portion, node: &str) -> Vec<u8> {
    let profile = &portion.profile;
    let mut tables = Tables::new();
    let cpu = ValueType {
        type_strindex: tables.string("cpu"),
        unit_strindex: tables.string("nanoseconds"),
    };
    let meta = profile.meta();
    let started = meta.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let samples = samples(profile, &mut tables);
    let message = Message {
        sample_type: Some(cpu),
        samples,
        time_unix_nano: u64::try_from(started.as_nanos()).unwrap_or(u64::MAX),
        duration_nano: u64::try_from(meta.duration.as_nanos()).unwrap_or(u64::MAX),
        period_type: Some(cpu),
        period: 1_000_000_000 / i64::from(meta.rate.max(1)),
        // The same in every attempt to send it, so that a collector knows it again.
        profile_id: [0, 1]
            .map(|half| RandomState::new().hash_one(half).to_be_bytes())
            .concat(),
        ..Message::default()
    };
    let scope = InstrumentationScope {
        name: "pyebpf".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let request = ExportProfilesServiceRequest {
        resource_profiles: vec![ResourceProfiles {
            resource: Some(resource(&portion.labels, node)),
            scope_profiles: vec![ScopeProfiles {
                scope: Some(scope),
                profiles: vec![message],
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
        dictionary: Some(tables.dictionary()),
    };
    request.encode_to_vec()
}

/// Indexes in a table of what has been put there.
type Places<Id> = HashMap<Id, i32>;

fn samples(profile: &Profile, tables: &mut Tables) -> Vec<Sample> {
    let mut locations = Locations::default();
    let mut stacks: Places<StackId> = Places::new();
    let mut threads: HashMap<ThreadId, Vec<i32>> = HashMap::new();
    let mut frames = Vec::new();
    let counts = profile.counts().into_iter();
    let samples = counts.map(|(thread, stack, count)| {
        let stack_index = place(&mut stacks, stack, || {
            profile.frames_of(stack, &mut frames);
            let frames = frames.iter().rev();
            let location_indices = frames
                .map(|frame| locations.of(*frame, profile, tables))
                .collect();
            tables.stacks.push(Stack { location_indices });
            tables.stacks.len()
        });
        let attributes = threads
            .entry(thread)
            .or_insert_with(|| thread_attributes(profile, thread, tables));
        Sample {
            stack_index,
            attribute_indices: attributes.clone(),
            values: vec![i64::try_from(count.time).unwrap_or(i64::MAX)],
            ..Sample::default()
        }
    });
    samples.collect()
}

/// Where something is in its table; `put` puts it at the end of it, and gives how long it is then.
fn place<Id: Eq + Hash>(places: &mut Places<Id>, id: Id, put: impl FnOnce() -> usize) -> i32 {
    *places.entry(id).or_insert_with(|| index(put() - 1))
}

/// Which thread it was, unless the profile does not tell threads apart.
fn thread_attributes(profile: &Profile, id: ThreadId, tables: &mut Tables) -> Vec<i32> {
    let thread = profile.thread(id);
    let process = profile.process(thread.process);
    let name = if thread.name.is_empty() {
        &thread.comm
    } else {
        &thread.name
    };
    let mut attributes = Vec::new();
    for (key, number) in [("process.pid", process.pid), ("thread.id", thread.tid)] {
        if number > 0 {
            attributes.push(tables.attribute(key, Known::Number(number.into())));
        }
    }
    if !name.is_empty() {
        attributes.push(tables.attribute("thread.name", Known::Text(name.clone())));
    }
    attributes
}

#[derive(Default)]
struct Locations {
    frames: Places<FrameId>,
    functions: Places<FunctionId>,
    modules: Places<ModuleId>,
}

impl Locations {
    fn of(&mut self, id: FrameId, profile: &Profile, tables: &mut Tables) -> i32 {
        let (functions, modules) = (&mut self.functions, &mut self.modules);
        place(&mut self.frames, id, || {
            let frame = profile.frame_of(id);
            let function = profile.function_of(frame.function);
            let function_index = place(functions, frame.function, || {
                let entry = Function {
                    name_strindex: tables.string(&escape(&function.name)),
                    system_name_strindex: 0,
                    filename_strindex: tables.string(&function.file),
                    start_line: function.first_line.into(),
                };
                tables.functions.push(entry);
                tables.functions.len()
            });
            let mut mapping_index = 0;
            // Values of the attribute: semantic conventions, "profile.frame.type".
            let mut kind = Some("cpython");
            if let Some(module_id) = function.module {
                let module = profile.module_of(module_id);
                kind = Some(if module.kernel { "kernel" } else { "native" });
                mapping_index = place(modules, module_id, || {
                    let mut entry = Mapping {
                        filename_strindex: tables.string(&module.path),
                        ..Mapping::default()
                    };
                    if !module.build_id.is_empty() {
                        let hex = module.build_id.iter().map(|byte| format!("{byte:02x}"));
                        let key = "process.executable.build_id.gnu";
                        let attribute = tables.attribute(key, Known::Text(hex.collect()));
                        entry.attribute_indices.push(attribute);
                    }
                    tables.mappings.push(entry);
                    tables.mappings.len()
                });
            } else if function.is_marker() {
                kind = None;
            }
            let kind = kind
                .map(|kind| tables.attribute("profile.frame.type", Known::Text(kind.to_owned())));
            let line = Line {
                function_index,
                line: frame.line.unwrap_or(0).into(),
                column: 0,
            };
            tables.locations.push(Location {
                mapping_index,
                address: 0,
                lines: vec![line],
                attribute_indices: kind.into_iter().collect(),
            });
            tables.locations.len()
        })
    }
}
