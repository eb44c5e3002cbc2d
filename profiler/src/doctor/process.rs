//! One process: what it is, which CPython it runs, where that was found, and what its threads do.

use std::fs;

use serde_json::json;

use super::{Finding, Section, Verdict, denied, printable, stacks};
use crate::{
    cpython::{self, Binaries, Detection, Interpreter, origin::Origin},
    preflight::Facts,
    target::{self, Cgroups, Condition, Pid},
};

/// Most frames of the first stack, and most threads, that a person is shown.
const SHOWN_FRAMES: usize = 12;
const SHOWN_THREADS: usize = 8;
/// Most bytes of a process's environment that are read.
const ENVIRONMENT_MAX: usize = 1 << 20;

/// Looks at process `pid`.
pub fn look(pid: Pid) -> Section {
    let mut findings = Vec::new();
    gather(pid, &mut findings);
    Section {
        title: format!("process {pid}"),
        findings,
    }
}

fn gather(pid: Pid, findings: &mut Vec<Finding>) {
    let condition = Condition::of(pid);
    if let Some(obstacle) = condition.obstacle() {
        let absent = Finding::new("process", Verdict::Fail, obstacle).with(pid);
        findings.push(match condition {
            // Whoever names one knows that it is no program.
            Condition::Kernel => absent,
            _ => absent.mended_by("`pgrep -a python` lists those that run Python"),
        });
        return;
    }
    if let Some(process) = target::process_of_thread(pid) {
        findings.push(
            Finding::fail(
                "process",
                format!("{pid} is a thread of process {process}"),
                format!("use `--pid {process}`"),
            )
            .with(pid),
        );
        return;
    }
    let command = printable(&target::command_line(pid));
    findings.push(Finding::ok("process", &command).with(json!({"pid": pid, "command": command})));
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(path) => {
            let path = printable(&path.to_string_lossy());
            findings.push(Finding::info("executable", &path).with(path.as_str()));
        }
        // Whatever is in the way is in the way of all that follows, which says what to do.
        Err(error) => findings.push(Finding::unknown(
            "executable",
            format!("cannot be told: {error}"),
        )),
    }
    if let Some((what, mend)) = condition.standstill(pid) {
        findings.push(Finding::warn("state", what, mend));
    }
    findings.extend(groups(&Cgroups::of(pid).unwrap_or_default()));
    let mut binaries = Binaries::new();
    match cpython::detect(pid, &mut binaries) {
        Err(error) => findings.push(Finding::fail(
            "python",
            format!("cannot look at process {pid}: {error:#}"),
            denied::mend(pid, &error, Facts::gather().ok().as_ref()),
        )),
        Ok(Detection::NotPython) => findings.push(Finding::fail(
            "python",
            "it runs no CPython, or none yet",
            "`pgrep -a python` lists those that do",
        )),
        Ok(Detection::Unsupported { what, why }) => findings.push(
            Finding::fail(
                "python",
                format!("{what}, which pyebpf can't profile: {why}"),
                "run the program with a CPython that the README names",
            )
            .with(what),
        ),
        Ok(Detection::Python(interpreter)) => {
            let version = interpreter.release();
            let checked = match interpreter.checked {
                true => "its structures are as that version has them",
                false => "it is starting: nothing of it could be checked yet",
            };
            findings.push(
                Finding::ok("python", format!("CPython {version}; {checked}"))
                    .with(version.as_str()),
            );
            if !interpreter.remarks.is_empty() {
                let remarks = interpreter.remarks.iter().map(|remark| printable(remark));
                let remarks: Vec<String> = remarks.collect();
                findings.push(Finding::info("limits", remarks.join("\n")).with(json!(remarks)));
            }
            let origin = cpython::origin::origin(pid, &mut binaries, &interpreter);
            match origin {
                Ok(Some(origin)) => findings.extend(found(pid, &origin, &interpreter)),
                Ok(None) => findings.push(Finding::unknown("runtime", "its file is gone")),
                Err(error) => findings.push(Finding::unknown("runtime", format!("{error:#}"))),
            }
            findings.extend(threads(pid, &interpreter));
        }
    }
}

/// Of what build it is and where its runtime is.
fn found(pid: Pid, origin: &Origin, interpreter: &Interpreter) -> [Finding; 2] {
    let mut build = Vec::new();
    build.push(if origin.library { "shared" } else { "static" });
    build.push(origin.c_library.unwrap_or("of an unknown C library"));
    if interpreter.is_free_threaded() {
        build.push("free-threaded");
    }
    // Include/internal/pycore_optimizer.h: read when the interpreter starts, 3.13 and later.
    if has_variable(pid, b"PYTHON_JIT=1") {
        build.push("JIT asked for");
    }
    if origin.deleted {
        build.push("file deleted or replaced since");
    }
    let file = printable(&origin.file.to_string_lossy());
    let address = interpreter.target.interpreters;
    [
        Finding::info("build", build.join(", ")).with(json!(build)),
        Finding::ok(
            "runtime",
            format!(
                "in {file}, by its {}; interpreters at {address:#x}",
                origin.root
            ),
        )
        .with(json!({"file": file, "by": origin.root, "interpreters": address})),
    ]
}

/// Whether the process was started with this variable.
fn has_variable(pid: Pid, variable: &[u8]) -> bool {
    use std::io::Read as _;

    let mut environment = Vec::new();
    let read = fs::File::open(format!("/proc/{pid}/environ")).and_then(|file| {
        file.take(ENVIRONMENT_MAX as u64)
            .read_to_end(&mut environment)
    });
    read.is_ok()
        && environment
            .split(|&byte| byte == 0)
            .any(|set| set == variable)
}

/// The control group, and the container whose it is, if it is one's. None where the kernel has none.
fn groups(groups: &Cgroups) -> Vec<Finding> {
    let path = printable(&groups.shown());
    let mut findings = Vec::new();
    if !path.is_empty() {
        findings.push(Finding::info("cgroup", &path).with(path.as_str()));
    }
    findings.extend(
        groups
            .container()
            .map(|id| Finding::info("container", id).with(id)),
    );
    findings
}

/// Which ways lead to the thread states, and the first stack.
fn threads(pid: Pid, interpreter: &Interpreter) -> Vec<Finding> {
    let threads = stacks::read(pid, interpreter);
    let Some(first) = threads.iter().find(|thread| thread.depth > 0) else {
        return vec![
            Finding::warn(
                "threads",
                match threads.len() {
                    0 => "no thread has a thread state: the interpreter is starting or ending"
                        .to_owned(),
                    count => format!("{count} have a thread state and none has a Python frame"),
                },
                format!("look again with `pyebpf doctor --pid {pid}`"),
            )
            .with(json!(threads)),
        ];
    };
    let mut lines: Vec<String> = threads
        .iter()
        .take(SHOWN_THREADS)
        .map(|thread| {
            format!(
                "{}: {} frames, {}; thread state by {}",
                thread
                    .tid
                    .map_or_else(|| "thread".to_owned(), |tid| tid.to_string()),
                thread.depth,
                thread.outcome.replace('_', " "),
                thread.route.replace('_', " "),
            )
        })
        .collect();
    if threads.len() > SHOWN_THREADS {
        lines.push(format!("and {} more", threads.len() - SHOWN_THREADS));
    }
    let mut stack: Vec<&str> = first.frames.iter().map(String::as_str).collect();
    let deeper = format!("… {} frames in all", first.depth);
    if stack.len() > SHOWN_FRAMES {
        stack.truncate(SHOWN_FRAMES);
        stack.push(&deeper);
    }
    let named = |frame: &String| !frame.starts_with("[unknown");
    let whole = first.outcome == "complete" && first.frames.iter().all(named);
    let stack = stack.join("\n") + "\n(read while it runs: it may mix two moments)";
    vec![
        Finding::ok("threads", lines.join("\n")).with(json!(threads)),
        if whole {
            Finding::ok("first_stack", stack)
        } else {
            Finding::warn(
                "first_stack",
                format!("{stack}\n{}", first.outcome.replace('_', " ")),
                format!("look again with `pyebpf doctor --pid {pid}`"),
            )
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_said_in_one_line() {
        let section = look(u32::MAX);
        assert_eq!(section.findings.len(), 1);
        assert_eq!(section.findings[0].seen, "does not exist");
    }

    #[test]
    fn the_control_group_is_shown_and_whose_container_it_is() {
        let seen = |text: &str| -> Vec<_> {
            let found = groups(&Cgroups::parse(text.as_bytes())).into_iter();
            found.map(|finding| (finding.key, finding.seen)).collect()
        };
        let id = "0123456789abcdef".repeat(4);
        let path = format!("/docker/{id}");
        let both = vec![("cgroup", path.clone()), ("container", id)];
        assert_eq!(seen(&format!("0::{path}\n")), both);
        assert_eq!(seen("0::/a\x1b\n"), [("cgroup", "/a?".to_owned())]);
        assert_eq!(seen(""), []);
    }
}
