//! Grafana Pyroscope: each profile is a pprof file, pushed through the service that its own agents use
//! (`push.v1.PusherService/Push`, github.com/grafana/pyroscope, api/push/v1/push.proto and
//! api/types/v1/types.proto), by the Connect protocol: a protocol buffer in an HTTP request.

use std::sync::Arc;

use anyhow::Result;
use prost::{Message, bytes::Bytes};

use super::{access::Access, http::Http, item::Item, places::Sent};
use crate::agent::labels::Labels;

/// What kind of profile it is: with the pprof file's types this makes
/// `process_cpu:cpu:nanoseconds:cpu:nanoseconds`, which Pyroscope's pages show first.
pub(super) const NAME: &str = "process_cpu";

/// Most bytes of a label's value that Pyroscope takes by default (`max_label_value_length`).
const VALUE_MAX: usize = 2048;

pub(super) struct Pyroscope {
    http: Http,
}

impl Pyroscope {
    pub(super) fn new(access: Arc<Access>) -> Result<Pyroscope> {
        let url = below(&access.url, "push.v1.PusherService/Push");
        Ok(Pyroscope {
            http: Http::new(access, url)?,
        })
    }

    pub(super) async fn send(&self, item: &Item) -> Sent {
        let labels = series(&item.head.labels);
        let labels = labels
            .into_iter()
            .map(|(name, value)| LabelPair { name, value });
        let request = PushRequest {
            series: vec![RawProfileSeries {
                labels: labels.collect(),
                samples: vec![RawSample {
                    raw_profile: item.body.clone(),
                }],
            }],
        };
        // The profile is compressed already.
        let headers = [
            ("Content-Type", "application/proto"),
            ("Connect-Protocol-Version", "1"),
        ];
        match self
            .http
            .post(&headers, request.encode_to_vec().into())
            .await
        {
            Ok(_) => Sent::Taken,
            Err(sent) => sent,
        }
    }
}

/// An address below another one.
pub(super) fn below(url: &reqwest::Url, path: &str) -> reqwest::Url {
    let mut url = url.clone();
    let whole = format!("{}/{path}", url.path().trim_end_matches('/'));
    url.set_path(&whole);
    url
}

/// The labels of a series, sorted by name as both Pyroscope and Parca want them: ours, with the kind of
/// the profile, and the service by the name under which both look for it.
pub(super) fn series(labels: &Labels) -> Labels {
    let mut series = Labels::from([("__name__".to_owned(), NAME.to_owned())]);
    for (name, value) in labels {
        let name = if name == "service" {
            "service_name"
        } else {
            name
        };
        let mut end = value.len().min(VALUE_MAX);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        if end > 0 {
            series.insert(name.to_owned(), value[..end].to_owned());
        }
    }
    // Pyroscope refuses a series without one.
    let unknown = || "unknown".to_owned();
    series
        .entry("service_name".to_owned())
        .or_insert_with(unknown);
    series
}

#[derive(Clone, PartialEq, Message)]
struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<RawProfileSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct RawProfileSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<LabelPair>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<RawSample>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct RawSample {
    /// The pprof file, gzipped.
    #[prost(bytes = "bytes", tag = "1")]
    raw_profile: Bytes,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The labels and the profile of a push.
    pub(in crate::agent::export) fn read(body: &[u8]) -> (Vec<(String, String)>, Bytes) {
        let series = PushRequest::decode(body).unwrap().series.remove(0);
        let labels = series.labels.into_iter();
        let labels = labels.map(|label| (label.name, label.value)).collect();
        (labels, series.samples[0].raw_profile.clone())
    }

    #[test]
    fn a_series_has_the_names_that_stores_look_for() {
        let long = "ü".repeat(VALUE_MAX);
        let labels = [
            ("service", "shop"),
            ("pod", "shop-1"),
            ("image", ""),
            ("z", &long),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let series = series(&labels.into());
        let names: Vec<&str> = series.keys().map(String::as_str).collect();
        assert_eq!(names, ["__name__", "pod", "service_name", "z"]);
        assert_eq!(
            (&*series["service_name"], series["z"].len()),
            ("shop", VALUE_MAX)
        );
        assert_eq!(super::series(&Labels::new())["service_name"], "unknown");
    }

    #[test]
    fn an_address_may_have_a_path() {
        let below = |url: &str| below(&url.parse().unwrap(), "a.B/C").to_string();
        assert_eq!(below("http://store:4040"), "http://store:4040/a.B/C");
        assert_eq!(below("https://store/pyro/"), "https://store/pyro/a.B/C");
    }
}
