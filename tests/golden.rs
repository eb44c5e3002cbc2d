//! Every format over one example profile, compared with files that were read by eye. After a wanted
//! change, `PYEBPF_BLESS=1 cargo test -p pyebpf-tests --test golden` writes them anew: read the diff.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use prost::Message;
use pyebpf::output::Format;
use pyebpf::output::pprof::proto;
use pyebpf::profile::{LineShape, Profile, Shape};
use pyebpf_tests::example;

const ALL: Shape = Shape {
    line: LineShape::Current,
    threads: true,
    full_filenames: false,
    processes: true,
};

fn written(format: Format, profile: &Profile) -> Vec<u8> {
    let mut bytes = Vec::new();
    format.write(profile, &mut bytes).unwrap();
    bytes
}

fn text(format: Format, profile: &Profile) -> String {
    String::from_utf8(written(format, profile)).unwrap()
}

#[track_caller]
fn check(name: &str, found: &str) {
    // A release changes no golden.
    let found = &found.replace(
        concat!("pyebpf ", env!("CARGO_PKG_VERSION")),
        "pyebpf VERSION",
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data/golden")
        .join(name);
    if std::env::var_os("PYEBPF_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        wanted == *found,
        "{} differs from what was written now:\n{found}",
        path.display()
    );
}

#[test]
fn raw() {
    check("raw.txt", &text(Format::Raw, &example::profile(ALL)));
    check(
        "raw-bare.txt",
        &text(Format::Raw, &example::profile(Shape::default())),
    );
    let functions = Shape {
        line: LineShape::First,
        ..Shape::default()
    };
    check(
        "raw-functions.txt",
        &text(Format::Raw, &example::profile(functions)),
    );
    let full = Shape {
        line: LineShape::None,
        full_filenames: true,
        ..Shape::default()
    };
    check(
        "raw-full-filenames-no-lines.txt",
        &text(Format::Raw, &example::profile(full)),
    );
    assert_eq!(text(Format::Raw, &example::empty(ALL)), "");
}

#[test]
fn flamegraph() {
    // The script in the picture is inferno's, and none of ours to check.
    let drawn = |profile: &Profile| {
        let svg = text(Format::Flamegraph, profile);
        match (svg.find("<script"), svg.find("</script>")) {
            (Some(start), Some(end)) => format!("{}{}", &svg[..start], &svg[end + 9..]),
            _ => svg,
        }
        .replace("<g>", "\n<g>")
    };
    check("flamegraph.svg", &drawn(&example::profile(ALL)));
    check("flamegraph-empty.svg", &drawn(&example::empty(ALL)));
}

#[test]
fn speedscope() {
    let json = |profile: &Profile| {
        text(Format::Speedscope, profile)
            .replace("},{", "},\n{")
            .replace("[{", "[\n{")
            .replace("[[", "[\n[")
            .replace("],[", "],\n[")
    };
    check("speedscope.json", &json(&example::profile(ALL)));
    check(
        "speedscope-bare.json",
        &json(&example::profile(Shape::default())),
    );
    check("speedscope-empty.json", &json(&example::empty(ALL)));
}

#[test]
fn pprof() {
    let listed = |profile: &Profile| list(&written(Format::Pprof, profile));
    check("pprof.txt", &listed(&example::profile(ALL)));
    check("pprof-empty.txt", &listed(&example::empty(ALL)));
}

#[test]
fn every_format_writes_the_same_bytes_again() {
    for format in [
        Format::Flamegraph,
        Format::Raw,
        Format::Speedscope,
        Format::Pprof,
    ] {
        let [once, again] = [(); 2].map(|()| written(format, &example::profile(ALL)));
        assert!(once == again, "{format:?}");
    }
}

/// A pprof file as text.
fn list(file: &[u8]) -> String {
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    let profile = proto::Profile::decode(&bytes[..]).unwrap();
    let text = |index: i64| profile.string_table[usize::try_from(index).unwrap()].as_str();
    assert_eq!(text(0), "");
    let kind = |kind: &proto::ValueType| format!("{}/{}", text(kind.r#type), text(kind.unit));

    let mut list = String::new();
    let mut add = |line: String| list.push_str(&(line + "\n"));
    add(format!(
        "types {}",
        profile
            .sample_type
            .iter()
            .map(kind)
            .collect::<Vec<_>>()
            .join(" ")
    ));
    add(format!("default {}", text(profile.default_sample_type)));
    add(format!(
        "period {} {}",
        profile.period,
        profile.period_type.iter().map(kind).collect::<String>()
    ));
    add(format!(
        "time {} for {}",
        profile.time_nanos, profile.duration_nanos
    ));
    profile
        .comment
        .iter()
        .for_each(|comment| add(format!("comment {}", text(*comment))));
    for mapping in &profile.mapping {
        let has = [
            (mapping.has_functions, "functions"),
            (mapping.has_filenames, "filenames"),
            (mapping.has_line_numbers, "lines"),
            (mapping.has_inline_frames, "inlined"),
        ];
        let has = has.iter().filter(|has| has.0).map(|has| has.1);
        add(format!(
            "mapping {} {} [{}] has {}",
            mapping.id,
            text(mapping.filename),
            text(mapping.build_id),
            has.collect::<Vec<_>>().join(" ")
        ));
    }
    for sample in &profile.sample {
        add(format!("sample {:?}", sample.value));
        for label in &sample.label {
            let value = if label.str == 0 {
                label.num.to_string()
            } else {
                text(label.str).to_owned()
            };
            add(format!("  {}={value}", text(label.key)));
        }
        for id in &sample.location_id {
            let location = profile
                .location
                .iter()
                .find(|location| location.id == *id)
                .unwrap();
            assert_eq!(location.line.len(), 1);
            let mut mappings = profile.mapping.iter();
            assert!(mappings.any(|mapping| mapping.id == location.mapping_id));
            let line = location.line[0];
            let mut functions = profile.function.iter();
            let function = functions
                .find(|function| function.id == line.function_id)
                .unwrap();
            assert_eq!(function.system_name, 0);
            add(format!(
                "    {} | {} | from {} | at {} | in {}",
                text(function.name),
                text(function.filename),
                function.start_line,
                line.line,
                location.mapping_id
            ));
        }
    }
    list
}
