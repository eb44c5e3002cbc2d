//! `/metrics`: the agent's figures in Prometheus's text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>, 0.0.4). `docs/metrics.md` has the
//! same table for people; a test holds them together. Names stay.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};

use super::Answers;
use crate::agent::{export::state::State as Place, status::Status, watch::WATCHES_MAX};

/// What is shown beside the status.
struct Other {
    places: Vec<Place>,
    /// Profiles that are being taken for somebody or on their way.
    profiles: usize,
    refused: u64,
}

/// `/metrics`.
pub(super) async fn answer(State(answers): State<Arc<Answers>>) -> Response {
    let status = Arc::clone(&answers.shared.status.borrow());
    let other = Other {
        places: (answers.shared.places)(),
        profiles: WATCHES_MAX - answers.profiles.available_permits().min(WATCHES_MAX),
        refused: answers.refused.load(Relaxed),
    };
    let headers = [
        (
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        ),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, text(&status, &other)).into_response()
}

fn text(status: &Status, other: &Other) -> String {
    let mut out = Metrics::default();
    out.gauge("build_info", "The version that runs.")
        .of(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    out.gauge("uptime_seconds", "For how long the agent has sampled.")
        .value(status.up.as_secs_f64());
    of_samples(&mut out, status);
    of_costs(&mut out, status);
    of_places(&mut out, &other.places);
    out.gauge(
        "requested_profiles",
        "Profiles that somebody has asked for at /profile, now.",
    )
    .value(other.profiles);
    out.counter(
        "connections_refused_total",
        "Connections for which there was no room.",
    )
    .value(other.refused);
    out.text
}

fn of_samples(out: &mut Metrics, status: &Status) {
    out.counter("samples_total", "Samples that were read, by outcome.")
        .by("outcome", &status.outcomes);
    out.counter(
        "samples_lost_total",
        "Samples that are in no profile, by reason.",
    )
    .by("reason", &status.losses);
    out.counter(
        "samples_excluded_total",
        "Samples that settings or annotations left out.",
    )
    .value(status.excluded);
    out.counter(
        "profiles_total",
        "Profiles that were made, one for each container and interval.",
    )
    .value(status.portions);
    let excluded = status
        .processes
        .iter()
        .filter(|process| process.excluded)
        .count();
    out.gauge("targets", "Processes that run Python.")
        .of(&[("state", "profiled")], status.processes.len() - excluded)
        .of(&[("state", "excluded")], excluded);
    out.gauge("sampling_rate_hertz", "Samples a second and CPU, now.")
        .value(status.rate);
    out.gauge(
        "sampling_rate_asked_hertz",
        "Samples a second and CPU, as the settings have it.",
    )
    .value(status.rate_asked);
    out.counter(
        "sampling_rate_lowered_total",
        "How often the rate was lowered, by what was short.",
    )
    .by("reason", &status.lowered);
}

fn of_costs(out: &mut Metrics, status: &Status) {
    out.counter("cpu_seconds_total", "CPU time of the agent's process.")
        .value(status.cpu.as_secs_f64());
    out.counter(
        "kernel_program_seconds_total",
        "CPU time of the programs in the kernel.",
    )
    .value(status.kernel_time.as_secs_f64());
    out.counter("kernel_program_runs_total", "How often they ran.")
        .value(status.kernel_runs);
    out.gauge("memory_bytes", "Memory of the agent's process.")
        .value(status.memory);
    out.gauge(
        "kernel_memory_bytes",
        "The kernel's memory for the agent's maps and buffers.",
    )
    .value(status.kernel_memory);
}

fn of_places(out: &mut Metrics, places: &[Place]) {
    let each = |metric: &mut Metrics, value: fn(&Place) -> u64| {
        for place in places {
            metric.of(&[("place", place.name)], value(place));
        }
    };
    each(
        out.counter("export_sent_total", "Profiles that a place has taken."),
        |it| it.sent,
    );
    each(
        out.counter("export_failed_total", "Attempts to send that failed."),
        |it| it.failed,
    );
    each(
        out.counter(
            "export_retried_total",
            "Those of them that were made again, or will be.",
        ),
        |it| it.retried,
    );
    out.counter(
        "export_dropped_total",
        "Profiles that a place will never have, by reason.",
    );
    for place in places {
        for (reason, count) in &place.dropped {
            out.of(&[("place", place.name), ("reason", reason)], count);
        }
    }
    each(
        out.gauge("export_waiting", "Profiles that wait to be sent."),
        |it| it.waiting,
    );
    each(out.gauge("export_waiting_bytes", "Bytes of those."), |it| {
        it.waiting_bytes
    });
    each(
        out.gauge("export_spool_failing", "1: the spool can't be written."),
        |it| it.spool_error.is_some().into(),
    );
}

/// The text, and the name of the metric that is being written.
#[derive(Default)]
struct Metrics {
    text: String,
    name: &'static str,
}

impl Metrics {
    fn counter(&mut self, name: &'static str, help: &str) -> &mut Metrics {
        self.begin(name, "counter", help)
    }

    fn gauge(&mut self, name: &'static str, help: &str) -> &mut Metrics {
        self.begin(name, "gauge", help)
    }

    fn begin(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Metrics {
        self.name = name;
        let _ = writeln!(
            self.text,
            "# HELP pyebpf_{name} {help}\n# TYPE pyebpf_{name} {kind}"
        );
        self
    }

    fn value(&mut self, value: impl Display) {
        self.of(&[], value);
    }

    fn by(&mut self, label: &str, values: &BTreeMap<&'static str, u64>) {
        for (name, value) in values {
            self.of(&[(label, name)], value);
        }
    }

    fn of(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Metrics {
        let _ = write!(self.text, "pyebpf_{}", self.name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{label}=\"{}\"", escaped(text));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
        self
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;

    const DOCUMENTED: &str = include_str!("../../../../docs/metrics.md");

    fn example() -> String {
        let status = Status {
            up: Duration::from_millis(12_500),
            rate: 10,
            rate_asked: 19,
            outcomes: [("complete", 90), ("truncated_depth", 2)].into(),
            losses: [("ring_full", 1)].into(),
            lowered: [("cpu", 1)].into(),
            processes: vec![Arc::default()],
            ..Status::default()
        };
        let place = Place {
            name: "parca",
            sent: 7,
            retried: 4,
            dropped: [("spool_full", 3)].into(),
            spool_error: Some("the disk is full".to_owned()),
            ..Place::default()
        };
        let other = Other {
            places: vec![place],
            profiles: 2,
            refused: 5,
        };
        text(&status, &other)
    }

    #[test]
    fn each_metric_is_told_before_its_values() {
        let text = example();
        for line in [
            "# TYPE pyebpf_samples_total counter",
            "pyebpf_samples_total{outcome=\"complete\"} 90",
            "pyebpf_samples_total{outcome=\"truncated_depth\"} 2",
            "pyebpf_samples_lost_total{reason=\"ring_full\"} 1",
            "pyebpf_targets{state=\"profiled\"} 1",
            "pyebpf_sampling_rate_hertz 10",
            "pyebpf_uptime_seconds 12.5",
            "pyebpf_export_sent_total{place=\"parca\"} 7",
            "pyebpf_export_retried_total{place=\"parca\"} 4",
            "pyebpf_export_spool_failing{place=\"parca\"} 1",
            "pyebpf_export_dropped_total{place=\"parca\",reason=\"spool_full\"} 3",
            "pyebpf_requested_profiles 2",
            "pyebpf_connections_refused_total 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        let mut told = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                told = name;
            } else if !line.starts_with("# HELP ") {
                assert_eq!(line.split(['{', ' ']).next(), Some(told), "{line}");
            }
        }
    }

    #[test]
    fn every_metric_is_documented_and_every_documented_one_is_there() {
        let text = example();
        let there: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        let documented: BTreeSet<&str> = DOCUMENTED
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
            .collect();
        assert_eq!(there, documented);
    }

    #[test]
    fn values_of_labels_are_escaped() {
        let mut out = Metrics::default();
        out.gauge("odd", "Odd.").of(&[("a", "x\"y\\z\n")], 1);
        assert!(
            out.text.ends_with("pyebpf_odd{a=\"x\\\"y\\\\z\\n\"} 1\n"),
            "{}",
            out.text
        );
    }
}
