//! The contract between the kernel program and the daemon: every type that crosses, every limit
//! that both sides must agree on, and the list of outcomes. No code runs here; the frame walk that
//! both sides share is in [`python`].
//!
//! The ring buffer carries records. Each begins with a `u32` [`RecordKind`]; the kinds are
//! append-only. Maps carry [`Target`] and [`Layout`] values from the daemon to the kernel.

#![no_std]

mod layout;
pub mod native;
mod outcome;
pub mod python;
mod record;
mod unwind;

pub use layout::{Chain, Gil, Layout, Target, TargetState, layout_flags};
pub use outcome::{COUNTERS, Counter, OUTCOMES_MAX, Outcome};
pub use record::{
    CODE_PIECES, Code, Frame, KERNEL_FAILED, KERNEL_ID, NO_INSTRUCTION, Piece, Process,
    ProcessEvent, RecordKind, Sample, Stack,
};
pub use unwind::{
    BLOCK_BITS, Cfa, MAPPING_STEPS, MAX_MAPPINGS, MAX_NATIVE, MAX_PROCESS_MAPPINGS, MAX_RULES,
    Mapping, NativeEnd, PAGE_WORDS, Page, RBP, REGISTERS, ROW_STEPS, RSP, Rbp, Rule, row,
};

/// Most Python frames that one sample keeps; what is deeper is cut at the root end.
/// A power of two: the walk masks its index with it, which is how the verifier knows the bound.
pub const MAX_FRAMES: usize = 1024;

/// Most frames of the kernel that one sample keeps: what its stack walker gives at most, unless
/// `kernel.perf_event_max_stack` says other (`PERF_MAX_STACK_DEPTH`,
/// include/uapi/linux/perf_event.h).
pub const MAX_KERNEL: usize = 127;

/// Most steps of one walk. Entry frames are steps but not kept frames, so this exceeds
/// [`MAX_FRAMES`]; `bpf_loop` itself allows 2^23.
pub const MAX_STEPS: u32 = 4 * MAX_FRAMES as u32;

/// Most thread states that the kernel looks at when no direct route names the thread's own.
pub const MAX_THREADS_WALKED: u32 = 64;

/// Most code objects that are copied at one sample, which bounds the time that it takes; what is
/// left is copied at the next one.
pub const MAX_CAPTURES: u32 = 64;

/// Capacity of the map of processes: those that are followed, and in a profile of all Python also
/// those that have begun a program since.
pub const MAX_TARGETS: u32 = 32_768;

/// Capacity of the map of layouts: one per CPython minor version and build flavour in use.
pub const MAX_LAYOUTS: u32 = 64;

const _: () = {
    assert!(size_of::<Sample>() == 56);
    assert!(size_of::<Stack>() == 24);
    assert!(size_of::<Frame>() == 16);
    assert!(size_of::<Code>() == 104);
    assert!(size_of::<Process>() == 32);
    assert!(size_of::<Target>() == 80);
    assert!(size_of::<Layout>() == 4 * 44);
    assert!(size_of::<Mapping>() == 32);
    assert!(size_of::<Rule>() == 16);
    assert!(MAX_FRAMES.is_power_of_two());
    // A mask bounds how many are sent.
    assert!((MAX_KERNEL + 1).is_power_of_two() && MAX_KERNEL < KERNEL_FAILED as usize);
    // A per-CPU map value is at most 32 KiB (PCPU_MIN_UNIT_SIZE of the kernel).
    assert!(size_of::<python::Walk>() <= 32 * 1024);
    assert!(size_of::<python::Capture>() <= 32 * 1024);
    assert!(size_of::<native::Native>() <= 32 * 1024);
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: each type is `#[repr(C)]` without implicit padding (bytemuck's derive proves that),
    // so any byte pattern is a value of it and all its bytes are initialised.
    unsafe impl aya::Pod for super::Target {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Layout {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Mapping {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Rule {}
}
