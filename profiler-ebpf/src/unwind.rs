//! What the daemon tells the kernel program for native frames: which files a process has mapped, and of
//! each file how to get from a frame to its caller, by the address of its code. x86-64 alone: registers
//! have DWARF's numbers of the System V ABI, AMD64 supplement, figure 3.36.
//!
//! All processes share the table of a file, all files the rules. A process has a part of the map of
//! mappings, sorted by address; a mapping names a table, which has for each block of the file's code
//! where its rows begin, then the rows, sorted by address. So a search begins within a few rows, which
//! lie in a cache line or two: those of a sample are mostly cold.

use bytemuck::{Pod, Zeroable};

/// Most native frames of one sample; what is deeper is cut at the root end.
pub const MAX_NATIVE: usize = 128;

/// Words of one [`Page`]. A power of two: the index of a word is its page's and its own.
pub const PAGE_WORDS: u32 = 16_384;

/// A block of a file has so many bytes, of which the bits of a row's start number one.
pub const BLOCK_BITS: u32 = 10;

/// Capacity of the map of rules, which a `u16` numbers.
pub const MAX_RULES: u32 = 1 << 16;

/// Capacity of the map of mappings: 500 processes with 130 each.
pub const MAX_MAPPINGS: u32 = 1 << 16;

/// Steps of a search in a process's mappings, and in a block's rows: as many double what can be told
/// apart.
pub const MAPPING_STEPS: u32 = 12;
pub const ROW_STEPS: u32 = BLOCK_BITS + 1;

/// Most mappings of one process.
pub const MAX_PROCESS_MAPPINGS: u32 = (1 << MAPPING_STEPS) - 1;

/// DWARF's numbers of the registers that every walk follows.
pub const RBP: u8 = 6;
pub const RSP: u8 = 7;
/// How many registers a walk begins with: rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8 to r15.
pub const REGISTERS: usize = 16;

/// An executable mapping of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Mapping {
    /// Addresses in the process.
    pub start: u64,
    pub end: u64,
    /// How far `start` lies behind the start of the file's first block, bytes; wraps below zero.
    pub offset: u64,
    /// The file's table: index of its first word, and how many blocks it has.
    pub table: u32,
    pub blocks: u32,
}

/// A part of the tables of all files. Of each the first words, one for each block and one more, tell
/// which word of the table is the block's first row, that of the next block if it has none. Then come
/// the rows, as [`row`] makes them: one holds from its start to that of the next, in whichever block.
pub type Page = [u32; PAGE_WORDS as usize];

/// A row of a table: an offset in the file, of which the block is left out, and an index into the map of
/// rules.
#[inline(always)]
pub fn row(start: u32, rule: u16) -> u32 {
    within_block(start) << 16 | u32::from(rule)
}

/// How far into its block an offset in the file is.
#[inline(always)]
pub(crate) fn within_block(offset: u32) -> u32 {
    offset & ((1 << BLOCK_BITS) - 1)
}

/// How to find the caller of a frame: the canonical frame address (CFA), which is the caller's stack
/// pointer, with the return address right below it, and the caller's frame pointer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Rule {
    /// A [`Cfa`].
    pub cfa: u8,
    /// The register that the CFA is made of.
    pub register: u8,
    /// An [`Rbp`].
    pub rbp: u8,
    pub padding: u8,
    /// Bytes from that register.
    pub offset: i32,
    /// [`Cfa::Memory`], [`Cfa::Indexed`]: bytes from what lies there. [`Cfa::Plt`]: from which byte of
    /// an entry on the caller's address is below another word.
    pub add: i32,
    /// [`Rbp::Saved`]: bytes from the CFA. [`Rbp::Pointed`]: bytes from the register.
    pub rbp_offset: i32,
}

/// How the CFA is made. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cfa {
    /// There is no unwind information for this address.
    None = 0,
    /// `register + offset`.
    Register = 1,
    /// `*(register + offset) + add`.
    Memory = 2,
    /// In an entry of a procedure linkage table, of 16 bytes each: `register + offset`, and 8 more from
    /// byte `add` of the entry on.
    Plt = 3,
    /// A signal handler's caller: its registers lie above the stack pointer.
    Signal = 4,
    /// The thread's first frame.
    End = 5,
    /// There is unwind information, of a kind that is not handled.
    Unsupported = 6,
    /// `*(rsp + 8 * register + offset) + add`, of the newest frame alone.
    Indexed = 7,
}

/// Where the caller's frame pointer is. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rbp {
    /// Still in the register.
    Same = 0,
    /// In memory at `CFA + rbp_offset`.
    Saved = 1,
    /// Nowhere.
    Lost = 2,
    /// In memory at `rbp + rbp_offset`: of a frame whose stack was realigned.
    Pointed = 3,
}

/// How the walk over native frames ended. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum NativeEnd {
    /// There was none: native frames were not asked for.
    NotAsked = 0,
    /// At the thread's first frame.
    Complete = 1,
    /// More than [`MAX_NATIVE`] frames: the newest are kept.
    TooDeep = 2,
    /// Nothing is known yet of what the process has mapped.
    NotLoaded = 3,
    /// At an address in no file that is known: code made at run time, or a file mapped just now.
    NoMapping = 4,
    /// At an address that its file has no unwind information for.
    NoRule = 5,
    /// At unwind information of a kind that is not handled.
    Unsupported = 6,
    /// At memory of the stack that can't be read.
    UnreadableStack = 7,
    /// At a caller that would lie below its callee.
    BadStack = 8,
    /// The thread's registers can't be had.
    NoRegisters = 9,
}

impl NativeEnd {
    /// Every end, in the order of its number.
    pub const ALL: [NativeEnd; 10] = [
        NativeEnd::NotAsked,
        NativeEnd::Complete,
        NativeEnd::TooDeep,
        NativeEnd::NotLoaded,
        NativeEnd::NoMapping,
        NativeEnd::NoRule,
        NativeEnd::Unsupported,
        NativeEnd::UnreadableStack,
        NativeEnd::BadStack,
        NativeEnd::NoRegisters,
    ];

    /// The end with this number, if there is one.
    pub fn from_number(number: u8) -> Option<NativeEnd> {
        Self::ALL.get(usize::from(number)).copied()
    }
}
