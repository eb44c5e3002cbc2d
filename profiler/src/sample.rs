//! Bytes of the ring buffer to typed records: the kernel's numbers checked, nothing named yet.

mod captured;

use bytemuck::AnyBitPattern;
use profiler_ebpf::{
    Code, Frame, KERNEL_FAILED, MAX_FRAMES, MAX_KERNEL, MAX_NATIVE, NativeEnd, Outcome, Process,
    ProcessEvent, RecordKind, Sample, Stack,
};

pub use captured::Captured;

/// One record of the kernel program.
#[derive(Debug)]
pub enum Record {
    Sample {
        sample: Sample,
        outcome: Outcome,
    },
    /// The frames of samples that are to come, newest first.
    Stack {
        target: u32,
        hash: u64,
        frames: Frames,
    },
    Code(Captured),
    Process(ProcessEvent, Process),
}

/// The frames of a stack, newest first.
#[derive(Debug)]
pub struct Frames {
    pub python: Box<[Frame]>,
    /// As [`profiler_ebpf::native::frame`] makes them.
    pub native: Box<[u64]>,
    pub native_end: NativeEnd,
    /// Addresses of the kernel's code; none where the thread was in user space. `None`: its stack
    /// walker failed.
    pub kernel: Option<Box<[u64]>>,
}

/// Frames of Python alone.
impl From<&[Frame]> for Frames {
    fn from(python: &[Frame]) -> Frames {
        Frames {
            python: python.into(),
            native: Box::default(),
            native_end: NativeEnd::NotAsked,
            kernel: Some(Box::default()),
        }
    }
}

impl Frames {
    /// How many bytes they take.
    pub fn bytes(&self) -> usize {
        let kernel = self.kernel.as_deref().unwrap_or_default();
        size_of_val(&*self.python) + size_of_val(&*self.native) + size_of_val(kernel)
    }
}

/// Reads one record; `None` if it is not one of this contract's (which is a fault of ours, or of
/// the kernel's: the caller counts it).
pub fn decode(bytes: &[u8]) -> Option<Record> {
    let (kind, _) = split::<u32>(bytes)?;
    if kind == RecordKind::Sample as u32 {
        let (sample, _) = split::<Sample>(bytes)?;
        Some(Record::Sample {
            outcome: Outcome::from_number(sample.outcome)?,
            sample,
        })
    } else if kind == RecordKind::Stack as u32 {
        let (stack, rest) = split::<Stack>(bytes)?;
        let count = usize::try_from(stack.frames).ok()?;
        let native = usize::from(stack.native);
        let kernel = match stack.kernel {
            KERNEL_FAILED => None,
            frames => Some(usize::from(frames)),
        };
        if count > MAX_FRAMES || native > MAX_NATIVE || kernel > Some(MAX_KERNEL) {
            return None;
        }
        let (python, rest) = rest.split_at_checked(count * size_of::<Frame>())?;
        let (native, rest) = words(rest, native)?;
        let (in_kernel, _) = words(rest, kernel.unwrap_or(0))?;
        let python = python.chunks_exact(size_of::<Frame>());
        Some(Record::Stack {
            target: stack.target,
            hash: stack.hash,
            frames: Frames {
                python: python.map(bytemuck::pod_read_unaligned).collect(),
                native,
                native_end: NativeEnd::from_number(stack.native_end)?,
                kernel: kernel.map(|_| in_kernel),
            },
        })
    } else if kind == RecordKind::Code as u32 {
        let (code, rest) = split::<Code>(bytes)?;
        Some(Record::Code(Captured::decode(&code, rest)?))
    } else if kind == RecordKind::Process as u32 {
        let (record, _) = split::<Process>(bytes)?;
        Some(Record::Process(
            ProcessEvent::from_number(record.event)?,
            record,
        ))
    } else {
        None
    }
}

/// A value from the beginning of `bytes`, and what follows it.
fn split<T: AnyBitPattern>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (head, rest) = bytes.split_at_checked(size_of::<T>())?;
    Some((bytemuck::pod_read_unaligned(head), rest))
}

/// So many words from the beginning of `bytes`, and what follows them.
fn words(bytes: &[u8], count: usize) -> Option<(Box<[u64]>, &[u8])> {
    let (words, rest) = bytes.split_at_checked(count * size_of::<u64>())?;
    let words = words.chunks_exact(size_of::<u64>());
    Some((words.map(bytemuck::pod_read_unaligned).collect(), rest))
}

/// Whether a record is a sample, whatever else is in it.
pub fn is_sample(bytes: &[u8]) -> bool {
    bytes.starts_with(&(RecordKind::Sample as u32).to_ne_bytes())
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

    fn sample(outcome: u8) -> Vec<u8> {
        let mut sample = Sample::zeroed();
        sample.kind = RecordKind::Sample as u32;
        sample.outcome = outcome;
        sample.stack = 77;
        sample.comm[..6].copy_from_slice(b"python");
        bytemuck::bytes_of(&sample).to_vec()
    }

    /// A stack that says it has so many frames, and has two.
    fn stack(frames: u32) -> Vec<u8> {
        let mut stack = Stack::zeroed();
        stack.kind = RecordKind::Stack as u32;
        stack.target = 5;
        stack.hash = 77;
        stack.frames = frames;
        let frame = Frame {
            code: 0x1000,
            instruction: -1,
            identity: 7,
        };
        let mut bytes = bytemuck::bytes_of(&stack).to_vec();
        for _ in 0..2 {
            bytes.extend_from_slice(bytemuck::bytes_of(&frame));
        }
        bytes
    }

    fn process(event: u32) -> Vec<u8> {
        let record = Process {
            kind: RecordKind::Process as u32,
            event,
            pid: 9,
            target: 8,
            ..Process::zeroed()
        };
        bytemuck::bytes_of(&record).to_vec()
    }

    #[test]
    fn decodes_a_sample() {
        let Some(Record::Sample { sample, outcome }) = decode(&sample(1)) else {
            panic!("not a sample");
        };
        assert_eq!(outcome, Outcome::TruncatedDepth);
        assert_eq!((sample.stack, comm(&sample).as_str()), (77, "python"));
    }

    #[test]
    fn decodes_a_stack_with_its_frames() {
        // Room is given in eights: what is behind the last frame is none of it.
        for count in 0..=2 {
            let Some(Record::Stack {
                target,
                hash,
                frames,
            }) = decode(&stack(count))
            else {
                panic!("not a stack");
            };
            let frames = frames.python;
            assert_eq!((target, hash, frames.len()), (5, 77, count as usize));
            assert!(frames.iter().all(|frame| frame.instruction == -1));
        }
    }

    #[test]
    fn native_frames_follow_those_of_python() {
        // Its second frame's place is taken by two native frames.
        let mut bytes = stack(1);
        let native = std::mem::offset_of!(Stack, native);
        bytes[native..native + 2].copy_from_slice(&2_u16.to_ne_bytes());
        bytes[std::mem::offset_of!(Stack, native_end)] = NativeEnd::Complete as u8;
        let Some(Record::Stack { frames, .. }) = decode(&bytes) else {
            panic!("not a stack");
        };
        assert_eq!(
            (frames.python.len(), frames.native_end),
            (1, NativeEnd::Complete)
        );
        assert_eq!(frames.native[0], 0x1000);
        assert!(decode(&bytes[..bytes.len() - 1]).is_none());
        for (count, end) in [(3_u16, 1), (u16::MAX, 1), (2, 99)] {
            bytes[native..native + 2].copy_from_slice(&count.to_ne_bytes());
            bytes[std::mem::offset_of!(Stack, native_end)] = end;
            assert!(decode(&bytes).is_none(), "{count} frames, end {end}");
        }
    }

    #[test]
    fn the_kernel_s_frames_come_last() {
        // Its second frame's place is taken by a native frame and one of the kernel.
        let mut bytes = stack(1);
        let native = std::mem::offset_of!(Stack, native);
        bytes[native..native + 2].copy_from_slice(&1_u16.to_ne_bytes());
        let kernel = std::mem::offset_of!(Stack, kernel);
        let mut with = |frames: u8| {
            bytes[kernel] = frames;
            match decode(&bytes) {
                Some(Record::Stack { frames, .. }) => Some(frames),
                _ => None,
            }
        };
        let frames = with(1).unwrap();
        assert_eq!((frames.python.len(), &*frames.native), (1, &[0x1000][..]));
        assert_eq!(frames.kernel.as_deref(), Some(&[0x7_ffff_ffff][..]));
        assert_eq!(with(0).unwrap().kernel.as_deref(), Some(&[][..]));
        assert_eq!(with(KERNEL_FAILED).unwrap().kernel, None);
        for absurd in [2, MAX_KERNEL as u8, MAX_KERNEL as u8 + 1, 0xfe] {
            assert!(with(absurd).is_none(), "{absurd} frames");
        }
    }

    fn code() -> Vec<u8> {
        let mut code = Code::zeroed();
        code.kind = RecordKind::Code as u32;
        (code.target, code.address, code.identity) = (5, 0x1000, 7);
        code.pieces[0].length = 16;
        let mut bytes = bytemuck::bytes_of(&code).to_vec();
        bytes.extend([1; 16]);
        bytes
    }

    #[test]
    fn decodes_a_code_object() {
        let Some(Record::Code(code)) = decode(&code()) else {
            panic!("not a code object");
        };
        let found = (code.target, code.address, code.identity);
        assert_eq!(found, (5, 0x1000, 7));
        assert!(code.bytes() > 16);
    }

    #[test]
    fn decodes_what_happens_to_a_process() {
        let Some(Record::Process(event, record)) = decode(&process(4)) else {
            panic!("not of a process");
        };
        assert_eq!(
            (event, record.pid, record.target),
            (ProcessEvent::Fork, 9, 8)
        );
    }

    #[test]
    fn refuses_what_is_not_of_the_contract() {
        assert!(decode(&stack(3)).is_none(), "more frames than bytes");
        assert!(decode(&stack(u32::MAX)).is_none(), "absurd count");
        assert!(decode(&sample(99)).is_none(), "unknown outcome");
        assert!(decode(&process(99)).is_none(), "unknown event");
        assert!(decode(&[99, 0, 0, 0]).is_none(), "unknown kind");
        assert!(is_sample(&sample(0)) && !is_sample(&stack(0)) && !is_sample(&[]));
        for whole in [sample(0), stack(2), code(), process(2)] {
            for length in 0..whole.len() {
                assert!(decode(&whole[..length]).is_none(), "cut at {length}");
            }
        }
    }
}
