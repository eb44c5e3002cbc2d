//! Names for what the kernel copied: the frames of every profiled process, within one budget of
//! memory, and a count of those that could not be named.

mod python;

use std::collections::BTreeMap;

use profiler_ebpf::Frame;
use rustc_hash::FxHashMap;

use crate::{
    cpython::{Interpreter, code::Reason},
    profile::{FrameId, Profile},
};

use python::{Process, Shown};

/// How many bytes what is known of all processes may take. When they are used up all is read anew:
/// a program that makes new code all the time, or huge line tables, costs time and not memory.
const BYTES_MAX: usize = 16 << 20;

/// What is known of the code of every profiled process.
#[derive(Default)]
pub struct Symbols {
    /// By incarnation.
    processes: FxHashMap<u32, Process>,
    bytes: usize,
    unknown: BTreeMap<Reason, u64>,
}

impl Symbols {
    /// Names the `frames` of a sample of incarnation `id`, the process `pid` with this interpreter,
    /// appending to `named` those that are the program's own.
    pub fn name(
        &mut self,
        id: u32,
        (pid, interpreter): (u32, &Interpreter),
        profile: &mut Profile,
        frames: &[Frame],
        named: &mut Vec<FrameId>,
    ) {
        for frame in frames {
            let process = self.processes.entry(id);
            let process = process.or_insert_with(|| Process::new(pid, interpreter));
            let shown = process.frame(profile, frame, &mut self.bytes);
            // After each frame: those of one deep stack alone could fill the memory.
            if self.bytes > BYTES_MAX {
                self.processes.clear();
                self.bytes = 0;
            }
            match shown {
                Shown::As(id) => named.push(id),
                Shown::Not => {}
                Shown::Unknown(id, reason) => {
                    *self.unknown.entry(reason).or_default() += 1;
                    named.push(id);
                }
            }
        }
    }

    /// Forgets the processes for which `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.processes.retain(|&id, process| {
            let keep = keep(id);
            if !keep {
                self.bytes -= process.bytes();
            }
            keep
        });
    }

    /// How many frames had no name, and why.
    pub fn unknown(&self) -> &BTreeMap<Reason, u64> {
        &self.unknown
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use profiler_ebpf::{Layout, Target, python::identity};

    use super::*;
    use crate::{
        cpython::{self, Version},
        memory::ProcessMemory,
        profile::{Meta, Shape},
    };

    const FIRST_LINE: u32 = 7;

    /// Code objects in the memory of this very process, which is read like any other's.
    struct Planted {
        layout: Layout,
        codes: Vec<Vec<u8>>,
        /// Their name, their file's name and their line table are one and the same.
        #[expect(dead_code, reason = "it is read through its addresses")]
        shared: [Vec<u8>; 3],
    }

    impl Planted {
        fn new(count: u32, table: usize) -> Planted {
            let layout = cpython::layout(12).unwrap();
            let name = text(&layout, "spam");
            let file = text(&layout, "relative.py");
            let mut bytes = vec![0; layout.bytes_data as usize + table];
            put(&mut bytes, layout.bytes_size, &(table as u64).to_le_bytes());
            let shared = [name, file, bytes];
            let address = |at: usize| (shared[at].as_ptr() as u64).to_le_bytes();
            let code = |number: u32| {
                let mut code = vec![0; 512];
                put(&mut code, 0, &1_u64.to_le_bytes());
                put(&mut code, layout.code_name, &address(0));
                put(&mut code, layout.code_qualname, &address(0));
                put(&mut code, layout.code_filename, &address(1));
                put(&mut code, layout.code_linetable, &address(2));
                put(&mut code, layout.code_first_line, &FIRST_LINE.to_le_bytes());
                put(&mut code, layout.code_version, &number.to_le_bytes());
                code
            };
            let codes = (1..=count).map(code).collect();
            Planted {
                layout,
                codes,
                shared,
            }
        }

        fn frames(&self) -> Vec<Frame> {
            let memory = ProcessMemory::new(std::process::id());
            let frame = |code: &Vec<u8>| {
                let code = code.as_ptr() as u64;
                Frame {
                    code,
                    instruction: -1,
                    identity: identity(&memory, &self.layout, 0, code).unwrap(),
                }
            };
            self.codes.iter().map(frame).collect()
        }

        fn interpreter(&self) -> Interpreter {
            Interpreter {
                version: Version {
                    major: 3,
                    minor: 12,
                    micro: 1,
                },
                layout: self.layout,
                target: Target::default(),
            }
        }
    }

    fn put(object: &mut [u8], at: u32, bytes: &[u8]) {
        object[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// A compact ASCII string.
    fn text(layout: &Layout, text: &str) -> Vec<u8> {
        let mut object = vec![0; layout.str_ascii as usize];
        let length = text.len() as u64;
        put(&mut object, layout.str_length, &length.to_le_bytes());
        put(&mut object, layout.str_state, &0x64_u32.to_le_bytes());
        object.extend_from_slice(text.as_bytes());
        object
    }

    fn profile() -> Profile {
        let meta = Meta {
            started: SystemTime::UNIX_EPOCH,
            rate: 99,
            command: String::new(),
            duration: Duration::ZERO,
        };
        Profile::new(meta, Shape::default(), false)
    }

    #[test]
    fn huge_line_tables_stay_within_the_budget() {
        const TABLE: usize = 200_000;
        let planted = Planted::new(300, TABLE);
        let process = (std::process::id(), &planted.interpreter());
        let frames = planted.frames();
        // One by one, and as one deep stack.
        for at_once in [1, frames.len()] {
            let mut symbols = Symbols::default();
            let mut profile = profile();
            let mut named = Vec::new();
            let mut met = 0;
            for frames in frames.chunks(at_once) {
                symbols.name(1, process, &mut profile, frames, &mut named);
                met += frames.len();
                assert!(symbols.bytes <= BYTES_MAX, "{} bytes", symbols.bytes);
                let kept: usize = symbols.processes.values().map(Process::tables).sum();
                assert!(kept <= symbols.bytes, "{kept} bytes of tables");
                // Nothing is thrown away before the budget is used up.
                if met * (TABLE + 1000) < BYTES_MAX {
                    assert_eq!(kept, met * TABLE);
                }
            }
            // It is used up within a stack, too: what comes after that is kept.
            let kept: usize = symbols.processes.values().map(Process::tables).sum();
            assert!((TABLE..BYTES_MAX).contains(&kept), "{kept} bytes of tables");
            assert!(symbols.unknown().is_empty(), "{:?}", symbols.unknown());
            let line = profile.frame_of(named[0]).line;
            assert_eq!((named.len(), line), (300, Some(FIRST_LINE)));
        }
    }

    #[test]
    fn what_is_forgotten_gives_its_room_back() {
        let planted = Planted::new(3, 1000);
        let process = (std::process::id(), &planted.interpreter());
        let (mut symbols, mut profile) = (Symbols::default(), profile());
        for id in [1, 2] {
            let frames = planted.frames();
            symbols.name(id, process, &mut profile, &frames, &mut Vec::new());
        }
        let both = symbols.bytes;
        symbols.retain(|id| id == 2);
        assert_eq!(symbols.bytes, both / 2);
        symbols.retain(|_| false);
        assert_eq!(symbols.bytes, 0);
    }
}
