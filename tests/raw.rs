//! Reads the collapsed form back: one line a stack, frames from root to leaf, `;` between them, a
//! space and the count at the end. Knows how pyebpf writes process, thread and marker frames, and
//! undoes its escapes.

use anyhow::{Context as _, Result, ensure};

/// One line of a collapsed profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The process id, where the line begins with `process PID:"command line"`.
    pub process: Option<u32>,
    /// What the process frame says of its container: the beginning of the id.
    pub container: Option<String>,
    /// The thread frame, where there is one.
    pub thread: Option<Thread>,
    /// The marker frame, such as `[truncated: depth]`, without its brackets.
    pub marker: Option<String>,
    /// The Python frames, from root to leaf.
    pub frames: Vec<Frame>,
    /// How many samples.
    pub count: u64,
}

/// A thread frame: `thread (ID): name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// What stands in the parentheses.
    pub id: String,
    /// What follows the colon.
    pub name: String,
}

/// A frame: `name (file:line)`, of native code `name (file:line, module)` or `name (module)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The qualified name where the version has one, else the bare one.
    pub name: String,
    /// The file, or nothing for a frame that has none.
    pub file: String,
    /// The library or program of a native frame that has a source file, too.
    pub module: String,
    /// The line, or 0.
    pub line: u32,
}

/// Reads a whole profile.
///
/// # Errors
///
/// When a line has no count.
pub fn parse(text: &str) -> Result<Vec<Stack>> {
    text.lines().map(parse_line).collect()
}

/// The samples of these stacks in total.
pub fn samples<'a>(stacks: impl IntoIterator<Item = &'a Stack>) -> u64 {
    stacks.into_iter().map(|stack| stack.count).sum()
}

fn parse_line(line: &str) -> Result<Stack> {
    let (frames, count) = line.rsplit_once(' ').context("a line without a count")?;
    let count = count
        .parse()
        .with_context(|| format!("the count of {line:?}"))?;
    let mut stack = Stack {
        process: None,
        container: None,
        thread: None,
        marker: None,
        frames: Vec::new(),
        count,
    };
    for text in frames.split(';') {
        let before_python = stack.frames.is_empty();
        if let Some(pid) = process(text) {
            ensure!(before_python, "a process frame under Python frames: {line}");
            stack.process = Some(pid);
            let container = text.rsplit_once("\" in container ");
            stack.container = container.map(|(_, id)| id.to_owned());
        } else if let Some(thread) = thread(text) {
            ensure!(before_python, "a thread frame under Python frames: {line}");
            stack.thread = Some(thread);
        } else if let Some(marker) = marker(text) {
            ensure!(before_python, "a marker under Python frames: {line}");
            stack.marker = Some(marker.to_owned());
        } else {
            stack.frames.push(frame(&unescape(text)));
        }
    }
    Ok(stack)
}

fn process(text: &str) -> Option<u32> {
    let (pid, command) = text.strip_prefix("process ")?.split_once(':')?;
    command.starts_with('"').then(|| pid.parse().ok())?
}

fn thread(text: &str) -> Option<Thread> {
    let rest = text.strip_prefix("thread (")?;
    let (id, rest) = rest.split_once(')')?;
    Some(Thread {
        id: id.to_owned(),
        name: rest.strip_prefix(": ").unwrap_or(rest).to_owned(),
    })
}

/// A marker stands for a part of the stack; `[unknown: …]` stands for a name and is a frame.
fn marker(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    (!inner.starts_with("unknown")).then_some(inner)
}

fn frame(text: &str) -> Frame {
    let frame = |name: &str, file: &str, line, module: &str| Frame {
        name: name.to_owned(),
        file: file.to_owned(),
        module: module.to_owned(),
        line,
    };
    let whole = || frame(text, "", 0, "");
    let Some(inner) = text.strip_suffix(')') else {
        return whole();
    };
    // A file name may hold " (": the last one that leaves a name before it is the frame's own only
    // when the name has none, and Python names have no spaces.
    let Some((name, place)) = inner.split_once(" (") else {
        return whole();
    };
    let (place, module) = match place.rsplit_once(", ") {
        // Modules have no line; neither has a name with a comma in it a Python file's end.
        Some((source, module)) if !module.contains(".py") => (source, module),
        _ => (place, ""),
    };
    match place.rsplit_once(':') {
        Some((file, line)) if line.parse::<u32>().is_ok() => {
            frame(name, file, line.parse().unwrap_or(0), module)
        }
        _ => frame(name, place, 0, module),
    }
}

/// Undoes `\xNN`, `\uNNNN`, `\n`, `\r`, `\t` and a doubled backslash; the rest stays as it is.
fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let (character, length) = match after.as_bytes().first() {
            Some(b'n') => (Some('\n'), 1),
            Some(b'r') => (Some('\r'), 1),
            Some(b't') => (Some('\t'), 1),
            Some(b'\\') => (Some('\\'), 1),
            Some(b'x') => (hexadecimal(after.get(1..3)), 3),
            Some(b'u') => (hexadecimal(after.get(1..5)), 5),
            _ => (None, 0),
        };
        match character {
            Some(character) => {
                plain.push(character);
                rest = &after[length..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain + rest
}

fn hexadecimal(digits: Option<&str>) -> Option<char> {
    char::from_u32(u32::from_str_radix(digits?, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_kind_of_frame() {
        let line = "process 7:\"python3 a.py\" in container 0123456789ab;thread (8): main;[truncated: depth];\
                    f (/a b (c)/d:e.py:12);g (h.py);q (m.c:4, l.so);[unknown: gone] 3";
        let stack = parse_line(line).expect("a stack");
        assert_eq!((stack.process, stack.count), (Some(7), 3));
        assert_eq!(stack.container.as_deref(), Some("0123456789ab"));
        assert_eq!(stack.thread.map(|thread| thread.id), Some("8".to_owned()));
        assert_eq!(stack.marker.as_deref(), Some("truncated: depth"));
        let frame = |name: &str, file: &str, line, module: &str| Frame {
            name: name.to_owned(),
            file: file.to_owned(),
            module: module.to_owned(),
            line,
        };
        assert_eq!(
            stack.frames,
            [
                frame("f", "/a b (c)/d:e.py", 12, ""),
                frame("g", "h.py", 0, ""),
                frame("q", "m.c", 4, "l.so"),
                frame("[unknown: gone]", "", 0, "")
            ]
        );
    }

    #[test]
    fn undoes_escapes() {
        assert_eq!(unescape(r"a\x3bb\\x3b\n\u2028\q"), "a;b\\x3b\n\u{2028}\\q");
    }

    #[test]
    fn refuses_what_is_no_stack() {
        assert!(parse("a;b").is_err());
        assert!(parse("a;b x").is_err());
        assert!(parse("f (a:1);[truncated: depth] 1").is_err());
    }
}
