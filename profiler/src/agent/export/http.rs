//! A request to a store over HTTP, and what its answer means for the profile in it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use axum::http::{HeaderMap, StatusCode, header};
use prost::bytes::{Bytes, BytesMut};
use reqwest::{Certificate, Client, Identity, Url, redirect::Policy};

use super::{access::Access, places::Sent};
use crate::profile::escape;

/// Most bytes of an answer that are read, and most characters of it that are shown.
const ANSWER_MAX: usize = 64 << 10;
const SHOWN_MAX: usize = 200;

/// Who the agent says that it is.
pub(super) const AGENT: &str = concat!("pyebpf/", env!("CARGO_PKG_VERSION"));

#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    access: Arc<Access>,
    url: Url,
}

impl Http {
    /// For requests to `url`, which is below the address that `access` has.
    ///
    /// # Errors
    /// When there is a certificate or key that can't be used.
    pub(super) fn new(access: Arc<Access>, url: Url) -> Result<Http> {
        let mut client = Client::builder()
            .user_agent(AGENT)
            // They could lead a token elsewhere.
            .redirect(Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .pool_max_idle_per_host(4);
        if let Some(pem) = &access.authorities {
            let authorities = Certificate::from_pem_bundle(pem)
                .context("cannot use the certificate authorities")?;
            client = client.tls_certs_only(authorities);
        }
        if let Some((certificate, key)) = &access.identity {
            let pem = [&certificate[..], b"\n", key].concat();
            let identity =
                Identity::from_pem(&pem).context("cannot use the certificate and its key")?;
            client = client.identity(identity);
        }
        let client = client.build().context("cannot set up TLS")?;
        Ok(Http {
            client,
            access,
            url,
        })
    }

    /// Sends it; where the store has taken it, gives what it said.
    ///
    /// # Errors
    /// Otherwise.
    pub(super) async fn post(
        &self,
        headers: &[(&'static str, &'static str)],
        body: Bytes,
    ) -> Result<Bytes, Sent> {
        let mut request = self.client.post(self.url.clone()).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let proof = self.access.authorization();
        if let Some(proof) = proof.map_err(|error| Sent::later(format!("{error:#}")))? {
            request = request.header(header::AUTHORIZATION, proof);
        }
        if let Some(tenant) = &self.access.tenant {
            request = request.header("X-Scope-OrgID", tenant);
        }
        let answer = request.send().await;
        let mut answer = answer.map_err(|error| {
            let error = anyhow::Error::from(error.without_url());
            Sent::later(format!("{error:#}"))
        })?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut said = BytesMut::new();
        while said.len() < ANSWER_MAX
            && let Ok(Some(piece)) = answer.chunk().await
        {
            said.extend_from_slice(&piece[..piece.len().min(ANSWER_MAX - said.len())]);
        }
        meaning(status, &headers, said.freeze())
    }
}

/// What an answer means. What is about who asks and where (401, 403, 404, 405) may be mended while the
/// profile waits; what is about the profile itself (400, 413, 415, 422 and the like) can't.
fn meaning(status: StatusCode, headers: &HeaderMap, said: Bytes) -> Result<Bytes, Sent> {
    if status.is_success() {
        return Ok(said);
    }
    let said = shown(&String::from_utf8_lossy(&said));
    let why = match &*said {
        "" => status.to_string(),
        said => format!("{status}: {said}"),
    };
    let mendable = matches!(
        status.as_u16(),
        401 | 403..=405 | 407 | 408 | 421 | 425 | 429
    );
    if status.is_client_error() && !mendable {
        return Err(Sent::Refused(why));
    }
    let after = headers.get(header::RETRY_AFTER);
    let after = after.and_then(|after| retry_after(after.to_str().ok()?, SystemTime::now()));
    Err(Sent::Later { why, after })
}

/// Seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// A store's words, as much of them as goes into a line.
pub(super) fn shown(text: &str) -> String {
    let line: String = escape(text.trim()).chars().take(SHOWN_MAX + 1).collect();
    match line.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, after: Option<&str>, said: &str) -> Result<Bytes, Sent> {
        let mut headers = HeaderMap::new();
        if let Some(after) = after {
            headers.insert(header::RETRY_AFTER, after.parse().unwrap());
        }
        meaning(
            StatusCode::from_u16(status).unwrap(),
            &headers,
            Bytes::copy_from_slice(said.as_bytes()),
        )
    }

    #[test]
    fn what_can_be_mended_waits_and_what_cannot_is_refused() {
        assert_eq!(answer(204, None, "").unwrap(), "");
        for status in [
            301, 401, 403, 404, 405, 408, 425, 429, 500, 501, 502, 503, 504,
        ] {
            assert!(
                matches!(answer(status, None, ""), Err(Sent::Later { .. })),
                "{status}"
            );
        }
        for status in [400, 409, 410, 413, 415, 422] {
            assert!(
                matches!(answer(status, None, ""), Err(Sent::Refused(_))),
                "{status}"
            );
        }
        let refused = Sent::Refused("400 Bad Request: no\\x1b[1m label\\n2".to_owned());
        assert_eq!(answer(400, None, " no\u{1b}[1m label\n2\n"), Err(refused));
        let Err(Sent::Later { why, .. }) = answer(500, None, &"ü".repeat(999)) else {
            panic!("it may be better later");
        };
        assert_eq!(
            why.chars().count(),
            "500 Internal Server Error: …".chars().count() + SHOWN_MAX
        );
    }

    #[test]
    fn a_store_says_when_to_come_back() {
        let later = |after| match answer(429, Some(after), "") {
            Err(Sent::Later { after, .. }) => after,
            other => panic!("{other:?}"),
        };
        assert_eq!(later("120"), Some(Duration::from_secs(120)));
        assert_eq!(later("soon"), None);
        assert_eq!(later("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:27:30 GMT").unwrap();
        let after = retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now);
        assert_eq!(after, Some(Duration::from_secs(30)));
    }
}
