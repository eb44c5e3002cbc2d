//! The kernel's frames of a stack: names for addresses of its code, and what to show where they have
//! none. Its functions are read before the recording begins, and again when it has met an address of
//! none of them: modules and BPF programs come while it runs.

pub mod kallsyms;

use std::fs;
use std::time::{Duration, Instant};

use profiler_ebpf::MAX_KERNEL;
use rustc_hash::FxHashMap;

use crate::profile::{FrameId, Function, Module, Profile};

use super::native::{Kind, elf};

use kallsyms::{Fault, Found, Kallsyms};

/// For how long the functions are not read again, which takes a tenth of a second: at first, and at
/// most where that does not help.
const READ_AGAIN: Duration = Duration::from_secs(4);
const READ_AGAIN_MAX: Duration = Duration::from_secs(256);
/// Most addresses whose frames are remembered; then all are forgotten.
const FRAMES_MAX: usize = 1 << 14;
/// How many frames the kernel's stack walker gives at most.
const DEPTH: &str = "/proc/sys/kernel/perf_event_max_stack";

/// Why frames of a stack are missing or have no names.
const FAILED: Kind = kind("failed", "its stack walker failed");
const TOO_DEEP: Kind = kind("too_deep", "more than its stack walker gives");
const HIDDEN: Kind = kind("hidden", "their names are hidden");
const NAMELESS: Kind = kind("unreadable", "their names can't be read");

const fn kind(key: &'static str, text: &'static str) -> Kind {
    Kind { key, text }
}

/// What is known of the kernel's code.
pub struct Kernel {
    functions: Result<Kallsyms, Fault>,
    /// When they were read last, and for how long they are not again.
    read: Instant,
    patience: Duration,
    /// How many frames of a stack are all that there are to be had.
    depth: usize,
    /// Frames by address, of those that have a name.
    known: FxHashMap<u64, FrameId>,
    /// How many stacks lack frames or names, and why.
    missing: FxHashMap<Kind, u64>,
    /// How many stacks had any of its frames.
    stacks: u64,
}

impl Kernel {
    /// Reads the functions of the running kernel. Where that fails its frames have no names.
    pub fn read() -> Kernel {
        let depth = fs::read_to_string(DEPTH)
            .ok()
            .and_then(|depth| depth.trim().parse().ok());
        Kernel::of(Kallsyms::read(), depth.unwrap_or(MAX_KERNEL))
    }

    fn of(functions: Result<Kallsyms, Fault>, depth: usize) -> Kernel {
        Kernel {
            functions,
            read: Instant::now(),
            patience: READ_AGAIN,
            depth: depth.min(MAX_KERNEL),
            known: FxHashMap::default(),
            missing: FxHashMap::default(),
            stacks: 0,
        }
    }

    /// Why the functions have no names, if they have none.
    pub fn fault(&self) -> Option<&Fault> {
        self.functions.as_ref().err()
    }

    /// Appends the kernel's frames of a stack to `named`, newest first.
    pub(super) fn name(
        &mut self,
        profile: &mut Profile,
        stack: Option<&[u64]>,
        named: &mut Vec<FrameId>,
    ) {
        let why = match (stack, &self.functions) {
            (Some([]), _) => return,
            (None, _) => Some(FAILED),
            (_, Err(Fault::Hidden)) => Some(HIDDEN),
            (_, Err(_)) => Some(NAMELESS),
            (Some(stack), Ok(_)) => {
                for (index, &address) in stack.iter().enumerate() {
                    // A caller's address is the one behind its call.
                    let inside = address.wrapping_sub((index > 0).into());
                    named.push(self.frame(profile, inside));
                }
                (stack.len() >= self.depth).then_some(TOO_DEEP)
            }
        };
        self.stacks += 1;
        if let Some(why) = why {
            let text = why.text;
            named.push(profile.marker(&format!("[unknown: kernel frames, {text}]")));
            *self.missing.entry(why).or_default() += 1;
        }
    }

    /// Frames are of another profile now.
    pub(super) fn forget_frames(&mut self) {
        self.known.clear();
    }

    /// How many stacks had frames of the kernel's, or should have had.
    pub fn stacks(&self) -> u64 {
        self.stacks
    }

    /// How many of them lack frames or names, and why.
    pub fn missing(&self) -> impl Iterator<Item = (Kind, u64)> {
        let mut missing: Vec<_> = self
            .missing
            .iter()
            .map(|(&why, &count)| (why, count))
            .collect();
        missing.sort_unstable();
        missing.into_iter()
    }

    fn frame(&mut self, profile: &mut Profile, inside: u64) -> FrameId {
        if let Some(&frame) = self.known.get(&inside) {
            return frame;
        }
        if self.find(inside).is_none() && self.read.elapsed() >= self.patience {
            self.read_again(inside);
        }
        let found = self.find(inside);
        let module = profile.module(Module {
            path: match found.map_or("", |found| found.module) {
                "" => "[kernel]".to_owned(),
                module => format!("[{module}]"),
            },
            build_id: build_id(found.map_or("", |found| found.module)),
            kernel: true,
        });
        let function = profile.function(Function {
            name: match found {
                Some(found) => found.name.to_owned(),
                None => self.unknown(inside),
            },
            module: Some(module),
            ..Function::default()
        });
        let frame = profile.frame(function, None);
        if found.is_some() {
            if self.known.len() >= FRAMES_MAX {
                self.known.clear();
            }
            self.known.insert(inside, frame);
        }
        frame
    }

    fn unknown(&self, inside: u64) -> String {
        let functions = self.functions.as_ref().ok();
        match functions.and_then(|functions| functions.offset(inside)) {
            Some(offset) => format!("[unknown in kernel+{offset:#x}]"),
            None => "[unknown in kernel]".to_owned(),
        }
    }

    /// Modules and BPF programs may have come. Where they have not, the next time is further away.
    fn read_again(&mut self, wanted: u64) {
        if let Ok(functions) = Kallsyms::read() {
            self.functions = Ok(functions);
            self.known.clear();
        }
        self.patience = match self.find(wanted) {
            Some(_) => READ_AGAIN,
            None => READ_AGAIN_MAX.min(2 * self.patience),
        };
        self.read = Instant::now();
    }

    fn find(&self, inside: u64) -> Option<Found<'_>> {
        self.functions.as_ref().ok()?.find(inside)
    }
}

/// What the linker made of the content of a module, or of the kernel itself: the notes that it was
/// linked with. What the kernel makes at run time has none.
fn build_id(module: &str) -> Vec<u8> {
    let notes = match module {
        "" => fs::read("/sys/kernel/notes"),
        _ if module.contains('/') => return Vec::new(),
        _ => fs::read(format!("/sys/module/{module}/notes/.note.gnu.build-id")),
    };
    let notes = notes.unwrap_or_default();
    elf::build_id(&notes).unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::profile::{Meta, Shape};

    const TEXT: &str = "\
ffffffff81000000 T _text
ffffffff81000000 T entry_SYSCALL_64
ffffffff81000100 t do_syscall_64
ffffffff81000200 t vfs_read
ffffffff81000300 T _etext
ffffffffc0001000 t xfs_file_read_iter\t[xfs]
";
    /// What called what, each by the address behind its call, newest first.
    const STACK: [u64; 5] = [
        0xffff_ffff_c000_1000,
        0xffff_ffff_8100_0300,
        0xffff_ffff_8100_0200,
        0xffff_ffff_8100_0301,
        0xffff_8881_0000_0000,
    ];

    fn labels(kernel: &mut Kernel, stack: Option<&[u64]>) -> Vec<String> {
        let meta = Meta {
            started: SystemTime::UNIX_EPOCH,
            rate: 99,
            command: String::new(),
            duration: Duration::ZERO,
        };
        let mut profile = Profile::new(meta, Shape::default(), false);
        // Frames are of one profile.
        kernel.known.clear();
        let mut named = Vec::new();
        kernel.name(&mut profile, stack, &mut named);
        named
            .into_iter()
            .map(|frame| profile.frame_label(frame))
            .collect()
    }

    fn kernel(depth: usize) -> Kernel {
        Kernel::of(Kallsyms::parse(TEXT.as_bytes()), depth)
    }

    #[test]
    fn frames_have_names_and_modules_or_their_place() {
        let mut kernel = kernel(127);
        let expected = [
            "xfs_file_read_iter ([xfs])",
            "vfs_read ([kernel])",
            "do_syscall_64 ([kernel])",
            "[unknown in kernel+0x300]",
            "[unknown in kernel]",
        ];
        assert_eq!(labels(&mut kernel, Some(&STACK)), expected);
        assert!(labels(&mut kernel, Some(&[])).is_empty());
        assert_eq!(kernel.missing().count(), 0);
        // The newest frame's address is that of an instruction that runs, not behind a call.
        let newest = labels(&mut kernel, Some(&STACK[1..2]));
        assert_eq!(newest, ["[unknown in kernel+0x300]"]);
    }

    #[test]
    fn what_is_missing_is_said_and_counted() {
        let mut kernel = kernel(2);
        let failed = "[unknown: kernel frames, its stack walker failed]";
        assert_eq!(labels(&mut kernel, None), [failed]);
        let cut = labels(&mut kernel, Some(&STACK[1..3]));
        let more = "[unknown: kernel frames, more than its stack walker gives]";
        assert_eq!(cut.last().map(String::as_str), Some(more));
        assert_eq!(cut.len(), 3);
        let missing: Vec<_> = kernel.missing().collect();
        assert_eq!(missing, [(FAILED, 1), (TOO_DEEP, 1)]);
        assert_eq!(kernel.stacks(), 2);
        for (fault, why) in [(Fault::Hidden, HIDDEN), (Fault::Empty, NAMELESS)] {
            let mut nameless = Kernel::of(Err(fault), 127);
            let shown = labels(&mut nameless, Some(&STACK));
            assert_eq!(shown, [format!("[unknown: kernel frames, {}]", why.text)]);
            assert!(labels(&mut nameless, Some(&[])).is_empty());
        }
    }

    #[test]
    fn functions_are_read_again_ever_more_seldom_where_that_does_not_help() {
        let mut kernel = kernel(127);
        labels(&mut kernel, Some(&[1]));
        assert_eq!(kernel.patience, READ_AGAIN);
        let long_ago = Instant::now().checked_sub(READ_AGAIN);
        kernel.read = long_ago.expect("the machine has been up for that long");
        labels(&mut kernel, Some(&[1]));
        assert_eq!(kernel.patience, 2 * READ_AGAIN);
        assert!(kernel.read.elapsed() < READ_AGAIN);
    }
}
