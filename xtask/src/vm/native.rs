//! Whether a recording with native frames shows those of `tests/python/native.py`: collapsed stacks and
//! the workload's own JSON line in, numbers of samples out.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::stack::{samples, told};

/// What a recording shows of native frames.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Samples that have all frames, and those that lack some.
    pub(super) whole: u64,
    pub(super) cut: u64,
    /// What stands in place of what these lack, with the newest frame.
    pub(super) marks: BTreeMap<String, u64>,
    /// Whole ones of a Python function that C has called, with each frame in its place.
    pub(super) placed: u64,
}

/// A function that calls C, which calls another one, and the libraries between them, newest last.
#[derive(serde::Deserialize)]
struct Call(String, String, Vec<String>);

/// Looks for them.
///
/// # Errors
/// When frames of C are not where the workload says that they are.
pub(super) fn look(folded: &str, said: &str) -> Result<Seen> {
    let told = told(said)?;
    let calls: Vec<Call> = serde_json::from_value(told["calls"].clone())
        .context("the workload tells its calls in another form")?;
    let mut seen = Seen::default();
    for (frames, count) in samples(folded, &told)? {
        let marked = |frame: &&&str| {
            let marks = ["[truncated", "[unreadable", "[unknown: native frames"];
            marks.iter().any(|mark| frame.starts_with(mark))
        };
        if let Some(mark) = frames.iter().find(marked) {
            seen.cut += count;
            let newest = frames.last().unwrap_or(mark);
            *seen.marks.entry(format!("{mark} {newest}")).or_default() += count;
            continue;
        }
        seen.whole += count;
        for Call(caller, callee, libraries) in &calls {
            let Some(end) = frames.iter().position(|frame| is_named(frame, callee)) else {
                continue;
            };
            let start = frames.iter().rposition(|frame| is_named(frame, caller));
            let between = start.and_then(|start| frames.get(start + 1..end));
            let mut libraries = libraries.iter().peekable();
            for frame in between.unwrap_or_default() {
                libraries.next_if(|library| frame.contains(library.as_str()));
            }
            let native = |frames: &[&str]| !frames.iter().any(|frame| frame.contains(".py:"));
            ensure!(
                between.is_some_and(native) && libraries.next().is_none(),
                "native frames that are not those between {caller} and {callee}: {frames:?}"
            );
            seen.placed += count;
        }
    }
    ensure!(seen.whole + seen.cut > 0, "no samples of native frames");
    Ok(seen)
}

/// Is the frame of this Python function? Its name is qualified from 3.11 on.
fn is_named(frame: &str, function: &str) -> bool {
    let name = frame.split(" (").next().unwrap_or_default();
    name.rsplit('.').next() == Some(function) && frame.contains(".py:")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTHON: &str = "<module> (n.py:9);A.sort (n.py:2)";
    const C: &str = "call (callproc.c:1, _ctypes.so);qsort (libc.so.6);closure (_ctypes.so)";
    const ZLIB: &str = "compare (n.py:1);adler32_z (libz.so.1)";

    fn looked(stacks: &str) -> Result<Seen> {
        let calls = r#"[["sort", "compare", ["_ctypes", "libc.", "_ctypes"]]]"#;
        look(stacks, &format!(r#"{{"pid": 7, "calls": {calls}}}"#))
    }

    #[test]
    fn frames_are_held_to_their_places() {
        let whole = format!("{PYTHON};{C};{ZLIB} 5\n");
        let cut = format!("{PYTHON};[unknown: native frames, too deep];f (libc.so.6) 2\n");
        let other = format!("{PYTHON};{C} 3\n");
        let seen = looked(&format!("{whole}{cut}{other}")).expect("all is well");
        let mark = "[unknown: native frames, too deep] f (libc.so.6)";
        let expected = Seen {
            whole: 8,
            cut: 2,
            marks: BTreeMap::from([(mark.to_owned(), 2)]),
            placed: 5,
        };
        assert_eq!(seen, expected);
        for wrong in [
            format!("{PYTHON};{ZLIB} 5\n"),
            format!("{PYTHON};qsort (libc.so.6);call (_ctypes.so);{ZLIB} 5\n"),
            format!("{PYTHON};{C};f (n.py:3);{ZLIB} 1\n"),
            format!("<module> (n.py:9);{C};{ZLIB} 1\n"),
        ] {
            let error = looked(&wrong).expect_err(&wrong).to_string();
            assert!(error.starts_with("native frames that are not"), "{error}");
        }
        assert!(looked("").is_err());
    }
}
