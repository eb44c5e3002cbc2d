//! An answer to who does not get what they have asked for: what was wrong and what to do, as text.

use axum::{
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

/// Most characters of a value that is shown again.
const SHOWN_MAX: usize = 80;

/// Why not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: String,
    /// Seconds after which it may be different.
    pub(super) retry: Option<u32>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Refusal {
        Refusal {
            status,
            text: text.into(),
            retry: None,
        }
    }

    /// For what is wrong with the request itself.
    pub(super) fn bad(text: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, text)
    }

    /// For what may be had later.
    pub(super) fn later(text: impl Into<String>, retry: u32) -> Refusal {
        Refusal {
            retry: Some(retry),
            ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, text_of(self.text + "\n")).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// Plain text that no browser takes for anything else and none keeps.
pub(super) fn text_of(text: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, text).into_response()
}

/// A value as it was sent, in quotes, without what a terminal would obey, and not too much of it.
pub(super) fn shown(value: &str) -> String {
    match value.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{:?}…", &value[..end]),
        None => format!("{value:?}"),
    }
}

/// For every other path.
pub(super) async fn nothing_there(uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!(
            "there is no {}: /healthz, /readyz and /metrics are here, and /, /profile and /processes \
             where pyebpf was told to --listen",
            shown(uri.path())
        ),
    )
}

/// For every other method.
pub(super) async fn only_get() -> Refusal {
    let text = "nothing can be changed here: use GET";
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text)
}
