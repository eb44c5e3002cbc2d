//! Who may ask: those who call this address by a name that is ours, so that no page of the web can make
//! a browser ask under a name of its own (DNS rebinding), and who show the token where there is one.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use axum::http::{HeaderMap, Request, StatusCode, header};

use super::{
    page,
    refusal::{Refusal, shown},
    token::Token,
};

/// The rules of a listener.
pub(super) struct Guard {
    /// Names beside those that are always ours; in lower case.
    hosts: Vec<String>,
    token: Option<Arc<Token>>,
}

/// What tells nothing of any process, so that it needs no token: probes, and the page itself, which
/// asks its user for the token.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

impl Guard {
    pub(super) fn new(hosts: &[String], token: Option<Arc<Token>>) -> Guard {
        Guard {
            hosts: hosts.iter().map(|host| host.to_lowercase()).collect(),
            token,
        }
    }

    /// Whether this request, on a connection to our address `local`, is answered.
    ///
    /// # Errors
    /// What is answered in place of what was asked for.
    pub(super) fn check<B>(&self, request: &Request<B>, local: IpAddr) -> Result<(), Refusal> {
        self.check_host(request, local)?;
        let path = request.uri().path();
        if OPEN.contains(&path) || page::PATHS.contains(&path) {
            return Ok(());
        }
        let headers = request.headers();
        // Fetch metadata (https://www.w3.org/TR/fetch-metadata/): who is the cause of the request.
        let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
        if matches!(site, Some(b"cross-site" | b"same-site")) {
            let text = "another site's page has asked for this: open it from pyebpf's own page";
            return Err(Refusal::new(StatusCode::FORBIDDEN, text));
        }
        match &self.token {
            Some(token) if !shown_token(headers).is_some_and(|shown| token.is(shown)) => {
                let text = "a token is needed: send the header `Authorization: Bearer TOKEN` with the \
                            token that is in pyebpf's --token-file";
                Err(Refusal::new(StatusCode::UNAUTHORIZED, text))
            }
            _ => Ok(()),
        }
    }

    fn check_host<B>(&self, request: &Request<B>, local: IpAddr) -> Result<(), Refusal> {
        let mut named = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (named.next(), named.next()) else {
            return Err(Refusal::bad("exactly one Host header is needed"));
        };
        let host = String::from_utf8_lossy(host.as_bytes());
        // The line of a request to a proxy has a host of its own.
        let in_line = request
            .uri()
            .authority()
            .map(|authority| authority.as_str());
        for named in [Some(&*host), in_line].into_iter().flatten() {
            if !self.is_ours(named, local) {
                let text = format!(
                    "pyebpf does not answer to the name {}: call it by localhost or its address, or \
                     start it with --allow-host NAME",
                    shown(named)
                );
                return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, text));
            }
        }
        Ok(())
    }

    /// Whether a host, with or without a port, is us.
    fn is_ours(&self, host: &str, local: IpAddr) -> bool {
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) if port.is_empty() || port.starts_with(':') => {
                let address = address.parse::<Ipv6Addr>();
                return address.is_ok_and(|address| is_address(address.into(), local));
            }
            Some(_) => return false,
            None => host.split_once(':').map_or(host, |(name, _)| name),
        };
        let name = name.trim_end_matches('.').to_lowercase();
        match name.parse::<IpAddr>() {
            Ok(address) => is_address(address, local) || self.hosts.contains(&name),
            Err(_) => name == "localhost" || self.hosts.contains(&name),
        }
    }
}

fn is_address(address: IpAddr, local: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address == local.to_canonical()
}

/// The token of the request.
fn shown_token(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_are_answered() {
        let guard = Guard::new(&["Node-1.example".to_owned(), "192.0.2.7".to_owned()], None);
        let ours = |host: &str| guard.is_ours(host, [10, 0, 0, 5].into());
        for host in [
            "localhost",
            "LOCALHOST:7957",
            "localhost.",
            "127.0.0.1:1",
            "127.3.2.1",
            "[::1]:7957",
            "[::1]",
            "10.0.0.5:80",
            "[::ffff:10.0.0.5]",
            "node-1.example:7957",
            "192.0.2.7",
        ] {
            assert!(ours(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "evil-localhost",
            "127.0.0.1.evil.example",
            "10.0.0.6",
            "0.0.0.0",
            "2130706433",
            "[::1]evil",
            "[::2]",
            "[localhost]",
            "::1",
            "example",
            "user@localhost",
        ] {
            assert!(!ours(host), "{host}");
        }
    }
}
