//! What `pyebpf doctor` finds: facts about the machine, about pyebpf's own rights and about single
//! processes, each with a verdict and, where something is missing, the command that mends it. Shown
//! to a person or as JSON. Nothing here changes the machine.

mod denied;
pub mod machine;
pub mod process;
pub mod program;
mod stacks;
mod surroundings;

use std::fmt::Write as _;

use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::Value;

/// How good a fact is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it must be.
    Ok,
    /// Neither good nor bad.
    Info,
    /// It works, but less well or not for everything.
    Warn,
    /// Something that is needed is missing.
    Fail,
    /// It could not be looked at.
    Unknown,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What it is about, for programs; a person sees its words. Keys stay.
    #[serde(skip)]
    pub key: &'static str,
    pub verdict: Verdict,
    /// What was seen, for a person.
    pub seen: String,
    /// The same for programs, where it is more than text.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub value: Value,
    /// What to do about it, with the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    fn new(key: &'static str, verdict: Verdict, seen: impl Into<String>) -> Finding {
        Finding {
            key,
            verdict,
            seen: seen.into(),
            value: Value::Null,
            mend: None,
        }
    }

    pub(crate) fn ok(key: &'static str, seen: impl Into<String>) -> Finding {
        Finding::new(key, Verdict::Ok, seen)
    }

    pub(crate) fn info(key: &'static str, seen: impl Into<String>) -> Finding {
        Finding::new(key, Verdict::Info, seen)
    }

    pub(crate) fn unknown(key: &'static str, seen: impl Into<String>) -> Finding {
        Finding::new(key, Verdict::Unknown, seen)
    }

    pub(crate) fn warn(
        key: &'static str,
        seen: impl Into<String>,
        mend: impl Into<String>,
    ) -> Finding {
        Finding::new(key, Verdict::Warn, seen).mended_by(mend)
    }

    pub(crate) fn fail(
        key: &'static str,
        seen: impl Into<String>,
        mend: impl Into<String>,
    ) -> Finding {
        Finding::new(key, Verdict::Fail, seen).mended_by(mend)
    }

    fn mended_by(self, mend: impl Into<String>) -> Finding {
        Finding {
            mend: Some(mend.into()),
            ..self
        }
    }

    pub(crate) fn with(self, value: impl Into<Value>) -> Finding {
        Finding {
            value: value.into(),
            ..self
        }
    }
}

/// Facts about one thing.
#[derive(Clone, Debug)]
pub struct Section {
    pub title: String,
    pub findings: Vec<Finding>,
}

impl Section {
    fn has_failed(&self) -> bool {
        let mut findings = self.findings.iter();
        findings.any(|finding| finding.verdict == Verdict::Fail)
    }
}

impl Serialize for Section {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.findings.len()))?;
        for finding in &self.findings {
            map.serialize_entry(finding.key, finding)?;
        }
        map.end()
    }
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub pyebpf: &'static str,
    /// Whether nothing that is needed is missing.
    pub ok: bool,
    pub machine: Section,
    /// In the order in which they were asked for.
    pub processes: Vec<Section>,
}

impl Report {
    /// Puts the sections together.
    pub fn new(machine: Section, processes: Vec<Section>) -> Report {
        let failed = machine.has_failed() || processes.iter().any(Section::has_failed);
        Report {
            pyebpf: env!("CARGO_PKG_VERSION"),
            ok: !failed,
            machine,
            processes,
        }
    }

    /// As a person reads it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for section in std::iter::once(&self.machine).chain(&self.processes) {
            writeln!(text, "{}", section.title).expect("writing to a string");
            for finding in &section.findings {
                line(&mut text, finding);
            }
            text.push('\n');
        }
        text.push_str(if self.ok {
            "all is well\n"
        } else {
            "something that is needed is missing: see FAIL above\n"
        });
        text
    }
}

/// Where what was seen begins on a line.
const COLUMN: usize = 26;

fn line(text: &mut String, finding: &Finding) {
    let verdict = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Info => "-",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
        Verdict::Unknown => "?",
    };
    let name = finding.key.replace('_', " ");
    let margin = " ".repeat(COLUMN);
    let seen = finding.seen.replace('\n', &format!("\n{margin}"));
    writeln!(text, "  {verdict:<4}  {name:<18}{seen}").expect("writing to a string");
    if let Some(mend) = &finding.mend {
        writeln!(text, "{margin}→ {mend}").expect("writing to a string");
    }
}

/// Text that a process or a file chose, fit for a terminal.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let machine = Section {
            title: "this machine".to_owned(),
            findings: vec![
                Finding::ok("kernel", "6.1.0").with("6.1.0"),
                Finding::fail("btf", "not there", "get `another kernel`"),
            ],
        };
        let process = Section {
            title: "process 7".to_owned(),
            findings: vec![Finding::info("stack", "a\nb")],
        };
        Report::new(machine, vec![process])
    }

    #[test]
    fn a_person_sees_aligned_lines_and_what_mends() {
        let expected = "\
this machine
  ok    kernel            6.1.0
  FAIL  btf               not there
                          → get `another kernel`

process 7
  -     stack             a
                          b

something that is needed is missing: see FAIL above
";
        assert_eq!(report().text(), expected);
    }

    #[test]
    fn programs_see_the_same_by_key() {
        let json = serde_json::to_value(report()).unwrap();
        let expected = serde_json::json!({
            "pyebpf": env!("CARGO_PKG_VERSION"),
            "ok": false,
            "machine": {
                "kernel": {"verdict": "ok", "seen": "6.1.0", "value": "6.1.0"},
                "btf": {"verdict": "fail", "seen": "not there", "mend": "get `another kernel`"},
            },
            "processes": [{"stack": {"verdict": "info", "seen": "a\nb"}}],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn warnings_are_no_failures() {
        let mut machine = report().machine;
        machine.findings[1] = Finding::warn("x", "slow", "mend it");
        assert!(Report::new(machine, Vec::new()).ok);
    }
}
