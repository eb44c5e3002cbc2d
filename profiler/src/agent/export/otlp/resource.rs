//! What labels are called where OpenTelemetry has names for them (semantic conventions 1.37).

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
};

use crate::agent::labels::Labels;

/// Our names to theirs. A label without one keeps its name.
const NAMES: [(&str, &str); 8] = [
    ("namespace", "k8s.namespace.name"),
    ("pod", "k8s.pod.name"),
    ("pod_uid", "k8s.pod.uid"),
    ("node", "k8s.node.name"),
    ("container_id", "container.id"),
    ("image", "container.image.name"),
    ("service", "service.name"),
    ("pid", "process.pid"),
];

/// What the profile is of.
pub(super) fn resource(labels: &Labels, node: &str) -> Resource {
    let in_pod = labels.contains_key("pod");
    let mut attributes = vec![
        attribute("host.name", text(node)),
        attribute("telemetry.sdk.name", text("pyebpf")),
        attribute("telemetry.sdk.version", text(env!("CARGO_PKG_VERSION"))),
    ];
    for (name, value) in labels {
        let known = NAMES.iter().find(|(ours, _)| ours == name);
        let name = match &**name {
            // It is the host, which stands there already.
            "node" if !in_pod => continue,
            "container" if in_pod => "k8s.container.name",
            "container" => "container.name",
            name => known.map_or(name, |(_, theirs)| theirs),
        };
        let value = match value.parse() {
            Ok(pid) if name == "process.pid" => Value::IntValue(pid),
            _ => text(value),
        };
        attributes.push(attribute(name, value));
    }
    Resource {
        attributes,
        ..Resource::default()
    }
}

fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_the_names_of_the_conventions() {
        let named = |labels: &[(&str, &str)]| {
            let labels = labels
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let attributes = resource(&labels.collect(), "n1").attributes;
            let pairs = attributes.into_iter().skip(3).map(|pair| {
                let value = pair.value.and_then(|value| value.value);
                (pair.key, value.unwrap())
            });
            pairs.collect::<Vec<_>>()
        };
        let pair = |key: &str, value| (key.to_owned(), value);
        assert_eq!(
            named(&[
                ("container", "c"),
                ("node", "n1"),
                ("pid", "7"),
                ("pod", "p"),
                ("team", "t")
            ]),
            [
                pair("k8s.container.name", text("c")),
                pair("k8s.node.name", text("n1")),
                pair("process.pid", Value::IntValue(7)),
                pair("k8s.pod.name", text("p")),
                pair("team", text("t")),
            ]
        );
        let host = named(&[("container", "c"), ("node", "n1"), ("service", "s")]);
        assert_eq!(
            host,
            [
                pair("container.name", text("c")),
                pair("service.name", text("s"))
            ]
        );
    }
}
