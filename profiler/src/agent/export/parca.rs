//! Parca: each profile is a pprof file, written through `ProfileStoreService/WriteRaw` over gRPC
//! (github.com/parca-dev/parca, proto/parca/profilestore/v1alpha1/profilestore.proto).

use std::sync::Arc;

use anyhow::Result;
use prost::{Message, bytes::Bytes};

use super::{access::Access, grpc::Grpc, item::Item, places::Sent, pyroscope::series};

pub(super) struct Parca {
    grpc: Grpc,
}

impl Parca {
    pub(super) fn new(access: Arc<Access>) -> Result<Parca> {
        let path = "/parca.profilestore.v1alpha1.ProfileStoreService/WriteRaw";
        // The profile is compressed already.
        let grpc = Grpc::new(access, path, false)?;
        Ok(Parca { grpc })
    }

    pub(super) async fn send(&self, item: &Item) -> Sent {
        let labels = series(&item.head.labels).into_iter();
        let labels = labels.map(|(name, value)| Label { name, value }).collect();
        let request = WriteRawRequest {
            series: vec![RawProfileSeries {
                labels: Some(LabelSet { labels }),
                samples: vec![RawSample {
                    raw_profile: item.body.clone(),
                }],
            }],
            normalized: true,
        };
        let called = self
            .grpc
            .call::<WriteRawResponse>(request.encode_to_vec().into());
        match called.await {
            Ok(_) => Sent::Taken,
            Err(sent) => sent,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct WriteRawRequest {
    #[prost(message, repeated, tag = "2")]
    series: Vec<RawProfileSeries>,
    /// Addresses need nothing done to them: all functions are named.
    #[prost(bool, tag = "3")]
    normalized: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WriteRawResponse {}

#[derive(Clone, PartialEq, Message)]
struct RawProfileSeries {
    #[prost(message, optional, tag = "1")]
    labels: Option<LabelSet>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<RawSample>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelSet {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
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

    /// The labels and the profile of a request.
    pub(in crate::agent::export) fn read(request: &[u8]) -> (Vec<(String, String)>, Bytes) {
        let mut request = WriteRawRequest::decode(request).unwrap();
        assert_eq!((request.series.len(), request.normalized), (1, true));
        let mut series = request.series.remove(0);
        assert_eq!(series.samples.len(), 1);
        let labels = series.labels.unwrap().labels.into_iter();
        let labels = labels.map(|Label { name, value }| (name, value)).collect();
        (labels, series.samples.remove(0).raw_profile)
    }
}
