//! Versions of Python, as a binary states them: `PY_VERSION` texts and `PY_VERSION_HEX` words.

use std::fmt;

/// A released version of Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub major: u8,
    pub minor: u8,
    pub micro: u8,
}

/// A version and how far its release had come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stated {
    pub version: Version,
    /// As a person writes it: `3.15.0b4`.
    pub text: String,
    /// Not an alpha, beta or release candidate.
    pub released: bool,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl Stated {
    /// From `PY_VERSION_HEX`: major, minor, micro, and in the last byte level and serial number
    /// (`Include/patchlevel.h`; level 0xf is a release).
    pub(super) fn from_hex(hex: u32) -> Stated {
        let [major, minor, micro, level] = hex.to_be_bytes();
        let version = Version {
            major,
            minor,
            micro,
        };
        let serial = level & 0xf;
        let (text, released) = match level >> 4 {
            0xa => (format!("{version}a{serial}"), false),
            0xb => (format!("{version}b{serial}"), false),
            0xc => (format!("{version}rc{serial}"), false),
            0xf => (version.to_string(), true),
            _ => (format!("{version} (PY_VERSION_HEX {hex:#010x})"), false),
        };
        Stated {
            version,
            text,
            released,
        }
    }

    /// From a `PY_VERSION` text such as `3.9.18`, `3.10.0rc1` or `2.7.18+`, the whole of `text`.
    pub(super) fn from_text(text: &[u8]) -> Option<Stated> {
        if text.len() > 24 {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        let mut parts = text.splitn(3, '.');
        let major: u8 = number(parts.next()?)?;
        let minor: u8 = number(parts.next()?)?;
        let rest = parts.next()?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (micro, level) = rest.split_at(digits);
        let micro: u8 = number(micro)?;
        let level = level.strip_suffix('+').unwrap_or(level);
        let serial = ["a", "b", "rc"]
            .into_iter()
            .find_map(|name| level.strip_prefix(name));
        if !level.is_empty() {
            number(serial?)?;
        }
        (2..=3).contains(&major).then(|| Stated {
            version: Version {
                major,
                minor,
                micro,
            },
            text: text.to_owned(),
            released: level.is_empty(),
        })
    }
}

/// A plain decimal number: `str::parse` would take a sign too.
fn number(text: &str) -> Option<u8> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<(String, bool)> {
        Stated::from_text(text.as_bytes()).map(|found| (found.version.to_string(), found.released))
    }

    #[test]
    fn a_version_text_is_taken_whole_or_not_at_all() {
        assert_eq!(text("3.9.18"), Some(("3.9.18".into(), true)));
        assert_eq!(text("3.9.18+"), Some(("3.9.18".into(), true)));
        assert_eq!(text("2.7.18"), Some(("2.7.18".into(), true)));
        assert_eq!(text("3.10.0rc2"), Some(("3.10.0".into(), false)));
        assert_eq!(text("3.10.0a7+"), Some(("3.10.0".into(), false)));
        for wrong in [
            "",
            "3",
            "3.9",
            "3.9.",
            "3..1",
            "3.9.1.2",
            "3.9.x",
            "3.9.256",
            "+3.9.1",
            "3.+9.1",
            "4.1.2",
            "1.2.13",
            "3.9.1rc",
            "3.9.1q1",
            "3.9.1 (main)",
        ] {
            assert_eq!(text(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_version_word_tells_releases_from_candidates() {
        let hex = |hex| {
            let found = Stated::from_hex(hex);
            (found.text, found.released)
        };
        assert_eq!(hex(0x030b_07f0), ("3.11.7".into(), true));
        assert_eq!(hex(0x030f_00b4), ("3.15.0b4".into(), false));
        assert_eq!(hex(0x030e_00c2), ("3.14.0rc2".into(), false));
        assert!(!hex(0x030e_0012).1);
    }
}
