//! What others' programs read in our files: `go tool pprof` and speedscope's own importer. They are
//! looked for in the cache folder (`~/.cache/pyebpf`); where one is missing, its test says so.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use pyebpf::output::Format;
use pyebpf::profile::{LineShape, Profile, Shape};
use pyebpf_tests::{example, installed, skip};
use serde_json::Value;

const ALL: Shape = Shape {
    line: LineShape::Current,
    threads: true,
    full_filenames: false,
    processes: true,
};

/// The second process of the example.
const OTHER: &str = r#"process 77:"/usr/bin/python3 -m größe <x & y>" in container 0123456789ab"#;

#[test]
fn pprof_reads_names_totals_and_labels() -> anyhow::Result<()> {
    let Some(go) = installed("pprof_reads_names_totals_and_labels", "venv/bin/go") else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let file = write(
        Format::Pprof,
        &example::profile(ALL),
        folder.path(),
        "a.pb.gz",
    )?;

    let raw = pprof(&go, &file, &["-raw"])?;
    for wanted in [
        "PeriodType: cpu nanoseconds",
        "Period: 10101010",
        "Duration: 2s",
        "samples/count cpu/nanoseconds",
        "          5   50000000: ",
        "pid:[41]",
        "tid:[42]",
        r"thread:[worker\x3b1 #2]",
        "comm:[pool-1]",
        "Shop.sell.<locals>.<lambda> /srv/shop/shop.py:12",
        " <module> /srv/shop/shop.py:90",
        "JSON.decode /usr/lib/python3.11/json/decoder.py:337",
        r"weird\x3bname\nwith\\ /srv/größe;/数.py",
        "M=1 <module> /srv/shop/shop.py:90",
        "M=3 adler32_z :0",
        "shop::sort(std::vector<int, std::allocator<int> >&) /build/shop/sort.cpp:31",
        "1: 0x0/0x0/0x0 python  [FN][FL][LN][IN]",
        "3: 0x0/0x0/0x0 /usr/lib/x86_64-linux-gnu/libz.so.1.2.13 be010f [FN]",
        "4: 0x0/0x0/0x0 /srv/größe;/libshop (1).so (deleted)  [FN][FL][LN][IN]",
        "[truncated: depth]",
    ] {
        ensure!(
            raw.contains(wanted),
            "{wanted:?} is not in what pprof -raw prints:\n{raw}"
        );
    }

    let top = pprof(&go, &file, &["-top", "-sample_index=samples"])?;
    ensure!(
        top.contains("Showing nodes accounting for 27, 100% of 27 total"),
        "{top}"
    );
    // flat, flat %, sum %, cumulative, cumulative %, name
    for (flat, cumulative, name) in [
        ("5", "5", "JSON.decode"),
        ("1", "8", "Shop.sell"),
        ("0", "8", "<module>"),
        ("3", "3", "walk"),
        ("0", "3", "[truncated: depth]"),
        ("0", "5", "größe.数"),
        ("1", "1", "[unreadable: thread state]"),
        ("3", "3", "adler32_z"),
        ("0", "2", "compress2"),
        ("2", "2", "ext4_file_read_iter"),
        (
            "1",
            "1",
            "shop::{lambda(int, int)#1}::operator()(int, int) const",
        ),
        (
            "0",
            "1",
            "void std::sort<int*, shop::Less (*)(int)>(int*, int*)",
        ),
        ("0", "1", "[unknown in libshop (1).so+0x1a2b]"),
    ] {
        let found = top.lines().any(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            columns.len() > 5
                && (columns[0], columns[3], columns[5..].join(" ").as_str())
                    == (flat, cumulative, name)
        });
        ensure!(
            found,
            "{name} with {flat} and {cumulative} is not in what pprof -top prints:\n{top}"
        );
    }

    // pprof takes what looks like a number with a unit for one: `^` does not.
    for label in ["pid=77", "container=^0123456789ab", "cgroup=^/system.slice"] {
        let focus = format!("-tagfocus={label}");
        let one = pprof(&go, &file, &["-top", "-sample_index=samples", &focus])?;
        ensure!(
            one.contains("of 27 total") && one.contains("6, 22.22%"),
            "{label}: {one}"
        );
    }
    let time = pprof(&go, &file, &["-top"])?;
    ensure!(
        time.contains("Type: cpu") && time.contains("of 270ms total"),
        "{time}"
    );
    Ok(())
}

#[test]
fn pprof_reads_an_empty_profile() -> anyhow::Result<()> {
    let Some(go) = installed("pprof_reads_an_empty_profile", "venv/bin/go") else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let file = write(
        Format::Pprof,
        &example::empty(ALL),
        folder.path(),
        "a.pb.gz",
    )?;
    let raw = pprof(&go, &file, &["-raw"])?;
    ensure!(raw.contains("samples/count cpu/nanoseconds"), "{raw}");
    Ok(())
}

#[test]
fn speedscope_reads_threads_frames_and_times() -> anyhow::Result<()> {
    let Some(release) = speedscope("speedscope_reads_threads_frames_and_times") else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let profile = example::profile(Shape::default());
    let file = write(Format::Speedscope, &profile, folder.path(), "a.json")?;
    let read = import(&release, &file)?;
    ensure!(
        read["name"] == r"pyebpf record -d 2 -o 'a\x3bb.svg'",
        "{read:#}"
    );

    let profiles = read["profiles"].as_array().context("profiles is a list")?;
    let names: Vec<&str> = profiles
        .iter()
        .filter_map(|profile| profile["name"].as_str())
        .collect();
    let shop = r#"process 41:"python3 shop.py --sort 'a\x3bb'\n" thread"#;
    assert_eq!(
        names,
        [
            format!("{shop} (41): MainThread"),
            format!(r"{shop} (42): worker\x3b1 #2"),
            format!("{OTHER} thread (77): python3"),
            format!("{shop} (43): pool-2"),
        ]
    );
    let totals: Vec<u64> = profiles
        .iter()
        .filter_map(|profile| profile["total"].as_u64())
        .collect();
    assert_eq!(
        totals,
        [8, 6, 6, 7].map(|samples| samples * example::WEIGHT)
    );
    assert_eq!(
        totals.iter().sum::<u64>(),
        example::SAMPLES * example::WEIGHT
    );
    assert!(
        profiles
            .iter()
            .all(|profile| profile["unit"] == "nanoseconds")
    );

    let frames = profiles[0]["frames"]
        .as_array()
        .context("frames is a list")?;
    let decode = frames
        .iter()
        .find(|frame| frame["name"] == "JSON.decode")
        .context("JSON.decode")?;
    assert_eq!(
        (&decode["file"], &decode["line"]),
        (&"json/decoder.py".into(), &337.into())
    );
    assert_eq!(decode["self"], 5 * example::WEIGHT);
    // In the order of time: JSON.decode first and, after the others, once more.
    let decoded = calls(&profiles[0], "JSON.decode");
    assert_eq!(decoded, [(2, 0, 4), (2, 7, 8)]);
    assert_eq!(calls(&profiles[0], "<module>"), [(0, 0, 8)]);
    // Four activations of one recursive function above the marker.
    assert_eq!(calls(&profiles[1], "[truncated: depth]"), [(0, 0, 3)]);
    assert_eq!(
        calls(&profiles[1], "walk"),
        [(1, 0, 3), (2, 0, 3), (3, 0, 3), (4, 0, 3)]
    );
    Ok(())
}

#[test]
fn speedscope_shows_processes_and_threads_as_frames_when_asked() -> anyhow::Result<()> {
    let test = "speedscope_shows_processes_and_threads_as_frames_when_asked";
    let Some(release) = speedscope(test) else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let file = write(
        Format::Speedscope,
        &example::profile(ALL),
        folder.path(),
        "a.json",
    )?;
    let read = import(&release, &file)?;
    let lone = &read["profiles"][2];
    assert_eq!(calls(lone, OTHER), [(0, 0, 6)]);
    assert_eq!(calls(lone, "thread (77): python3"), [(1, 0, 6)]);
    assert_eq!(calls(lone, "größe.数"), [(2, 0, 5)]);
    Ok(())
}

#[test]
fn speedscope_reads_an_empty_profile_and_our_collapsed_stacks() -> anyhow::Result<()> {
    let test = "speedscope_reads_an_empty_profile_and_our_collapsed_stacks";
    let Some(release) = speedscope(test) else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let file = write(
        Format::Speedscope,
        &example::empty(ALL),
        folder.path(),
        "empty.json",
    )?;
    let read = import(&release, &file)?;
    assert_eq!(read["profiles"][0]["name"], "no samples");
    assert_eq!(read["profiles"][0]["total"], 0);

    let file = write(Format::Raw, &example::profile(ALL), folder.path(), "a.txt")?;
    let read = import(&release, &file)?;
    assert_eq!(read["profiles"][0]["total"], example::SAMPLES);
    let frames = read["profiles"][0]["frames"]
        .as_array()
        .context("frames is a list")?;
    let named = |name: &str| frames.iter().any(|frame| frame["name"] == name);
    assert!(named(r"weird\x3bname\nwith\\ (数.py)"), "{frames:#?}");
    Ok(())
}

/// Depth, start and end (in samples) of the calls of a function.
fn calls(profile: &Value, name: &str) -> Vec<(u64, u64, u64)> {
    let calls = profile["calls"].as_array().into_iter().flatten();
    let number = |call: &Value, key: &str| call[key].as_u64().unwrap();
    calls
        .filter(|call| call["name"] == name)
        .map(|call| {
            let samples = |key| number(call, key) / example::WEIGHT;
            (number(call, "depth"), samples("start"), samples("end"))
        })
        .collect()
}

fn write(format: Format, profile: &Profile, folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    format.write(profile, &mut std::fs::File::create(&path)?)?;
    Ok(path)
}

fn pprof(go: &Path, file: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(go);
    command.args(["tool", "pprof"]).args(arguments).arg(file);
    // Everything is in the file: nothing is to be fetched, asked for or kept.
    command
        .env("GOPROXY", "off")
        .env("GOFLAGS", "-mod=mod")
        .env("PPROF_TMPDIR", file.with_extension("d"));
    output(command)
}

fn import(release: &Path, file: &Path) -> anyhow::Result<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("readers/speedscope.mjs");
    let mut command = Command::new("node");
    command.arg(script).arg(release).arg(file);
    serde_json::from_str(&output(command)?).context("the script prints JSON")
}

fn output(mut command: Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} did not start"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {errors}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn speedscope(test: &str) -> Option<PathBuf> {
    if let Err(error) = Command::new("node").arg("--version").output() {
        skip(test, &format!("node does not start: {error}"));
        return None;
    }
    installed(test, "npm/node_modules/speedscope/dist/release")
}
