//! The walk without its art: one read a frame, nothing remembered, no windows. What a damaged
//! recording must give is what this gives.

use profiler_ebpf::python::{CodeFault, Memory, identity};
use profiler_ebpf::{Chain, Frame, MAX_FRAMES, MAX_STEPS, NO_INSTRUCTION, Outcome, layout_flags};

use super::recording::Recording;

/// The frames of the chain that begins at `newest`, and how it ends.
pub(crate) fn plain(recording: &Recording, newest: u64) -> (Outcome, Vec<Frame>) {
    let Recording {
        memory,
        layout,
        target,
        ..
    } = recording;
    let mut frames = Vec::new();
    if newest == 0 {
        return (Outcome::NoFrames, frames);
    }
    let mut at_entry = false;
    let mut in_generator = false;
    let mut address = newest;
    let fault = |frames: Vec<Frame>, newest, caller| match frames.len() {
        0 => (newest, frames),
        _ => (caller, frames),
    };
    for _ in 0..MAX_STEPS {
        if address == 0 {
            let torn = layout.flags & layout_flags::TORN_CALLS != 0;
            let whole = at_entry
                || layout.flags & layout_flags::ENDS_AT_ENTRY == 0 && !(torn && in_generator);
            return match (whole, frames.len()) {
                (false, _) => (Outcome::TruncatedEntry, frames),
                (true, 0) => (Outcome::NoFrames, frames),
                (true, _) => (Outcome::Complete, frames),
            };
        }
        let (start, span) = (layout.frame_start as usize, layout.frame_span as usize);
        let mut bytes = vec![0; start + span];
        let begin = address.wrapping_add(start as u64);
        if !address.is_multiple_of(8) || !memory.read(begin, &mut bytes[start..]) {
            return fault(frames, Outcome::UnreadableFrame, Outcome::TruncatedFrame);
        }
        let word = |offset: u32| {
            let bytes = bytes[offset as usize..][..8].try_into().unwrap();
            u64::from_le_bytes(bytes)
        };
        let owner = match layout.frame_owner {
            0 => 0,
            offset => bytes[offset as usize],
        };
        address = word(layout.frame_previous);
        at_entry = (3..=4).contains(&owner) && layout.flags & layout_flags::ENTRY_FRAMES != 0;
        in_generator = owner == 1;
        if at_entry {
            continue;
        }
        if owner > 2 {
            return fault(frames, Outcome::UnreadableCode, Outcome::TruncatedCode);
        }
        if frames.len() == MAX_FRAMES {
            break;
        }
        let code = word(layout.frame_code) & !7;
        let torn = layout.flags & layout_flags::TORN_CALLS != 0;
        let identity = match identity(memory, layout, target.code_type, code) {
            Err(CodeFault::NoIdentity) => 0,
            Err(CodeFault::Unreadable) if !torn => 0,
            Err(_) => return fault(frames, Outcome::UnreadableCode, Outcome::TruncatedCode),
            Ok(identity) => identity,
        };
        let instruction = word(layout.frame_instruction & !7);
        let instruction = if layout.chain != Chain::FrameObject as u32 {
            let copy = match layout.frame_tlbc {
                0 => 0,
                offset => (word(offset & !7) >> (8 * (offset & 7))) as u32,
            };
            let read = |address: u64| {
                let mut bytes = [0; 8];
                let there = memory.read(address, &mut bytes);
                there.then_some(u64::from_le_bytes(bytes))
            };
            let first = match copy {
                0 => Some(code.wrapping_add(layout.code_bytes.into())),
                copy => read(code.wrapping_add(layout.code_tlbc.into()))
                    .and_then(|copies| read(copies.wrapping_add(8 + 8 * u64::from(copy)))),
            };
            let distance = first.map(|first| instruction.wrapping_sub(first) as i64);
            distance
                .and_then(|distance| i32::try_from(distance).ok())
                .unwrap_or(NO_INSTRUCTION)
        } else {
            (instruction >> (8 * (layout.frame_instruction & 7))) as i32
        };
        frames.push(Frame {
            code,
            instruction,
            identity,
        });
    }
    (Outcome::TruncatedDepth, frames)
}
