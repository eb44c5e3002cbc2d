//! The file formats. Each takes a [`Profile`] and writes it; none knows where samples came from
//! or where the bytes go. A new format is one file here and one line in the table below.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use clap::ValueEnum;

use crate::profile::Profile;

mod label_tree;

/// Declares a format per line: its name, its module (which has `write`), the file extensions that
/// mean it (its own first), and whether it needs every sample in the order of time.
macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident = $module:ident, $extensions:expr, timeline: $timeline:expr;)+) => {
        $(pub mod $module;)+

        /// A file format.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
        pub enum Format {
            $($(#[$doc])* $name,)+
        }

        impl Format {
            /// File extensions that mean this format, without the dot, the usual one first.
            pub fn extensions(self) -> &'static [&'static str] {
                match self { $(Format::$name => &$extensions,)+ }
            }

            /// Whether the profile must keep every sample in the order of time.
            pub fn needs_timeline(self) -> bool {
                match self { $(Format::$name => $timeline,)+ }
            }

            /// Writes the whole file, buffered on its way to `out`.
            pub fn write(self, profile: &Profile, out: &mut dyn Write) -> anyhow::Result<()> {
                let mut out = BufWriter::new(out);
                match self { $(Format::$name => $module::write(profile, &mut out)?,)+ }
                out.flush().context("writing the profile failed")
            }
        }
    };
}

formats! {
    /// A picture to open in a browser (SVG)
    Flamegraph = flamegraph, ["svg"], timeline: false;
    /// Collapsed stacks: a line per stack, with its number of samples
    Raw = raw, ["txt", "raw", "collapsed", "folded"], timeline: false;
    /// For speedscope.app: every sample in the order of time (JSON)
    Speedscope = speedscope, ["json"], timeline: true;
    /// For pprof and the stores that take it (gzipped protocol buffer)
    Pprof = pprof, ["pb.gz", "pprof", "pb"], timeline: false;
}

impl Format {
    /// The format that the extension of an output file means.
    pub fn of_path(path: &Path) -> Result<Format, UnknownExtension> {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        Format::value_variants()
            .iter()
            .copied()
            .find(|format| {
                let mut known = format.extensions().iter();
                known.any(|known| {
                    name.strip_suffix(known)
                        .is_some_and(|stem| stem.ends_with('.'))
                })
            })
            .ok_or_else(|| UnknownExtension {
                path: path.display().to_string(),
            })
    }

    /// The name by which the command line knows it.
    pub fn name(self) -> String {
        let value = self
            .to_possible_value()
            .expect("no format is hidden from the command line");
        value.get_name().to_owned()
    }
}

/// The extension of an output file means no format.
#[derive(Debug, thiserror::Error)]
#[error(
    "the name of the output file {path:?} does not tell its format; known extensions are {}; \
     or name the format with --format",
    known_extensions()
)]
pub struct UnknownExtension {
    path: String,
}

fn known_extensions() -> String {
    let formats = Format::value_variants().iter();
    let formats = formats.map(|format| {
        let known: Vec<String> = format
            .extensions()
            .iter()
            .map(|known| format!(".{known}"))
            .collect();
        format!("{} ({})", known.join(" "), format.name())
    });
    formats.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_tell_the_format() {
        let of = |path: &str| Format::of_path(Path::new(path)).ok();
        assert_eq!(of("a/profile.svg"), Some(Format::Flamegraph));
        assert_eq!(of("profile.SVG"), Some(Format::Flamegraph));
        for raw in ["a.txt", "a.raw", "a.collapsed", "a.folded"] {
            assert_eq!(of(raw), Some(Format::Raw), "{raw}");
        }
        assert_eq!(of("my.profile.json"), Some(Format::Speedscope));
        for pprof in ["a.pb.gz", "a.pprof", "a.pb"] {
            assert_eq!(of(pprof), Some(Format::Pprof), "{pprof}");
        }
        for unknown in [
            "profile", "-", "svg", "a.gz", "a.svg/", "a.html", "asvg", "/",
        ] {
            assert_eq!(
                of(unknown),
                if unknown == "a.svg/" {
                    Some(Format::Flamegraph)
                } else {
                    None
                }
            );
        }
    }

    #[test]
    fn an_unknown_extension_is_answered_with_the_known_ones() {
        let error = Format::of_path(Path::new("out.html"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the name of the output file \"out.html\" does not tell its format; known extensions \
             are .svg (flamegraph), .txt .raw .collapsed .folded (raw), .json (speedscope), \
             .pb.gz .pprof .pb (pprof); or name the format with --format"
        );
    }

    #[test]
    fn only_speedscope_keeps_every_sample() {
        let kept: Vec<String> = Format::value_variants()
            .iter()
            .filter(|format| format.needs_timeline())
            .map(|format| format.name())
            .collect();
        assert_eq!(kept, ["speedscope"]);
    }
}
