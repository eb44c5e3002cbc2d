//! `/processes`: what runs Python here, whose it is and how complete its stacks are; as JSON, or as a
//! table for a terminal.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, Uri, header},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;

use super::{Answers, refusal::text_of};
use crate::{
    agent::status::{Process, Status},
    profile::escape,
};

/// The last answer, which all share who ask before the status changes.
#[derive(Default)]
pub(super) struct Latest(Mutex<Option<(Arc<Status>, Bytes)>>);

#[derive(Serialize)]
struct Everything<'a> {
    up_seconds: f64,
    rate: u32,
    rate_asked: u32,
    processes: &'a [Arc<Process>],
}

impl Latest {
    fn json(&self, status: &Arc<Status>) -> Bytes {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, json)) = &*latest
            && Arc::ptr_eq(of, status)
        {
            return json.clone();
        }
        let everything = Everything {
            up_seconds: status.up.as_secs_f64(),
            rate: status.rate,
            rate_asked: status.rate_asked,
            processes: &status.processes,
        };
        let json = serde_json::to_vec(&everything).expect("text and numbers are JSON");
        let json = Bytes::from(json);
        *latest = Some((Arc::clone(status), json.clone()));
        json
    }
}

/// `/processes`, with `?text` or for those who accept plain text as a table.
pub(super) async fn answer(
    State(answers): State<Arc<Answers>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let status = Arc::clone(&answers.shared.status.borrow());
    let accepted = headers
        .get(header::ACCEPT)
        .map(|accepted| accepted.as_bytes());
    if uri.query() == Some("text") || accepted.is_some_and(|it| it.starts_with(b"text/plain")) {
        return text_of(table(&status.processes));
    }
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, answers.processes.json(&status)).into_response()
}

/// One line each; names come from processes and are escaped.
fn table(processes: &[Arc<Process>]) -> String {
    let mut rows =
        vec![["PID", "PYTHON", "SAMPLES", "COMPLETE", "WHERE", "COMMAND"].map(str::to_owned)];
    rows.extend(processes.iter().map(|process| {
        let complete = match (process.excluded, process.samples) {
            (true, _) => "left out".to_owned(),
            (_, 0) => "-".to_owned(),
            (_, samples) => format!("{:.1}%", process.complete as f64 * 100.0 / samples as f64),
        };
        let part = |name: &str| process.labels.get(name).map(|value| escape(value));
        let parts = ["namespace", "pod", "container"]
            .into_iter()
            .filter_map(part);
        let place = parts.collect::<Vec<_>>().join("/");
        [
            process.pid.to_string(),
            escape(&process.python),
            process.samples.to_string(),
            complete,
            if place.is_empty() {
                "-".to_owned()
            } else {
                place
            },
            escape(&process.command),
        ]
    }));
    let widths: [usize; 5] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    });
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        text += &row[5];
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_obeys_no_process() {
        let process = |pid, command: &str, pod: Option<&str>| {
            let labels = pod.map(|pod| ("pod".to_owned(), pod.to_owned()));
            Arc::new(Process {
                pid,
                command: command.to_owned(),
                python: "3.12.1".to_owned(),
                labels: Arc::new(labels.into_iter().collect()),
                excluded: false,
                samples: 8,
                complete: 7,
            })
        };
        let processes = [
            process(7, "python3 a.py", None),
            process(12345, "\x1b[2Jx\ny", Some("größe")),
        ];
        let expected = "PID    PYTHON  SAMPLES  COMPLETE  WHERE  COMMAND\n\
                        7      3.12.1  8        87.5%     -      python3 a.py\n\
                        12345  3.12.1  8        87.5%     größe  \\x1b[2Jx\\ny\n";
        assert_eq!(table(&processes), expected);
    }
}
