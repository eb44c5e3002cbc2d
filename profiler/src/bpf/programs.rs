//! Which of the object's programs this kernel takes: loads them, attaches those that follow
//! processes, and gives the one that the clocks run. What the verifier refuses is shown with its
//! last words.

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{MapData, ProgramArray},
    programs::{PerfEvent, ProgramError, ProgramType, RawTracePoint},
    sys::{BpfHelper, is_helper_supported},
};

use super::map;

/// How many lines of the verifier's log are shown.
const LOG_LINES: usize = 12;

/// How the kernel program steps from frame to frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Steps {
    /// The best that this kernel has.
    #[default]
    Best,
    /// By the helper `bpf_loop`, which kernels have from 5.17 on.
    Loop,
    /// By programs that call each other, which every kernel can.
    Calls,
}

/// The programs that are loaded.
pub(super) struct Programs {
    /// The one that a clock runs.
    pub(super) sample: &'static str,
    /// How it steps: never [`Steps::Best`].
    pub(super) steps: Steps,
    /// Which programs others call: they are gone with this.
    _called: Option<ProgramArray<MapData>>,
}

impl Programs {
    /// Loads what `steps` asks for, and attaches all but what a clock runs.
    ///
    /// # Errors
    /// When the kernel refuses a program: the verifier's log is in the error.
    pub(super) fn load(ebpf: &mut Ebpf, steps: Steps) -> Result<Programs> {
        for (name, tracepoint) in [
            ("on_exec", "sched_process_exec"),
            ("on_exit", "sched_process_exit"),
            ("on_fork", "sched_process_fork"),
        ] {
            let program: &mut RawTracePoint = program(ebpf, name)?;
            program.load().map_err(|error| refused(name, error))?;
            program
                .attach(tracepoint)
                .with_context(|| format!("cannot attach {name} to {tracepoint}"))?;
        }
        let by_loop = match steps {
            Steps::Best => has_helper(BpfHelper::BPF_FUNC_loop)?,
            Steps::Loop => true,
            Steps::Calls => false,
        };
        if by_loop {
            let sample: &mut PerfEvent = program(ebpf, "sample")?;
            sample.load().map_err(|error| refused("sample", error))?;
            return Ok(Programs {
                sample: "sample",
                steps: Steps::Loop,
                _called: None,
            });
        }
        for name in ["sample_stepwise", "walk_on"] {
            let program: &mut PerfEvent = program(ebpf, name)?;
            program.load().map_err(|error| refused(name, error))?;
        }
        let mut next = ProgramArray::try_from(map(ebpf, "NEXT")?)?;
        let walk_on: &mut PerfEvent = program(ebpf, "walk_on")?;
        next.set(0, walk_on.fd()?, 0)
            .context("cannot make a program call itself")?;
        Ok(Programs {
            sample: "sample_stepwise",
            steps: Steps::Calls,
            _called: Some(next),
        })
    }
}

/// Whether the kernel has this helper: asked, because distributions add to old kernels.
pub(super) fn has_helper(helper: BpfHelper) -> Result<bool> {
    is_helper_supported(ProgramType::PerfEvent, helper)
        .with_context(|| format!("cannot find out whether the kernel has {helper:?}"))
}

/// Why a program was not loaded, with the end of what the verifier said: the rest, thousands of
/// lines, is the way there.
fn refused(name: &str, error: ProgramError) -> anyhow::Error {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = &error
    {
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.trim_end().lines().collect();
        let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ");
        return anyhow!(
            "the kernel refused the program {name}: {io_error}; the verifier's last words:\n  {end}"
        );
    }
    anyhow::Error::new(error).context(format!("the kernel refused the program {name}"))
}

/// The program of this name.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<P>
where
    P: TryFrom<&'a mut aya::programs::Program>,
    <P as TryFrom<&'a mut aya::programs::Program>>::Error: Into<anyhow::Error>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| anyhow!("the kernel object has no program {name}"))?
        .try_into()
        .map_err(Into::into)
}
