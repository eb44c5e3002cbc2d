//! How frames, threads and processes read: `name (file:line)`, `thread (TID): name`,
//! `process PID:"command line" in container ID`, the way py-spy's users know them. Text of targets is escaped.

use std::fmt::Write;

use super::{FrameId, Function, ProcessId, Profile, ThreadId};

/// Digits of a container's id that are shown.
const SHORT_ID: usize = 12;

impl Profile {
    /// `name (file:line)`, `name (file)` where no line is shown, or the marker as it is; of native code
    /// `name (file:line, module)`, `name (module)` or `[unknown in module+0x12]`.
    pub fn frame_label(&self, id: FrameId) -> String {
        let frame = self.frame_of(id);
        self.function_label(self.function_of(frame.function), frame.line)
    }

    /// The same of a function at a line, or at none.
    pub(super) fn function_label(&self, function: &Function, line: Option<u32>) -> String {
        let mut label = escape(&function.name);
        if function.is_marker() || function.module.is_some() && label.starts_with('[') {
            return label;
        }
        label.push_str(" (");
        label.push_str(&escape(self.shown_file(function)));
        if let Some(line) = line {
            // Writing into a String does not fail.
            let _ = write!(label, ":{line}");
        }
        if let Some(module) = self.shown_module(function) {
            if !function.file.is_empty() {
                label.push_str(", ");
            }
            label.push_str(&escape(module));
        }
        label.push(')');
        label
    }

    /// The file name that the shape shows.
    pub fn shown_file<'a>(&self, function: &'a Function) -> &'a str {
        if self.shape().full_filenames {
            &function.file
        } else {
            &function.short_file
        }
    }

    /// The library or program that the shape shows; none of Python.
    pub fn shown_module(&self, function: &Function) -> Option<&str> {
        let module = self.module_of(function.module?);
        Some(match self.shape().full_filenames {
            true => &module.path,
            false => module.name(),
        })
    }

    /// `thread (TID): name`: Python's name of it, else the kernel's.
    pub fn thread_label(&self, id: ThreadId) -> String {
        let thread = self.thread(id);
        let name = if thread.name.is_empty() {
            &thread.comm
        } else {
            &thread.name
        };
        if name.is_empty() {
            return format!("thread ({})", thread.tid);
        }
        format!("thread ({}): {}", thread.tid, escape(name))
    }

    /// `process PID:"command line"`, and in which container it is: as much of the id as Docker shows.
    pub fn process_label(&self, id: ProcessId) -> String {
        let process = self.process(id);
        let command_line = escape(&process.command_line);
        let label = format!("process {}:\"{command_line}\"", process.pid);
        match process.container.get(..SHORT_ID) {
            Some(container) => format!("{label} in container {}", escape(container)),
            None => label,
        }
    }

    /// The labels that go below a thread's stacks, as far as the shape wants them: process, then
    /// thread. `processes` is whether more than one process has samples.
    pub fn root_labels(&self, id: ThreadId, processes: bool) -> Vec<String> {
        let mut labels = Vec::new();
        if self.shape().processes && processes {
            labels.push(self.process_label(self.thread(id).process));
        }
        if self.shape().threads {
            labels.push(self.thread_label(id));
        }
        labels
    }
}

/// A number with its noun.
pub fn plural(count: u64, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {many}"),
    }
}

/// Escapes what would break a line of collapsed stacks, or a terminal, the way a Python string
/// literal does: `;` is `\x3b`, a line feed `\n`, any other control character, line separator or
/// change of direction `\xNN` or `\uNNNN`, and a backslash `\\`, so that nothing is ambiguous.
/// A `#` at the beginning, which readers of that format take for a comment, is `\x23`.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (index, character) in text.char_indices() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            '#' if index > 0 => escaped.push('#'),
            ';' | '#' | '\0'..='\x1f' | '\x7f'..='\u{9f}' => {
                let _ = write!(escaped, "\\x{:02x}", character as u32);
            }
            // Separators; marks and overrides of direction; what XML 1.0 has no place for.
            '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                let _ = write!(escaped, "\\u{:04x}", character as u32);
            }
            _ => escaped.push(character),
        }
    }
    escaped
}
