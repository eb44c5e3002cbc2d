//! Whether a recording shows the stack that a workload says it has: collapsed stacks and the
//! workload's own JSON line in, numbers of samples and the first difference out.

use anyhow::{Context, Result};
use serde_json::Value;

/// What a recording shows of one workload.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Samples whose stack is the expected one, to its root.
    pub(super) whole: u64,
    /// Stacks that are marked as truncated or unreadable and are the newest frames of the expected
    /// one, as far as they go.
    pub(super) marked: Vec<Marked>,
    /// The first sample that is neither: what it shows, and what it should.
    pub(super) wrong: Option<String>,
}

/// Samples of one marked stack.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Marked {
    pub(super) mark: String,
    pub(super) frames: usize,
    pub(super) samples: u64,
}

/// What a workload says in its first line.
pub(super) fn told(said: &str) -> Result<Value> {
    // Only that one: over a shared folder what a program writes has been seen twice.
    let said = said.lines().next().unwrap_or_default();
    serde_json::from_str(said).with_context(|| {
        let said: String = said.chars().take(200).collect();
        format!("the workload said {said:?} instead of its stack")
    })
}

/// The stacks of the workload that has `told` its pid, from the root on, and how many samples each has.
pub(super) fn samples<'a>(folded: &'a str, told: &Value) -> Result<Vec<(Vec<&'a str>, u64)>> {
    let pid = told["pid"].as_u64().context("the workload tells no pid")?;
    let mut samples = Vec::new();
    for line in folded.lines() {
        let (stack, count) = line.rsplit_once(' ').context("a line without a count")?;
        let count: u64 = count.parse().with_context(|| format!("in {line:?}"))?;
        let mut frames: Vec<&str> = stack.split(';').collect();
        if let Some(process) = frames[0].strip_prefix("process ") {
            if process.split(':').next() != Some(&pid.to_string()) {
                continue;
            }
            frames.remove(0);
        }
        samples.push((frames, count));
    }
    Ok(samples)
}

/// Compares.
pub(super) fn compare(folded: &str, said: &str) -> Result<Seen> {
    let told = told(said)?;
    let expected: Vec<Frame> = serde_json::from_value(told["stack"].clone())
        .context("the workload tells its stack in another form")?;
    let mut seen = Seen::default();
    for (mut frames, count) in samples(folded, &told)? {
        let mark = match frames.first() {
            Some(first) if first.starts_with('[') => frames.remove(0),
            _ => "",
        };
        let shown = if mark.is_empty() {
            &expected[..]
        } else {
            &expected[expected.len().saturating_sub(frames.len())..]
        };
        match difference(&frames, shown) {
            Some(text) => {
                seen.wrong.get_or_insert(format!("{mark} {text}"));
            }
            None if mark.is_empty() => seen.whole += count,
            None => seen.marked.push(Marked {
                mark: mark.to_owned(),
                frames: frames.len(),
                samples: count,
            }),
        }
    }
    Ok(seen)
}

/// A frame as a workload tells it: its name, its file, and the lines that it may be on.
#[derive(Debug, serde::Deserialize)]
struct Frame(String, String, Vec<u32>);

fn difference(frames: &[&str], expected: &[Frame]) -> Option<String> {
    if frames.len() != expected.len() {
        let (seen, expected) = (frames.len(), expected.len());
        return Some(format!("{seen} frames instead of {expected}"));
    }
    frames.iter().zip(expected).find_map(|(seen, expected)| {
        let Frame(name, file, lines) = expected;
        let mut places = lines.iter().map(|line| format!("{name} ({file}:{line})"));
        (!places.any(|place| place == *seen)).then(|| format!("{seen} instead of {expected:?}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str =
        r#"{"pid": 7, "stack": [["<module>", "/a.py", [9]], ["f", "/a.py", [2, 3]]]}"#;

    fn compared(folded: &str) -> Seen {
        compare(folded, SAID).expect("it can be read")
    }

    #[test]
    fn the_stack_that_is_told_is_counted() {
        let folded = "<module> (/a.py:9);f (/a.py:2) 3\n<module> (/a.py:9);f (/a.py:3) 1\n\
                      [truncated: deep];f (/a.py:3) 5\n";
        let expected = Seen {
            whole: 4,
            marked: vec![Marked {
                mark: "[truncated: deep]".to_owned(),
                frames: 1,
                samples: 5,
            }],
            wrong: None,
        };
        assert_eq!(compared(folded), expected);
        let other =
            "process 8:\"x\";g (/b.py:1) 3\nprocess 7:\"x\";<module> (/a.py:9);f (/a.py:2) 2\n";
        assert_eq!(compared(other).whole, 2);
    }

    #[test]
    fn another_line_name_or_depth_is_wrong() {
        for folded in [
            "<module> (/a.py:9);f (/a.py:4) 1\n",
            "<module> (/a.py:9);g (/a.py:2) 1\n",
            "f (/a.py:2) 1\n",
            "[truncated: deep];<module> (/a.py:8);f (/a.py:2) 1\n",
            "[truncated: deep];g (/a.py:2) 1\n",
        ] {
            let seen = compared(folded);
            assert!(seen.wrong.is_some() && seen.whole == 0, "{folded}");
        }
    }
}
