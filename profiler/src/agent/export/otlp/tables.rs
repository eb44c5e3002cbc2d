//! The dictionary of an OTLP profile: tables whose entries are referred to by their index. The first
//! entry of each is empty and stands for none.

use indexmap::IndexSet;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, any_value::Value},
    profiles::v1development::{
        Function, KeyValueAndUnit, Link, Location, Mapping, ProfilesDictionary, Stack,
    },
};

#[derive(Debug)]
pub(super) struct Tables {
    strings: IndexSet<String>,
    attributes: IndexSet<(i32, Known)>,
    pub(super) mappings: Vec<Mapping>,
    pub(super) functions: Vec<Function>,
    pub(super) locations: Vec<Location>,
    pub(super) stacks: Vec<Stack>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Known {
    None,
    Text(String),
    Number(i64),
}

impl Tables {
    pub(super) fn new() -> Tables {
        Tables {
            strings: IndexSet::from([String::new()]),
            attributes: IndexSet::from([(0, Known::None)]),
            mappings: vec![Mapping::default()],
            functions: vec![Function::default()],
            locations: vec![Location::default()],
            stacks: vec![Stack::default()],
        }
    }

    pub(super) fn string(&mut self, text: &str) -> i32 {
        let known = self.strings.get_index_of(text);
        index(known.unwrap_or_else(|| self.strings.insert_full(text.to_owned()).0))
    }

    pub(super) fn attribute(&mut self, key: &str, value: Known) -> i32 {
        let key = self.string(key);
        index(self.attributes.insert_full((key, value)).0)
    }

    pub(super) fn dictionary(self) -> ProfilesDictionary {
        let attributes = self.attributes.into_iter();
        let attributes = attributes.map(|(key_strindex, value)| {
            let value = match value {
                Known::None => None,
                Known::Text(text) => Some(Value::StringValue(text)),
                Known::Number(number) => Some(Value::IntValue(number)),
            };
            KeyValueAndUnit {
                key_strindex,
                value: value.map(|value| AnyValue { value: Some(value) }),
                unit_strindex: 0,
            }
        });
        ProfilesDictionary {
            mapping_table: self.mappings,
            location_table: self.locations,
            function_table: self.functions,
            link_table: vec![Link::default()],
            string_table: self.strings.into_iter().collect(),
            attribute_table: attributes.collect(),
            stack_table: self.stacks,
        }
    }
}

/// An index of a table; a profile has fewer than 2^31 of anything.
pub(super) fn index(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(0)
}
