//! What somebody asks for at `/profile`: from the address's query to whose samples, for how long, and
//! in which format. Whatever it does not know is refused with what it saw.

use axum::{extract::Query, http::Uri};
use clap::ValueEnum as _;

use super::refusal::{Refusal, shown};
use crate::{
    agent::watch::Whose,
    output::Format,
    profile::{LineShape, Shape},
};

/// Most seconds of a profile, and how many there are unless it is said.
pub(super) const SECONDS_MAX: u32 = 300;
const SECONDS: u32 = 10;

/// Most characters of a name: that of a namespace and that of a pod in it have 63 and 253.
const NAME_MAX: usize = 512;

/// The question.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) whose: Whose,
    pub(super) seconds: u32,
    pub(super) format: Format,
    pub(super) shape: Shape,
}

const KNOWN: &str =
    "pid, pod, container, seconds, format, threads, function, nolineno, full_filenames";

impl Question {
    /// # Errors
    /// What is answered to one that makes no sense.
    pub(super) fn read(uri: &Uri) -> Result<Question, Refusal> {
        let unreadable = |error| Refusal::bad(format!("the query can't be read: {error}"));
        let Query(said): Query<Vec<(String, String)>> =
            Query::try_from_uri(uri).map_err(unreadable)?;
        let mut question = Question {
            whose: Whose::Everyone,
            seconds: SECONDS,
            format: Format::Flamegraph,
            shape: Shape {
                processes: true,
                ..Shape::default()
            },
        };
        for (at, (name, value)) in said.iter().enumerate() {
            if said[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(Refusal::bad(format!("{} is given twice", shown(name))));
            }
            question.take(name, value)?;
        }
        Ok(question)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), Refusal> {
        match name {
            "pid" | "pod" | "container" => {
                if self.whose != Whose::Everyone {
                    let text = "give one of pid, pod and container, or none of them for everything";
                    return Err(Refusal::bad(text));
                }
                self.whose = whose(name, value)?;
            }
            "seconds" => self.seconds = number(name, value, SECONDS_MAX)?,
            "format" => self.format = format(value)?,
            "threads" => self.shape.threads = is_on(name, value)?,
            "full_filenames" => self.shape.full_filenames = is_on(name, value)?,
            "function" if is_on(name, value)? => self.shape.line = LineShape::First,
            "nolineno" if is_on(name, value)? => self.shape.line = LineShape::None,
            "function" | "nolineno" => {}
            _ => {
                let text = format!(
                    "{} is nothing that can be asked for: {KNOWN} are",
                    shown(name)
                );
                return Err(Refusal::bad(text));
            }
        }
        Ok(())
    }
}

fn whose(name: &str, value: &str) -> Result<Whose, Refusal> {
    if name == "pid" {
        // The kernel's own limit is lower (PID_MAX_LIMIT, include/linux/threads.h: 2^22).
        return Ok(Whose::Pid(number(name, value, i32::MAX as u32)?));
    }
    let is_name = |letter: char| letter.is_ascii_graphic();
    if value.is_empty() || value.len() > NAME_MAX || !value.chars().all(is_name) {
        return Err(Refusal::bad(format!(
            "{name}={} is no name: /processes lists those of the {name}s that run here",
            shown(value)
        )));
    }
    Ok(match name {
        "pod" => Whose::Pod(value.to_owned()),
        _ => Whose::Container(value.to_owned()),
    })
}

fn number(name: &str, value: &str, most: u32) -> Result<u32, Refusal> {
    // `parse` would take a sign.
    let digits = value.bytes().all(|digit| digit.is_ascii_digit());
    let number = value
        .parse()
        .ok()
        .filter(|number| digits && (1..=most).contains(number));
    number.ok_or_else(|| {
        let text = format!(
            "{name}={}: give a whole number from 1 to {most}",
            shown(value)
        );
        Refusal::bad(text)
    })
}

fn format(value: &str) -> Result<Format, Refusal> {
    Format::from_str(value, false).map_err(|_| {
        let known: Vec<String> = Format::value_variants()
            .iter()
            .map(|format| format.name())
            .collect();
        let known = known.join(", ");
        Refusal::bad(format!("format={}: there are {known}", shown(value)))
    })
}

fn is_on(name: &str, value: &str) -> Result<bool, Refusal> {
    match value {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(Refusal::bad(format!(
            "{name}={}: give true or false",
            shown(value)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Question, String> {
        let uri = format!("/profile{query}").parse().unwrap();
        Question::read(&uri).map_err(|refusal| {
            assert_eq!(refusal.status, 400);
            refusal.text
        })
    }

    #[test]
    fn nothing_is_everything_as_a_picture() {
        let question = read("").unwrap();
        assert_eq!(question, read("?").unwrap());
        assert_eq!((question.whose, question.seconds), (Whose::Everyone, 10));
        assert_eq!(question.format, Format::Flamegraph);
    }

    #[test]
    fn what_is_asked_for_is_understood() {
        let question =
            read("?pod=shop%2Fcart-7d9f&seconds=300&format=pprof&threads=1&function").unwrap();
        assert_eq!(question.whose, Whose::Pod("shop/cart-7d9f".to_owned()));
        assert_eq!((question.seconds, question.format), (300, Format::Pprof));
        assert!(question.shape.threads && question.shape.line == LineShape::First);
        assert_eq!(read("?pid=41").unwrap().whose, Whose::Pid(41));
        let container = read("?container=0123abcd&nolineno=0").unwrap();
        assert_eq!(container.whose, Whose::Container("0123abcd".to_owned()));
        assert_eq!(container.shape.line, LineShape::Current);
    }

    #[test]
    fn absurd_questions_are_answered_with_what_was_seen() {
        let long = format!("?pod={}", "x".repeat(10_000));
        for (query, wanted) in [
            (
                "?seconds=0",
                "seconds=\"0\": give a whole number from 1 to 300",
            ),
            ("?seconds=301", "seconds=\"301\""),
            ("?seconds=-5", "seconds=\"-5\""),
            ("?seconds=%2B5", "seconds=\"+5\""),
            ("?seconds=1e9", "seconds=\"1e9\""),
            ("?seconds=99999999999999999999", "seconds=\"9999"),
            ("?seconds=", "seconds=\"\""),
            ("?pid=0", "pid=\"0\""),
            ("?pid=4294967296", "pid=\"4294967296\""),
            ("?pid=self", "pid=\"self\""),
            ("?pid=1&pod=a", "give one of pid, pod and container"),
            ("?pid=1&pid=2", "\"pid\" is given twice"),
            ("?pod=", "pod=\"\" is no name"),
            ("?pod=a%00b", r#"pod="a\0b" is no name"#),
            ("?container=%1B%5B2J", r#"container="\u{1b}[2J" is no name"#),
            (
                "?format=html",
                "format=\"html\": there are flamegraph, raw, speedscope, pprof",
            ),
            ("?threads=maybe", "threads=\"maybe\": give true or false"),
            (
                "?rate=9999",
                "\"rate\" is nothing that can be asked for: pid, pod",
            ),
            ("?output=/etc/passwd", "\"output\" is nothing"),
            ("?%FF=%FE", "is nothing that can be asked for"),
            (&long, "xxx\"… is no name"),
        ] {
            let text = read(query).unwrap_err();
            assert!(text.contains(wanted), "{query}: {text}");
            assert!(text.len() < 300, "{query}: {text}");
        }
    }
}
