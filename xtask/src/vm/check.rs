//! What is done in a guest, and what came of it: on each Python a recording of the known stack and
//! one of recursions of 900 and of 3000 frames, the first also timed by the kernel; one of native
//! frames; and on one of them one of the kernel's.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::boot::Ended;
use super::initrd::SHARED;
use super::native;
use super::quoted;
use super::stack::{self, Seen};

/// Most frames that a sample keeps: `MAX_FRAMES` of `profiler-ebpf/src/lib.rs`.
const FRAMES_MAX: usize = 1024;
/// Versions of pyenv whose frame chains have different shapes, so far as they are installed.
const MINORS: [u32; 2] = [8, 12];
/// Of each workload at least so many samples.
const SAMPLES_MIN: u64 = 20;
/// Seconds of a recording: long enough for a share of samples where all is slow.
const SECONDS: u32 = 6;
/// Complete stacks of the known stack, in per cent.
const COMPLETE_MIN: f64 = 99.5;
/// Native stacks that go down to the thread's first frame, in per cent: code that libffi makes at run
/// time ends some.
const NATIVE_MIN: f64 = 99.0;
/// `BPF_PROG_TYPE_PERF_EVENT` (include/uapi/linux/bpf.h).
const PERF_EVENT_PROGRAM: u64 = 7;

/// A Python of this machine.
#[derive(Clone, Debug)]
pub(crate) struct Python {
    pub(crate) name: String,
    program: PathBuf,
}

/// How one Python fared under one kernel.
#[derive(Debug)]
pub(crate) struct Row {
    /// As `uname -r` prints it.
    pub(crate) kernel: String,
    pub(crate) python: String,
    /// Samples of the known stack that were read, and how many of them are complete.
    pub(crate) samples: u64,
    pub(crate) complete: u64,
    /// Samples of native frames, and how many of them have all.
    pub(crate) native: u64,
    pub(crate) native_complete: u64,
    /// How frames are stepped over: `bpf_loop`, or programs that call each other.
    pub(crate) steps: &'static str,
    /// Of one run of the program, in nanoseconds: a mean over the recording of the known stack.
    pub(crate) time: Option<f64>,
    /// What is wrong, if anything is.
    pub(crate) failure: Option<String>,
}

/// Pythons to try: the system's and some of pyenv's.
pub(super) fn pythons() -> Result<Vec<Python>> {
    let mut found = Vec::new();
    if let Ok(program) = fs::canonicalize("/usr/bin/python3") {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("system {}", name.trim_start_matches("python"));
        found.push(Python { name, program });
    }
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv"));
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from).or(home);
    let versions = root.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let mut others: Vec<Python> = versions
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().into_string().ok()?;
            let minor = version
                .strip_prefix("3.")?
                .split('.')
                .next()?
                .parse()
                .ok()?;
            let program = entry.path().join("bin/python3");
            (MINORS.contains(&minor) && program.is_file()).then(|| Python {
                name: format!("pyenv {version}"),
                program,
            })
        })
        .collect();
    others.sort_by(|one, other| one.name.cmp(&other.name));
    found.append(&mut others);
    if found.is_empty() {
        bail!(
            "there is no Python on this machine: neither /usr/bin/python3 nor pyenv's 3.8 or 3.12"
        );
    }
    Ok(found)
}

/// The guest's job: a shell script that leaves its findings in files named after the Python's
/// number.
pub(super) fn script(pyebpf: &Path, workloads: &Path, cases: &[Case<'_>]) -> Result<String> {
    let mut text = format!(
        r#"cd {SHARED}
uname -r > release
echo 1 > /proc/sys/kernel/bpf_stats_enabled
# Starts a workload and waits until it tells its stack: FILE PYTHON SCRIPT ARGUMENTS
start() {{
    file=$1; shift
    "$@" > $file.said 2> $file.stderr &
    echo $! > $file.pid
    n=0
    while [ ! -s $file.said ] && [ $n -lt 600 ]; do sleep 0.1; n=$((n + 1)); done
}}
# Records two processes and keeps what the kernel tells of the programs meanwhile:
# FILE SECONDS FLAGS PID PID
watch() {{
    {pyebpf} record -p $4 -p $5 $3 -d $2 -r 199 -f raw --full-filenames -o $1.folded \
        2> $1.summary &
    p=$!
    most=1
    while kill -0 $p 2> /dev/null; do
        grep -h -E '^(pos|prog_type|run_time_ns|run_cnt)' /proc/$p/fdinfo/* > $1.new 2> /dev/null
        # At its end its files are closed one by one.
        n=$(wc -l < $1.new)
        [ $n -ge $most ] && {{ most=$n; mv $1.new $1.runs; }}
        sleep 0.2
    done
    wait $p
    echo $? > $1.code
    kill $4 $5
    wait
}}
"#,
        pyebpf = of(pyebpf)?,
    );
    for (number, (python, steps)) in cases.iter().enumerate() {
        let python = of(&python.program)?;
        let known = of(&workloads.join("known_stack.py"))?;
        let deep = of(&workloads.join("deep.py"))?;
        let native = of(&workloads.join("native.py"))?;
        write!(
            text,
            "start {number}.known {python} {known}\n\
             start {number}.other {python} {known}\n\
             watch {number}.stack {SECONDS} '--steps {steps}' $(cat {number}.known.pid) $(cat {number}.other.pid)\n\
             start {number}.900 {python} {deep} 900\n\
             start {number}.3000 {python} {deep} 3000\n\
             watch {number}.deep {SECONDS} '--steps {steps}' $(cat {number}.900.pid) $(cat {number}.3000.pid)\n\
             start {number}.sorts {python} {native}\n\
             start {number}.more {python} {native}\n\
             watch {number}.native {SECONDS} '--steps {steps} --native' $(cat {number}.sorts.pid) $(cat {number}.more.pid)\n"
        )?;
        if tries_kernel(cases, number) {
            let kernel = of(&workloads.join("kernel.py"))?;
            write!(
                text,
                "start {number}.zeros {python} {kernel}\n\
                 start {number}.again {python} {kernel}\n\
                 watch {number}.kernel {SECONDS} '--steps {steps} --kernel' $(cat {number}.zeros.pid) $(cat {number}.again.pid)\n"
            )?;
        }
    }
    Ok(text)
}

/// A Python, and how pyebpf is to step.
pub(super) type Case<'a> = (&'a Python, &'static str);

/// What is tried: each Python, and on a kernel that has a loop also, with the first of them, what
/// pyebpf does without.
pub(super) fn cases(pythons: &[Python], has_loop: bool) -> Vec<Case<'_>> {
    let best = pythons.iter().map(|python| (python, "best"));
    let calls = pythons.iter().take(usize::from(has_loop));
    let calls = calls.map(|python| (python, "calls"));
    best.chain(calls).collect()
}

/// Whether the kernel's frames are asked for in this case: of one Python, with each way to step.
fn tries_kernel(cases: &[Case<'_>], number: usize) -> bool {
    cases[number].0.program == cases[0].0.program
}

fn of(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{path:?} is not UTF-8"))?;
    Ok(quoted(text))
}

/// Judges what the job left.
pub(super) fn rows(kernel: &str, ended: &Ended, cases: &[Case<'_>]) -> Vec<Row> {
    cases
        .iter()
        .enumerate()
        .map(|(number, (python, _))| {
            let runs = runs(&ended.file(&format!("{number}.stack.runs")));
            let mut row = Row {
                kernel: kernel.to_owned(),
                python: python.name.clone(),
                samples: 0,
                complete: 0,
                native: 0,
                native_complete: 0,
                steps: match runs.programs {
                    _ if runs.count == 0 => "–",
                    1 => "bpf_loop",
                    _ => "tail calls",
                },
                time: (runs.count > 0).then(|| runs.time as f64 / runs.count as f64),
                failure: None,
            };
            let judged =
                judge(&mut row, ended, number).and_then(|()| match tries_kernel(cases, number) {
                    true => judge_kernel(ended, number),
                    false => Ok(()),
                });
            if let Err(error) = judged {
                row.failure = Some(format!("{error:#}"));
            }
            row
        })
        .collect()
}

fn judge(row: &mut Row, ended: &Ended, number: usize) -> Result<()> {
    let seen = seen(ended, number, "stack", "known")?;
    let marked: u64 = seen.marked.iter().map(|marked| marked.samples).sum();
    row.complete = seen.whole;
    row.samples = seen.whole + marked;
    let share = 100.0 * row.complete as f64 / row.samples.max(1) as f64;
    enough(row.samples, "of the known stack")?;
    ensure!(
        share >= COMPLETE_MIN,
        "only {share:.1} % of the samples of the known stack are complete: {:?}",
        seen.marked
    );
    let seen = self::seen(ended, number, "deep", "900")?;
    enough(seen.whole, "of a recursion of 900 frames")?;
    let seen = self::seen(ended, number, "deep", "3000")?;
    let cut = seen.marked.iter();
    let cut = cut.filter(|marked| marked.frames == FRAMES_MAX);
    let cut = cut.map(|marked| marked.samples).sum();
    enough(
        cut,
        "of a recursion of 3000 frames that show the newest 1024",
    )?;
    ensure!(seen.whole == 0, "a stack of 3000 frames can't be complete");
    let folded = recorded(ended, number, "native")?;
    let said = ended.file(&format!("{number}.sorts.said"));
    let seen = native::look(&folded, &said)?;
    row.native = seen.whole + seen.cut;
    row.native_complete = seen.whole;
    enough(seen.placed, "of Python that C calls")?;
    let share = 100.0 * seen.whole as f64 / row.native as f64;
    ensure!(
        share >= NATIVE_MIN,
        "only {share:.1} % of the samples have all native frames: {:?}",
        seen.marks
    );
    Ok(())
}

/// The kernel's frames of a thread that reads /dev/zero.
fn judge_kernel(ended: &Ended, number: usize) -> Result<()> {
    let folded = recorded(ended, number, "kernel")?;
    let mut reading = 0;
    for line in folded.lines() {
        let (stack, count) = line.rsplit_once(' ').context("a line without a count")?;
        let frames: Vec<&str> = stack.split(';').collect();
        let at = |name: &str| frames.iter().position(|frame| *frame == name);
        let called = at("do_syscall_64 ([kernel])");
        // The latter up to 5.13: drivers/char/mem.c.
        let read = at("read_zero ([kernel])").or_else(|| at("read_iter_zero ([kernel])"));
        if called.is_some() && called < read {
            reading += count.parse::<u64>()?;
        }
    }
    enough(reading, "of the kernel's reading of /dev/zero")
}

fn enough(samples: u64, what: &str) -> Result<()> {
    ensure!(samples >= SAMPLES_MIN, "only {samples} samples {what}");
    Ok(())
}

/// The stacks of a recording; an error when it failed.
fn recorded(ended: &Ended, number: usize, recording: &str) -> Result<String> {
    let file = |name: &str| ended.file(&format!("{number}.{recording}.{name}"));
    let code = file("code");
    ensure!(
        code.trim() == "0",
        "pyebpf ended with {:?} and said:\n{}",
        code.trim(),
        file("summary")
    );
    Ok(file("folded"))
}

/// What a recording shows of one workload; an error when it failed or shows something else.
fn seen(ended: &Ended, number: usize, recording: &str, workload: &str) -> Result<Seen> {
    let folded = recorded(ended, number, recording)?;
    let file = |name: &str| ended.file(&format!("{number}.{name}"));
    let said = file(&format!("{workload}.said"));
    let seen =
        stack::compare(&folded, &said).with_context(|| file(&format!("{workload}.stderr")))?;
    match &seen.wrong {
        Some(wrong) => bail!("a wrong stack of {workload}: {wrong}"),
        None => Ok(seen),
    }
}

/// The programs of perf events that a process holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Runs {
    programs: usize,
    /// Of the one that ran most: how often, and nanoseconds altogether.
    count: u64,
    time: u64,
}

/// From the `fdinfo` of one descriptor after another, each of which begins with `pos:`.
fn runs(text: &str) -> Runs {
    let mut runs = Runs::default();
    for part in text.split("pos:") {
        let field = |name: &str| -> Option<u64> {
            let line = part.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        if field("prog_type:") != Some(PERF_EVENT_PROGRAM) {
            continue;
        }
        runs.programs += 1;
        if let (Some(count), Some(time)) = (field("run_cnt:"), field("run_time_ns:"))
            && count > runs.count
        {
            (runs.count, runs.time) = (count, time);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_those_of_the_program_that_the_events_call() {
        let text = "pos:\t0\npos:\t0\nprog_type:\t7\nrun_time_ns:\t900\nrun_cnt:\t3\npos:\t0\n\
                    prog_type:\t17\nrun_time_ns:\t5\nrun_cnt:\t50\npos:\t0\nprog_type:\t7\n\
                    run_time_ns:\t0\nrun_cnt:\t0\n";
        let expected = Runs {
            programs: 2,
            count: 3,
            time: 900,
        };
        assert_eq!(runs(text), expected);
        assert_eq!(runs("pos: 0\n"), Runs::default());
    }

    #[test]
    fn a_script_quotes_its_paths() {
        let python = Python {
            name: "system 3.11".to_owned(),
            program: "/a b/python3".into(),
        };
        let text = script(
            Path::new("/x/py ebpf"),
            Path::new("/w"),
            &[(&python, "best")],
        )
        .expect("quoted");
        assert!(text.contains("'/x/py ebpf' record"), "{text}");
        assert!(
            text.contains("start 0.900 '/a b/python3' '/w/deep.py' 900"),
            "{text}"
        );
        let text = script(Path::new("/it's"), Path::new("/w"), &[]).expect("quoted");
        assert!(text.contains(r"'/it'\''s' record"), "{text}");
    }
}
