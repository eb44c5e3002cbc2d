//! What command lines mean, and which are refused.

use super::*;

fn parse(args: &str) -> Result<Record> {
    let args: Vec<OsString> = args.split(' ').map(OsString::from).collect();
    let cli = Cli::read(&args)?;
    match cli.command {
        Command::Record(args) => args.check(),
        Command::Completions { .. } | Command::Daemon(_) | Command::Doctor(_) => {
            bail!("not record")
        }
    }
}

#[test]
fn the_flags_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn nothing_named_means_every_python() {
    let record = parse("pyebpf record").unwrap();
    assert_eq!(record.selection, Selection::All);
    assert_eq!((record.rate, record.limit), (99, Limit::Unlimited));
    assert_eq!(record.format, Format::Flamegraph);
}

#[test]
fn targets_are_pids_or_a_command() {
    let record = parse("pyebpf record -p 7 --pid 3 -p 7 -s").unwrap();
    assert_eq!(record.selection, Selection::Pids(vec![3, 7]));
    assert!(record.children);
    let record = parse("pyebpf record -d 5 -- python3 -c pass").unwrap();
    let command = ["python3", "-c", "pass"].map(OsString::from).to_vec();
    assert_eq!(record.selection, Selection::Command(command));
    assert!(parse("pyebpf record -p 7 -- python3").is_err());
    let record = parse("pyebpf record -- python3 --").unwrap();
    let command = ["python3", "--"].map(OsString::from).to_vec();
    assert_eq!(record.selection, Selection::Command(command));
    for empty in ["pyebpf record --", "pyebpf record -p 7 --"] {
        let error = parse(empty).unwrap_err().to_string();
        assert!(error.contains("no command after `--`"), "{error}");
        assert!(error.contains("Usage: pyebpf record"), "{error}");
    }
    assert!(parse("pyebpf record --all-python -p 7").is_err());
}

#[test]
fn native_frames_are_folded_unless_all_are_wanted() {
    let native = |flags: &str| parse(&format!("pyebpf record {flags}")).map(|record| record.native);
    assert_eq!(native("-t").unwrap(), None);
    for folded in [
        "--native",
        "-n",
        "-nt",
        "--native=folded",
        "--native -p 7",
        "-n -- python3",
    ] {
        assert_eq!(native(folded).unwrap(), Some(Native::Folded), "{folded}");
    }
    assert_eq!(native("--native=all").unwrap(), Some(Native::All));
    assert_eq!(native("-n=all -p 7").unwrap(), Some(Native::All));
    let error = native("--native=some").unwrap_err().to_string();
    assert!(error.contains("[possible values: folded, all]"), "{error}");
}

#[test]
fn subprocesses_are_somebody_s() {
    let error = parse("pyebpf record -s").unwrap_err().to_string();
    assert!(error.contains("`--pid`"), "{error}");
    assert!(parse("pyebpf record -s -- sh").unwrap().children);
    // Whoever names all of them has them.
    assert!(!parse("pyebpf record --all-python -s").unwrap().children);
}

#[test]
fn control_groups_and_containers_are_named_together_and_alone() {
    let record = parse("pyebpf record --cgroup /a --container 0123ABCD --cgroup b -s").unwrap();
    let within = Selection::Within {
        cgroups: vec!["/a".to_owned(), "b".to_owned()],
        containers: vec!["0123abcd".to_owned()],
    };
    assert_eq!((record.selection, record.children), (within, false));
    for flag in ["--cgroup /a", "--container 0123"] {
        for other in ["--all-python", "-p 7", "-- python3"] {
            let error = parse(&format!("pyebpf record {flag} {other}")).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("cannot be used with"), "{error}");
        }
    }
    for bad in ["012", "web", "0123x", &"0".repeat(65)] {
        let error = parse(&format!("pyebpf record --container {bad}")).unwrap_err();
        assert!(error.to_string().contains("docker ps"), "{error}");
    }
    assert!(parse("pyebpf record --cgroup ").is_err());
}

#[test]
fn durations_are_seconds_or_have_units() {
    let seconds = |text| match parse_duration(text).unwrap() {
        Limit::For(duration) => duration.as_secs_f64(),
        Limit::Unlimited => f64::INFINITY,
    };
    assert_eq!(seconds("10"), 10.0);
    assert_eq!(seconds("0.5"), 0.5);
    assert_eq!(seconds("90s"), 90.0);
    assert_eq!(seconds("5m"), 300.0);
    assert_eq!(seconds("unlimited"), f64::INFINITY);
    for bad in ["0", "-1", "ten", "", "nan", "1e300", "0s"] {
        assert!(parse_duration(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn formats_come_from_the_flag_or_the_extension() {
    let format = |args| parse(args).unwrap().format;
    assert_eq!(format("pyebpf record -o a.json"), Format::Speedscope);
    assert_eq!(format("pyebpf record -o a.json -f raw"), Format::Raw);
    assert_eq!(format("pyebpf record -o -"), Format::Flamegraph);
    let error = parse("pyebpf record -o a.doc").unwrap_err().to_string();
    assert!(error.contains("a.doc"), "{error}");
}

#[test]
fn statistics_go_to_stderr_or_to_a_file() {
    let stats = |text: &str| parse(&format!("pyebpf record --stats {text}"));
    assert_eq!(stats("json").unwrap().stats, Some(Stats::Stderr));
    let file = Some(Stats::File(PathBuf::from("a/b.json")));
    assert_eq!(stats("a/b.json").unwrap().stats, file);
    for bad in ["text", "b.txt", "-"] {
        let error = stats(bad).unwrap_err().to_string();
        assert!(error.contains("--stats json"), "{error}");
    }
}

#[test]
fn buffers_are_powers_of_two_within_bounds() {
    for (text, bytes) in [
        ("65536", 1 << 16),
        ("64K", 1 << 16),
        ("2m", 2 << 20),
        ("2G", 1 << 31),
    ] {
        assert_eq!(parse_buffer(text).unwrap(), bytes, "{text}");
    }
    for bad in [
        "",
        "K",
        "0",
        "32K",
        "65K",
        "4G",
        "-1",
        "1T",
        "99999999999G",
        "é",
    ] {
        assert!(parse_buffer(bad).is_err(), "{bad}");
    }
}

#[test]
fn folding_lines_and_showing_none_go_together() {
    for args in ["-F --nolineno", "--nolineno --function", "--nolineno"] {
        let record = parse(&format!("pyebpf record {args}")).unwrap();
        assert_eq!(record.shape.line, LineShape::None, "{args}");
    }
    assert_eq!(
        parse("pyebpf record -F").unwrap().shape.line,
        LineShape::First
    );
}

#[test]
fn a_rate_of_zero_is_a_usage_error() {
    let error = Cli::try_parse_from(["pyebpf", "record", "-r", "0"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ValueValidation);
    assert_eq!(error.exit_code(), 2);
}
