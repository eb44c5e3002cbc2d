//! Bytes of the ring buffer to typed records: the kernel's numbers checked, nothing named yet.

use profiler_ebpf::{Frame, MAX_FRAMES, Outcome, Process, ProcessEvent, RecordKind, Sample};

/// One record of the kernel program.
#[derive(Debug)]
pub enum Record {
    Sample(Box<Stack>),
    Process {
        event: ProcessEvent,
        pid: u32,
        /// What the contract says of it for this event.
        detail: u32,
    },
}

/// A sample with its frames, newest first.
#[derive(Debug)]
pub struct Stack {
    pub sample: Sample,
    pub outcome: Outcome,
    pub frames: Vec<Frame>,
}

/// Reads one record; `None` if it is not one of this contract's (which is a fault of ours, or of
/// the kernel's: the caller counts it).
pub fn decode(bytes: &[u8]) -> Option<Record> {
    let kind = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    if kind == RecordKind::Sample as u32 {
        let (head, rest) = bytes.split_at_checked(size_of::<Sample>())?;
        let sample: Sample = bytemuck::pod_read_unaligned(head);
        let count = usize::try_from(sample.frames).ok()?;
        if count > MAX_FRAMES || rest.len() < count * size_of::<Frame>() {
            return None;
        }
        let frames = rest
            .chunks_exact(size_of::<Frame>())
            .take(count)
            .map(bytemuck::pod_read_unaligned)
            .collect();
        Some(Record::Sample(Box::new(Stack {
            outcome: Outcome::from_number(sample.outcome)?,
            sample,
            frames,
        })))
    } else if kind == RecordKind::Process as u32 {
        let record: Process = bytemuck::pod_read_unaligned(bytes.get(..size_of::<Process>())?);
        Some(Record::Process {
            event: ProcessEvent::from_number(record.event)?,
            pid: record.pid,
            detail: record.detail,
        })
    } else {
        None
    }
}

/// The thread's `comm` as text.
pub fn comm(sample: &Sample) -> String {
    let name = sample.comm.split(|&byte| byte == 0).next();
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    fn bytes(frames: u32, outcome: u8) -> Vec<u8> {
        let mut sample = Sample::zeroed();
        sample.kind = RecordKind::Sample as u32;
        sample.frames = frames;
        sample.outcome = outcome;
        sample.comm[..6].copy_from_slice(b"python");
        let frame = Frame {
            code: 0x1000,
            instruction: -1,
            identity: 7,
        };
        let mut bytes = bytemuck::bytes_of(&sample).to_vec();
        for _ in 0..2 {
            bytes.extend_from_slice(bytemuck::bytes_of(&frame));
        }
        bytes
    }

    #[test]
    fn decodes_a_sample_with_its_frames() {
        let Some(Record::Sample(stack)) = decode(&bytes(2, 1)) else {
            panic!("not a sample");
        };
        assert_eq!(stack.outcome, Outcome::TruncatedDepth);
        assert_eq!(stack.frames.len(), 2);
        assert_eq!(stack.frames[1].instruction, -1);
        assert_eq!(comm(&stack.sample), "python");
    }

    #[test]
    fn refuses_what_is_not_of_the_contract() {
        assert!(decode(&bytes(3, 0)).is_none(), "more frames than bytes");
        assert!(decode(&bytes(u32::MAX, 0)).is_none(), "absurd count");
        assert!(decode(&bytes(2, 99)).is_none(), "unknown outcome");
        assert!(decode(&[9, 0, 0, 0]).is_none(), "unknown kind");
        for length in 0..bytes(2, 0).len() {
            assert!(decode(&bytes(2, 0)[..length]).is_none(), "cut at {length}");
        }
    }
}
