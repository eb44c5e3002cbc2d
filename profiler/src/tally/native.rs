//! What became of native frames: how the walks over them ended, which files have no unwind tables,
//! which code has no name. For programs and for a person; [`super::balance`] checks the sum.

use std::collections::BTreeMap;

use profiler_ebpf::NativeEnd;
use serde::Serialize;

use super::Tally;
use crate::symbolize::{Symbols, why_missing};

/// The key `native` of the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Native {
    asked: bool,
    /// In all samples, as they were read: before any is folded, and without inlined ones.
    frames: u64,
    /// Of samples.
    ends: BTreeMap<&'static str, u64>,
    /// Of samples, too: their frames are not in the order of calls.
    unordered: u64,
    /// Of samples, too: a caller of code without unwind information was guessed.
    guessed: u64,
    tables_full: u64,
    tables_refused: u64,
    places: u64,
    places_without_name: BTreeMap<&'static str, u64>,
}

/// What programs call it, in JSON and in pprof's comments. Names stay.
fn key(end: NativeEnd) -> &'static str {
    match end {
        NativeEnd::NotAsked => "not_asked",
        NativeEnd::Complete => "complete",
        NativeEnd::TooDeep => "too_deep",
        NativeEnd::NotLoaded => "not_loaded",
        NativeEnd::NoMapping => "no_mapping",
        NativeEnd::NoRule => "no_rule",
        NativeEnd::Unsupported => "unsupported",
        NativeEnd::UnreadableStack => "unreadable_stack",
        NativeEnd::BadStack => "bad_stack",
        NativeEnd::NoRegisters => "no_registers",
    }
}

impl Tally {
    pub(super) fn native(&self, symbols: &Symbols) -> Native {
        let nameless = symbols.native_nameless().into_iter();
        Native {
            asked: self.native_asked,
            frames: symbols.native_frames(),
            ends: symbols
                .native_ends()
                .map(|(end, samples)| (key(end), samples))
                .collect(),
            unordered: symbols.unordered(),
            guessed: symbols.guessed(),
            tables_full: self.without_tables.0,
            tables_refused: self.without_tables.1,
            places: symbols.native_places(),
            places_without_name: nameless.map(|(kind, places)| (kind.key, places)).collect(),
        }
    }

    /// The same for pprof's comments.
    pub(super) fn native_counters(&self, symbols: &Symbols) -> Vec<(String, u64)> {
        let native = self.native(symbols);
        let ends = native.ends.into_iter();
        let nameless = native.places_without_name.into_iter();
        let others = [
            ("native_unordered".to_owned(), native.unordered),
            ("native_guessed".to_owned(), native.guessed),
            ("native_tables_full".to_owned(), native.tables_full),
            ("native_tables_refused".to_owned(), native.tables_refused),
        ];
        ends.map(|(end, samples)| (format!("native_{end}"), samples))
            .chain(others)
            .chain(nameless.map(|(why, places)| (format!("native_without_name_{why}"), places)))
            .collect()
    }

    /// What is missing of native frames, for the summary: how much, and of what.
    pub(super) fn native_losses(&self, symbols: &Symbols) -> Vec<(u64, String)> {
        let ends = symbols.native_ends().filter_map(|(end, samples)| {
            let why = why_missing(end)?;
            Some((samples, format!("stacks without some native frames: {why}")))
        });
        let unordered = "stacks whose native frames have no known order with Python's";
        let unordered = (symbols.unordered(), unordered.to_owned());
        let guessed = "stacks with a guessed caller of code without unwind information";
        let guessed = (symbols.guessed(), guessed.to_owned());
        let (full, refused) = self.without_tables;
        let tables = [
            (full, "no room for it: name fewer processes with `--pid`"),
            (refused, "the file has none, or none that makes sense"),
        ];
        let tables =
            tables.map(|(files, why)| (files, format!("files without unwind information: {why}")));
        let nameless = symbols.native_nameless().into_iter().map(|(kind, places)| {
            let text = kind.text;
            (
                places,
                format!("places in native code without a name: {text}"),
            )
        });
        let mut losses: Vec<_> = ends
            .chain([unordered, guessed])
            .chain(tables)
            .chain(nameless)
            .collect();
        losses.retain(|&(count, _)| count > 0);
        losses
    }
}
