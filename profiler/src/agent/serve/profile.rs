//! `/profile`: asks the loop for samples that it takes anyway, waits for them, and writes them in the
//! format that was asked for. Who goes away ends it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc::error::TrySendError, oneshot},
    time::timeout,
};

use super::{Answers, question::Question, refusal::Refusal};
use crate::{
    agent::watch::{Refused, Request, Whose},
    output::Format,
};

/// How much later than promised the loop may answer: native frames get their names at the end.
const GRACE: Duration = Duration::from_secs(60);

/// A flame graph has a script of its own: alone on its page it must not act in our name.
const PICTURE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; sandbox allow-scripts";

/// A written profile, and its place among those that are on their way.
struct Written {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// `/profile`.
pub(super) async fn answer(
    State(answers): State<Arc<Answers>>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let question = Question::read(&uri)?;
    // Held until all of it is sent: a client that reads slowly keeps a profile in memory.
    let permit = Arc::clone(&answers.profiles).try_acquire_owned();
    let permit = permit.map_err(|_| refusal(Refused::TooMany))?;
    let name = file_name(&question);
    let duration = Duration::from_secs(question.seconds.into());
    let (answer, answered) = oneshot::channel();
    let request = Request {
        whose: question.whose,
        duration,
        shape: question.shape,
        timeline: question.format.needs_timeline(),
        answer,
    };
    answers
        .shared
        .requests
        .try_send(request)
        .map_err(|error| match error {
            TrySendError::Full(_) => refusal(Refused::TooMany),
            TrySendError::Closed(_) => refusal(Refused::Ending),
        })?;
    let profile = match timeout(duration + GRACE, answered).await {
        Ok(Ok(profile)) => profile.map_err(refusal)?,
        Ok(Err(_)) => return Err(refusal(Refused::Ending)),
        Err(_) => {
            let text = "the profile did not come in time: /healthz tells whether pyebpf is well";
            return Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, text));
        }
    };
    let format = question.format;
    let writing = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        format.write(&profile, &mut bytes)?;
        anyhow::Ok(Written {
            bytes,
            _permit: permit,
        })
    });
    let written = writing
        .await
        .map_err(anyhow::Error::from)
        .flatten()
        .map_err(|error| {
            let text = format!("the profile could not be written: {error:#}");
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text)
        })?;
    Ok(response(
        format,
        &name,
        Body::from(Bytes::from_owner(written)),
    ))
}

fn response(format: Format, name: &str, body: Body) -> Response {
    let (kind, disposition) = match format {
        Format::Flamegraph => ("image/svg+xml", "inline"),
        Format::Raw => ("text/plain; charset=utf-8", "inline"),
        Format::Speedscope => ("application/json", "attachment"),
        Format::Pprof => ("application/octet-stream", "attachment"),
    };
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let disposition = format!("{disposition}; filename=\"{name}\"");
    let disposition = HeaderValue::try_from(disposition).expect("the name is letters and digits");
    headers.insert(header::CONTENT_DISPOSITION, disposition);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let policy = HeaderValue::from_static(PICTURE_POLICY);
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

/// As `record` names its files: whose, when, the format's extension.
fn file_name(question: &Question) -> String {
    let whose = match &question.whose {
        Whose::Everyone => "python".to_owned(),
        Whose::Pid(pid) => pid.to_string(),
        Whose::Pod(name) | Whose::Container(name) => name.clone(),
    };
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let plain = |letter| if is_plain(letter) { letter } else { '-' };
    let whose: String = whose.chars().map(plain).take(100).collect();
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let extension = question.format.extensions()[0];
    format!(
        "{}-{}.{extension}",
        whose.trim_matches('.'),
        time.replace(':', "")
    )
}

fn refusal(refused: Refused) -> Refusal {
    let text = refused.to_string();
    match refused {
        Refused::Nobody(_) => Refusal::new(StatusCode::NOT_FOUND, text),
        Refused::TooMany => Refusal::later(text, 5),
        Refused::Ending => Refusal::later(text, 30),
    }
}
