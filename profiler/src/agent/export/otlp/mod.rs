//! An OpenTelemetry collector: each profile is a request of OTLP's profiles signal, `v1development` as
//! of opentelemetry-proto 1.10, over gRPC or as a protocol buffer over HTTP.

use std::sync::Arc;

use anyhow::Result;
use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceResponse;
use prost::Message as _;

pub(super) use self::encode::encode;
use super::{
    access::Access,
    grpc::Grpc,
    http::{Http, shown},
    item::{Format, Item},
    places::Sent,
    pyroscope::below,
    settings::Protocol,
};

mod encode;
mod resource;
mod tables;

/// Where profiles go over HTTP, below the collector's address.
const PATH: &str = "v1development/profiles";

/// The collector's usual port for HTTP.
const HTTP_PORT: u16 = 4318;

pub(super) struct Otlp(Carrier);

enum Carrier {
    Grpc(Grpc),
    Http(Http),
}

impl Otlp {
    pub(super) fn new(access: Arc<Access>, protocol: Option<Protocol>) -> Result<Otlp> {
        let url = &access.url;
        let looks_like_http = url.port() == Some(HTTP_PORT) || !["", "/"].contains(&url.path());
        let carrier = match protocol {
            Some(Protocol::Http) => Carrier::Http(http(access)?),
            None if looks_like_http => Carrier::Http(http(access)?),
            _ => {
                let path =
                    "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export";
                Carrier::Grpc(Grpc::new(access, path, true)?)
            }
        };
        Ok(Otlp(carrier))
    }

    pub(super) fn format(&self) -> Format {
        // gRPC compresses by itself.
        let gzip = matches!(self.0, Carrier::Http(_));
        Format::Otlp { gzip }
    }

    pub(super) async fn send(&self, item: &Item) -> Sent {
        let headers = [
            ("Content-Type", "application/x-protobuf"),
            ("Content-Encoding", "gzip"),
        ];
        let answer = match &self.0 {
            Carrier::Grpc(grpc) => grpc.call(item.body.clone()).await,
            Carrier::Http(http) => http.post(&headers, item.body.clone()).await.map(|said| {
                // It has taken it, whatever its words are.
                ExportProfilesServiceResponse::decode(said).unwrap_or_default()
            }),
        };
        match answer.map(|answer| answer.partial_success) {
            Ok(Some(partial)) if partial.rejected_profiles > 0 => {
                Sent::Refused(format!("rejected: {}", shown(&partial.error_message)))
            }
            Ok(_) => Sent::Taken,
            Err(sent) => sent,
        }
    }
}

fn http(access: Arc<Access>) -> Result<Http> {
    let url = match access.url.path().ends_with(PATH) {
        true => access.url.clone(),
        false => below(&access.url, PATH),
    };
    Http::new(access, url)
}
