//! The page: a table of processes, and the flame graph of the one that was clicked. It has no data of
//! its own; its script asks `/processes` and `/profile` for that.

use std::sync::Arc;

use axum::{
    Router,
    http::{HeaderName, header},
    response::IntoResponse,
    routing::get,
};

use super::Answers;

/// A browser loads nothing from elsewhere and runs nothing but our script, whatever a process calls
/// itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    frame-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The picture is drawn in a frame that has scripts, those of the picture, and nothing else: it is of
/// no origin, so it can't ask us for anything.
const FRAME_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; \
    style-src 'unsafe-inline'; sandbox allow-scripts; frame-ancestors 'self'";

/// Path, kind, policy and content of each file.
const FILES: [(&str, &str, &str, &str); 4] = [
    (
        "/",
        "text/html; charset=utf-8",
        POLICY,
        include_str!("page/index.html"),
    ),
    (
        "/page.css",
        "text/css; charset=utf-8",
        POLICY,
        include_str!("page/page.css"),
    ),
    (
        "/page.js",
        "text/javascript; charset=utf-8",
        POLICY,
        include_str!("page/page.js"),
    ),
    (
        "/frame",
        "text/html; charset=utf-8",
        FRAME_POLICY,
        include_str!("page/frame.html"),
    ),
];

/// What needs no token, for it tells nothing.
pub(super) const PATHS: [&str; 4] = [FILES[0].0, FILES[1].0, FILES[2].0, FILES[3].0];

pub(super) fn routes() -> Router<Arc<Answers>> {
    FILES
        .into_iter()
        .fold(Router::new(), |router, (path, kind, policy, content)| {
            router.route(path, get(async move || file(kind, policy, content)))
        })
}

fn file(kind: &'static str, policy: &'static str, content: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content)
}
