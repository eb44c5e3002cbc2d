//! What of BPF this kernel has, tried one by one, and whether the kernel program passes the verifier
//! and runs when a CPU's clock fires.

use std::time::{Duration, Instant};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use profiler_ebpf::Counter;

use super::Finding;
use crate::bpf::{Kernel, Settings, Steps};

/// The rate of the trial, and how long it may take until the clock has fired on this CPU.
const TRIAL_RATE: u32 = 49;
const TRIAL_MAX: Duration = Duration::from_secs(2);

const MAPS: [(MapType, &str); 5] = [
    (MapType::RingBuf, "ring buffer"),
    (MapType::Hash, "hash"),
    (MapType::Array, "array"),
    (MapType::PerCpuArray, "per-CPU array"),
    (MapType::ProgramArray, "program array"),
];
const PROGRAMS: [(ProgramType, &str); 2] = [
    (ProgramType::PerfEvent, "perf event"),
    (ProgramType::RawTracePoint, "raw tracepoint"),
];
const HELPERS: [(BpfHelper, &str); 4] = [
    (BpfHelper::BPF_FUNC_probe_read_user, "bpf_probe_read_user"),
    (
        BpfHelper::BPF_FUNC_probe_read_kernel,
        "bpf_probe_read_kernel",
    ),
    (BpfHelper::BPF_FUNC_get_current_task, "bpf_get_current_task"),
    (BpfHelper::BPF_FUNC_ringbuf_output, "bpf_ringbuf_output"),
];

/// Tries all of it, if pyebpf is `ready` to: without privileges each trial would fail for their lack.
pub(super) fn look(ready: bool) -> Vec<Finding> {
    if !ready {
        return ["bpf_maps", "bpf_programs", "bpf_helpers", "kernel_program"]
            .map(|key| Finding::unknown(key, "not tried: mend the above first"))
            .into();
    }
    vec![
        features("bpf_maps", &MAPS, |kind| {
            is_map_supported(kind).map_err(|error| error.to_string())
        }),
        features("bpf_programs", &PROGRAMS, |kind| {
            is_program_supported(kind).map_err(|error| error.to_string())
        }),
        features("bpf_helpers", &HELPERS, |helper| {
            let found = is_helper_supported(ProgramType::PerfEvent, helper);
            found.map_err(|error| error.to_string())
        }),
        trial(),
    ]
}

/// Which of these the kernel has.
fn features<T: Copy>(
    key: &'static str,
    features: &[(T, &'static str)],
    supported: impl Fn(T) -> Result<bool, String>,
) -> Finding {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for &(feature, name) in features {
        match supported(feature) {
            Ok(true) => found.push(name),
            Ok(false) => missing.push(name),
            Err(error) => return Finding::unknown(key, format!("cannot try {name}: {error}")),
        }
    }
    if missing.is_empty() {
        return Finding::ok(key, found.join(", ")).with(found);
    }
    Finding::fail(
        key,
        format!("this kernel has no {}", missing.join(", ")),
        "update the kernel: those of Debian 11, Ubuntu 22.04 and RHEL 9 or later have them",
    )
    .with(found)
}

/// Loads the programs, starts the clocks, and keeps this CPU busy until one has fired.
fn trial() -> Finding {
    const KEY: &str = "kernel_program";
    match run() {
        Ok((runs, took, steps)) if runs > 0 => Finding::ok(
            KEY,
            format!(
                "the verifier takes it, stepping by {steps}, and it ran when a CPU's clock fired, \
                 {:.0} ms later",
                1e3 * took.as_secs_f64()
            ),
        ),
        Ok((_, took, _)) => Finding::fail(
            KEY,
            format!(
                "the verifier takes it, but no CPU's clock fired in {:.1} s",
                took.as_secs_f64()
            ),
            "see whether `perf record -e cpu-clock -a sleep 1` gets samples; `dmesg | tail` may say more",
        ),
        Err(error) => Finding::fail(
            KEY,
            format!("{error:#}"),
            "update the kernel; if it is a recent one, please report this text",
        ),
    }
}

fn run() -> anyhow::Result<(u64, Duration, &'static str)> {
    let mut kernel = Kernel::load(Settings {
        rate: TRIAL_RATE,
        all_processes: false,
        follow_children: false,
        log: false,
        ring: None,
        steps: Steps::Best,
        native: false,
        kernel: false,
        timed: false,
    })?;
    let steps = match kernel.steps() {
        Steps::Calls => "tail calls (there is no bpf_loop)",
        Steps::Loop | Steps::Best => "bpf_loop",
    };
    kernel.start()?;
    let start = Instant::now();
    loop {
        let runs = kernel.counts()?.counter(Counter::Fired);
        let took = start.elapsed();
        if runs > 0 || took > TRIAL_MAX {
            return Ok((runs, took, steps));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_missing_feature_fails_by_its_name_and_an_error_is_no_absence() {
        let features = |second: Result<bool, String>| {
            features("bpf_maps", &[(1, "one"), (2, "two")], move |number| {
                if number == 1 {
                    Ok(true)
                } else {
                    second.clone()
                }
            })
        };
        let all = features(Ok(true));
        assert_eq!((all.verdict, all.seen.as_str()), (Verdict::Ok, "one, two"));
        let fewer = features(Ok(false));
        assert_eq!(fewer.verdict, Verdict::Fail);
        assert_eq!(fewer.seen, "this kernel has no two");
    }

    #[test]
    fn without_privileges_nothing_is_guessed() {
        let findings = look(false);
        assert!(
            findings
                .iter()
                .all(|finding| finding.verdict == Verdict::Unknown)
        );
    }
}
