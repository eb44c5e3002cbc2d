use clap::{Command, FromArgMatches as _};

use super::*;

fn arguments(said: &[&str]) -> ArgMatches {
    let command = Start::augment_args(Settings::augment_args(Command::new("daemon")));
    command.get_matches_from([&["daemon"], said].concat())
}

fn settings(said: &[&str], file: &str) -> Result<Settings> {
    let arguments = arguments(said);
    Settings::from_arg_matches(&arguments)?.over(&arguments, file)
}

#[test]
fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
    let file = "rate = 29\ninterval = \"1m\"\n[parca]\nurl = \"http://parca\"\n[labels]\nfixed = [\"a=b\"]";
    let read = settings(&["--rate", "39", "--label", "c=d"], file).unwrap();
    assert_eq!(
        (read.rate, read.interval),
        (39, Span(Duration::from_secs(60)))
    );
    assert_eq!(read.parca.url.as_deref(), Some("http://parca"));
    assert_eq!(read.labels.fixed, ["c=d"]);
    assert_eq!(read.budget.max_memory, Bytes(256 << 20));
}

#[test]
fn what_is_printed_is_read_back_as_it_was() {
    let said = [
        "--native",
        "--max-cpu",
        "0.5",
        "--folder-max-size",
        "3G",
        "--include-namespace",
        "a,b",
    ];
    let said = Settings::from_arg_matches(&arguments(&said)).unwrap();
    let printed = said.to_toml();
    assert!(
        printed.contains("native = \"folded\"") && printed.contains("max_size = \"3GiB\""),
        "{printed}"
    );
    let read = settings(&[], &printed).unwrap();
    assert_eq!(read.to_toml(), printed);
}

#[test]
fn every_setting_of_a_section_has_the_name_of_its_flag() {
    let arguments = arguments(&[]);
    let settings = Settings::from_arg_matches(&arguments).unwrap();
    let known: Vec<&str> = arguments.ids().map(clap::Id::as_str).collect();
    for (section, value) in toml::Table::try_from(&settings).unwrap() {
        for key in value.as_table().into_iter().flat_map(toml::Table::keys) {
            let id = format!("{section}_{key}");
            // A list that is empty has no match.
            let is_list = value[key].is_array();
            assert!(is_list || known.contains(&&*id), "{id} is not in {known:?}");
        }
    }
}

#[test]
fn what_is_no_setting_is_refused_with_its_line() {
    let error = |file| format!("{:#}", settings(&[], file).unwrap_err());
    let typo = error("rate = 9\n[pyroscope]\nurll = \"x\"");
    assert!(typo.contains("line 3") && typo.contains("urll"), "{typo}");
    let wrong = error("interval = \"soon\"");
    assert!(
        wrong.contains("line 1") && wrong.contains("soon"),
        "{wrong}"
    );
}

#[test]
fn sizes_and_times_are_read_as_people_write_them() {
    let bytes = |text: &str| text.parse::<Bytes>().unwrap();
    assert_eq!(bytes("256MiB"), Bytes(256 << 20));
    assert_eq!(bytes("64k"), Bytes(64 << 10));
    assert_eq!(bytes("1G").to_string(), "1GiB");
    assert_eq!(bytes("1025").to_string(), "1025");
    assert!("-1K".parse::<Bytes>().is_err() && "99999999999T".parse::<Bytes>().is_err());
    assert_eq!("90".parse::<Span>().unwrap(), "1m 30s".parse().unwrap());
}
