//! Recordings of builds that could not be recorded: a process made up from the layout alone, as
//! CPython's headers say, with frames in a data stack, in generators and on the C stack, tagged
//! references, and threads that run copies of the code of their own.

use profiler_ebpf::{Layout, Target};
use pyebpf::cpython::{Build, layout};

use super::pages::Pages;
use super::recording::{Called, Recording, Thread};

const INTERPRETERS: u64 = 0x50_0000;
const INTERPRETER: u64 = 0x51_0000;
/// States and control blocks of the two threads, the main one first.
const STATES: [u64; 2] = [0x52_0000, 0x53_0000];
const CONTROL_BLOCKS: [u64; 2] = [0x7f_0000, 0x7e_0000];
const KEY: u64 = 0x54_0000;
const TLS: i64 = -0x28;
const CODE_TYPE: u64 = 0x55_0000;
const CODES: u64 = 0x60_0000;
const STRINGS: u64 = 0x68_0000;
const TABLES: u64 = 0x69_0000;
const COPIES: u64 = 0x6a_0000;
/// Where frames lie: the data stacks, generators, and the entries on the C stack.
const STACKS: [u64; 2] = [0x2000_0100, 0x2100_0100];
const GENERATORS: u64 = 0x2200_0000;
const ENTRIES: u64 = 0x2300_0000;

/// Owners (`Include/internal/pycore_interpframe_structs.h`).
const THREAD: u8 = 0;
const GENERATOR: u8 = 1;
const ENTRY: u8 = 3;

/// Names of functions, one of each kind of string.
const NAMES: [&str; 4] = ["plain", "größe", "関数", "𒀀"];
const FILE: &str = "/srv/データ/naïve/stack.py";
/// The function that is not shown.
const PHANTOM: usize = NAMES.len();
/// Lines of a function: each of sixteen bytes of code.
const LINES: u64 = 12;

/// The process of this build.
pub(crate) fn made(build: Build) -> Recording {
    let layout = layout(build).unwrap();
    let mut process = Process {
        memory: Pages::default(),
        layout,
        string: STRINGS,
    };
    process.codes();
    let target = process.threads(build);
    let depths = [44, 5];
    let threads = [0, 1].map(|thread| Thread {
        control_block: CONTROL_BLOCKS[thread],
        holds_gil: thread == 0,
        frames: process.frames(thread, depths[thread]),
    });
    process.memory.fill();
    Recording {
        version: format!("{build}, made up"),
        layout,
        target,
        threads: threads.into(),
        memory: process.memory,
    }
}

struct Process {
    memory: Pages,
    layout: Layout,
    /// Where the next string goes.
    string: u64,
}

impl Process {
    fn word(&mut self, object: u64, field: u32, word: u64) {
        self.memory.write_word(object + u64::from(field), word);
    }

    fn half(&mut self, object: u64, field: u32, half: u32) {
        self.memory.write_half(object + u64::from(field), half);
    }

    fn str(&mut self, text: &str) -> u64 {
        let at = self.string;
        self.string += 0x100;
        self.memory.write(at, &[0; 0x100]);
        let largest = text.chars().max().map_or(0, u32::from);
        let (kind, ascii) = match largest {
            ..0x80 => (1, true),
            0x80..0x100 => (1, false),
            0x100..0x1_0000 => (2, false),
            _ => (4, false),
        };
        let data: Vec<u8> = text
            .chars()
            .flat_map(|character| u32::from(character).to_le_bytes()[..kind].to_vec())
            .collect();
        let state = kind as u32 | 8 | u32::from(ascii) << 4;
        // Interned: bits below, a whole byte of them from 3.14 on.
        let state = state << self.layout.str_kind_shift | 1;
        let layout = self.layout;
        self.word(at, layout.str_length, text.chars().count() as u64);
        self.word(at, layout.str_hash, at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.half(at, layout.str_state, state);
        let start = if ascii {
            layout.str_ascii
        } else {
            layout.str_compact
        };
        self.memory.write(at + u64::from(start), &data);
        at
    }

    fn codes(&mut self) {
        let layout = self.layout;
        let file = self.str(FILE);
        let phantom_file = self.str("__init__");
        for index in 0..=PHANTOM {
            let (code, table) = (code(index), TABLES + 0x100 * index as u64);
            self.memory.write(code, &[0; 0x100]);
            let name = NAMES.get(index).copied().unwrap_or("__init__");
            let (name, qualname) = (self.str(name), self.str(&qualname(index)));
            // One reference of its own thread's.
            self.half(code, 12, 1);
            self.word(code, layout.object_type, CODE_TYPE);
            self.half(code, layout.code_first_line, first_line(index));
            let phantom = index == PHANTOM;
            let file = if phantom { phantom_file } else { file };
            self.word(code, layout.code_filename, file);
            self.word(code, layout.code_name, name);
            self.word(code, layout.code_qualname, qualname);
            self.word(code, layout.code_linetable, table);
            let version = if phantom {
                0
            } else {
                900 + layout.version + index as u32
            };
            self.half(code, layout.code_version, version);
            // Two threads have copies: a size, then pointers to the code.
            let copies = COPIES + 0x1000 * index as u64;
            self.word(code, layout.code_tlbc, copies);
            self.memory.write_word(copies, 3);
            for copy in 0..3 {
                let start = first_instruction(&layout, index, copy);
                self.memory
                    .write_word(copies + 8 + 8 * u64::from(copy), start);
            }
            self.memory.write(table, &[0; 0x100]);
            self.word(table, layout.bytes_size, 3 * LINES);
            // Each entry: the next line, for eight code units; two bytes of columns.
            let entries: Vec<u8> = (0..LINES)
                .flat_map(|_| [0x80 | 11 << 3 | 7, 4, 9])
                .collect();
            self.memory
                .write(table + u64::from(layout.bytes_data), &entries);
        }
    }

    fn threads(&mut self, build: Build) -> Target {
        let layout = self.layout;
        self.memory.write_word(INTERPRETERS, INTERPRETER);
        self.word(INTERPRETER, layout.interpreter_next, 0);
        self.word(INTERPRETER, layout.interpreter_threads, STATES[1]);
        for (index, next) in [(0, 0), (1, STATES[0])] {
            let state = STATES[index];
            self.memory.write(state, &[0; 0x200]);
            self.word(state, layout.thread_next, next);
            self.word(state, layout.thread_interpreter, INTERPRETER);
            self.word(state, layout.thread_id, CONTROL_BLOCKS[index]);
            // Attached, and detached.
            self.half(state, layout.gil_offset, [1, 0][index]);
            // The first key of glibc's first block, and the thread-local variable.
            self.memory.write_word(CONTROL_BLOCKS[index] + 0x318, state);
            let local = CONTROL_BLOCKS[index].wrapping_add_signed(TLS);
            self.memory.write_word(local, state);
        }
        self.memory.write_word(KEY, 0);
        let has_key = build.minor <= 14;
        Target {
            interpreters: INTERPRETERS,
            tss_key: if has_key { KEY } else { 0 },
            tls_offset: if has_key { 0 } else { TLS },
            code_type: CODE_TYPE,
            ..Target::default()
        }
    }

    /// A stack `depth` deep and what it must be named; every fifth frame is a generator's, every
    /// seventh entered the interpreter anew, every ninth is a constructor that was inlined.
    fn frames(&mut self, thread: usize, depth: usize) -> Vec<Called> {
        let layout = self.layout;
        let mut named = Vec::new();
        let link = STATES[thread] + u64::from(layout.thread_frame);
        let mut link = link;
        let mut top = STACKS[thread] + 0x100 * depth as u64;
        let mut put = |process: &mut Process, at: u64, owner: u8, index: usize, place: usize| {
            process.memory.write(at, &[0; 128]);
            process.memory.write_word(link, at);
            link = at + u64::from(layout.frame_previous);
            let owner_at = at + u64::from(layout.frame_owner);
            process.memory.write(owner_at, &[owner]);
            // Deferred references are tagged.
            let tag = [0, 1, 3][place % 3];
            process.word(at, layout.frame_code, code(index) | tag);
            let copy = (place % 4 % 3) as u32;
            process.half(at, layout.frame_tlbc, copy);
            let offset = 16 * (place as u64 % LINES);
            let start = first_instruction(&layout, index, copy);
            process.word(at, layout.frame_instruction, start + offset);
        };
        for place in 0..depth {
            let index = place % NAMES.len();
            let unique = (thread * 0x100 + place) as u64;
            if place % 5 == 2 {
                let at = GENERATORS + 0x200 * unique;
                put(self, at, GENERATOR, index, place);
            } else {
                top -= 0x88;
                put(self, top, THREAD, index, place);
            }
            named.push(Called {
                code: code(index),
                line: first_line(index) + 1 + (place as u32 % LINES as u32),
                file: FILE.to_owned(),
                name: NAMES[index].to_owned(),
                qualname: Some(qualname(index)),
            });
            if place % 9 == 4 {
                top -= 0x88;
                put(self, top, THREAD, PHANTOM, place);
            }
            if place % 7 == 3 || place + 1 == depth {
                put(self, ENTRIES + 0x100 * unique, ENTRY, index, place);
            }
        }
        self.memory.write_word(link, 0);
        named
    }
}

fn code(index: usize) -> u64 {
    CODES + 0x1000 * index as u64
}

fn first_line(index: usize) -> u32 {
    if index == PHANTOM {
        0
    } else {
        10 + 20 * index as u32
    }
}

fn qualname(index: usize) -> String {
    match NAMES.get(index) {
        Some(name) => format!("Étage.{name}"),
        None => "__init__".to_owned(),
    }
}

fn first_instruction(layout: &Layout, index: usize, copy: u32) -> u64 {
    match copy {
        0 => code(index) + u64::from(layout.code_bytes),
        copy => COPIES + 0x1000 * index as u64 + 0x400 * u64::from(copy),
    }
}
