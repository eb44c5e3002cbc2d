//! A call to a store over gRPC, and what its answer means for the profile in it. Requests are encoded
//! already; answers are protocol buffers.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use axum::http::uri::PathAndQuery;
use prost::{
    Message,
    bytes::{Buf as _, BufMut as _, Bytes},
};
use tonic::{
    Code, Request, Status,
    client::Grpc as Client,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{
    access::Access,
    http::{AGENT, shown},
    places::Sent,
};

#[derive(Clone, Debug)]
pub(super) struct Grpc {
    channel: Channel,
    access: Arc<Access>,
    path: PathAndQuery,
    gzip: bool,
}

impl Grpc {
    /// For calls of `path`, as in `/package.Service/Method`; it connects with the first one.
    ///
    /// # Errors
    /// When there is a certificate or key that can't be used.
    pub(super) fn new(access: Arc<Access>, path: &'static str, gzip: bool) -> Result<Grpc> {
        let url = &access.url;
        let mut endpoint = Endpoint::from_shared(url.to_string())
            .context("the address can't be used")?
            .user_agent(AGENT)?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(60))
            .keep_alive_timeout(Duration::from_secs(10));
        if url.scheme() == "https" {
            let mut tls = ClientTlsConfig::new();
            tls = match &access.authorities {
                Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
                None => tls.with_native_roots(),
            };
            if let Some((certificate, key)) = &access.identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            endpoint = endpoint.tls_config(tls).context("cannot set up TLS")?;
        }
        Ok(Grpc {
            channel: endpoint.connect_lazy(),
            access,
            path: PathAndQuery::from_static(path),
            gzip,
        })
    }

    /// Sends it; where the store has taken it, gives what it said.
    ///
    /// # Errors
    /// Otherwise.
    pub(super) async fn call<T>(&self, body: Bytes) -> Result<T, Sent>
    where
        T: Message + Default + 'static,
    {
        let mut request = Request::new(body);
        let proof = self.access.authorization();
        let proof = proof.map_err(|error| Sent::later(format!("{error:#}")))?;
        let tenant = self.access.tenant.clone();
        for (name, value) in [("authorization", proof), ("x-scope-orgid", tenant)] {
            let value = value.and_then(|value| MetadataValue::try_from(value.as_bytes()).ok());
            if let Some(value) = value {
                request.metadata_mut().insert(name, value);
            }
        }
        let mut client = Client::new(self.channel.clone());
        if self.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let failed = |error: tonic::transport::Error| {
            Sent::later(format!("{:#}", anyhow::Error::from(error)))
        };
        client.ready().await.map_err(failed)?;
        let called = client
            .unary(request, self.path.clone(), Raw(PhantomData))
            .await;
        let answer = called.map_err(|status| meaning(&status))?;
        Ok(answer.into_inner())
    }
}

/// What a status means: refused is what is about the profile itself; everything else may be mended
/// while it waits.
fn meaning(status: &Status) -> Sent {
    let mut said = shown(status.message());
    // Of one that is made here the message hides the cause.
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let cause_said = shown(&error.to_string());
        if !said.contains(&cause_said) {
            said = shown(&format!("{said}: {cause_said}"));
        }
        cause = error.source();
    }
    let why = format!("{:?}: {said}", status.code());
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists => {
            Sent::Refused(why)
        }
        _ => {
            let after = retry_delay(status.details());
            Sent::Later { why, after }
        }
    }
}

/// The delay in a `google.rpc.RetryInfo` (googleapis, google/rpc/status.proto, error_details.proto),
/// as OTLP asks for it.
fn retry_delay(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let mut details = status.details.into_iter();
    let info = details.find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(&*info.value).ok()?.retry_delay?;
    let seconds = u64::try_from(delay.seconds).ok()?;
    let nanos = u32::try_from(delay.nanos).ok()?;
    Some(Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into())))
}

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

#[derive(Clone, PartialEq, Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

#[derive(Clone, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// Bytes go out as they are; a message comes in.
struct Raw<T>(PhantomData<T>);

impl<T: Message + Default + 'static> Codec for Raw<T> {
    type Encode = Bytes;
    type Decode = T;
    type Encoder = Raw<T>;
    type Decoder = Raw<T>;

    fn encoder(&mut self) -> Raw<T> {
        Raw(PhantomData)
    }

    fn decoder(&mut self) -> Raw<T> {
        Raw(PhantomData)
    }
}

impl<T> Encoder for Raw<T> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl<T: Message + Default> Decoder for Raw<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        let message = T::decode(bytes);
        message
            .map(Some)
            .map_err(|error| Status::unknown(format!("the answer is no message: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_mended_waits_and_what_cannot_is_refused() {
        let refused = meaning(&Status::invalid_argument("no\nlabels"));
        assert_eq!(
            refused,
            Sent::Refused("InvalidArgument: no\\nlabels".to_owned())
        );
        for code in [
            Code::Unavailable,
            Code::Unauthenticated,
            Code::Unimplemented,
            Code::Unknown,
        ] {
            assert!(
                matches!(meaning(&Status::new(code, "")), Sent::Later { .. }),
                "{code:?}"
            );
        }
    }

    #[test]
    fn a_store_says_when_to_come_back() {
        let delay = Delay {
            seconds: 7,
            nanos: 500_000_000,
        };
        let info = RetryInfo {
            retry_delay: Some(delay),
        };
        let detail = Detail {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value: info.encode_to_vec(),
        };
        let details = RpcStatus {
            details: vec![detail],
        }
        .encode_to_vec();
        let status = Status::with_details(Code::ResourceExhausted, "", details.into());
        let Sent::Later { after, .. } = meaning(&status) else {
            panic!("it may be better later");
        };
        assert_eq!(after, Some(Duration::from_millis(7500)));
        assert_eq!(retry_delay(b"\xff\xff"), None);
    }
}
