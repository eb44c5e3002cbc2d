//! The walk over a thread's native frames: from its registers to the addresses of its code, newest
//! first, by the tables that the daemon makes of unwind information. It names nothing.
//!
//! Generic over where memory and tables are read from, as the walk over Python frames is, which goes
//! first: where that has met an *entry frame*, a local variable of the native frame that runs the
//! interpreter's loop, this one tells how many Python frames lie on its newer side.

mod untold;

use bytemuck::Zeroable;

use untold::Untold;

use crate::{
    BLOCK_BITS, Cfa, MAPPING_STEPS, MAX_NATIVE, Mapping, NativeEnd, RBP, REGISTERS, ROW_STEPS, RSP,
    Rbp, Rule, Target,
    python::{Memory, mix},
    unwind::within_block,
};

/// Bits of an address; the number of newer Python frames lies above, and the last bit says that the
/// frame was guessed.
pub const ADDRESS_BITS: u32 = 48;
/// [`newer`] of a frame for which that is not known.
pub const NEWER_UNTOLD: u16 = 0x7fff;
const GUESSED: u64 = 1 << 63;

/// The stack is read in windows of at most a page: one that ends where its page does can't fail when
/// that page is in memory.
const WINDOW: u64 = 4096;

/// Where the kernel puts a signal handler's caller's registers above the stack pointer with which the
/// handler returns: `struct rt_sigframe` without its return address, of
/// arch/x86/include/asm/sigframe.h; `struct sigcontext_64` begins at 40.
const SIGNAL_RBP: u64 = 120;
const SIGNAL_RSP: u64 = 160;
const SIGNAL_RIP: u64 = 168;

/// The address of a native frame: of its instruction that runs for the newest one and for what a signal
/// interrupted, else of the one to which it returns.
#[inline(always)]
pub fn address(frame: u64) -> u64 {
    frame & ((1 << ADDRESS_BITS) - 1)
}

/// How many Python frames are newer than this native frame, or [`NEWER_UNTOLD`].
#[inline(always)]
pub fn newer(frame: u64) -> u16 {
    (frame >> ADDRESS_BITS) as u16 & NEWER_UNTOLD
}

/// Whether this native frame may not be the caller of the one before it: nothing tells that one's.
#[inline(always)]
pub fn is_guessed(frame: u64) -> bool {
    frame & GUESSED != 0
}

/// An address with a number of newer Python frames.
#[inline(always)]
pub fn frame(address_: u64, newer: u64) -> u64 {
    address(address_) | newer << ADDRESS_BITS
}

/// The tables of a process's files.
pub trait Tables {
    /// The mapping in this slot.
    fn mapping(&self, slot: u32) -> Option<Mapping>;
    /// The word with this index, of some file's table.
    fn word(&self, index: u32) -> Option<u32>;
    /// The rule with this number.
    fn rule(&self, number: u16) -> Option<Rule>;
}

/// Where Python frames lie on the native stack, newest first: the address of an entry frame and how
/// many Python frames lie on its newer side, as [`frame`] makes it.
#[derive(Zeroable)]
#[repr(C)]
pub struct Entries {
    count: u32,
    /// 1: they are wanted, and there is such a thing in this version of Python.
    told: u32,
    entries: [u64; MAX_NATIVE],
}

impl Entries {
    #[inline(always)]
    pub(crate) fn begin(&mut self) {
        self.count = 0;
    }

    /// Before a walk over Python frames: whether native ones are to follow and entry frames tell where
    /// they meet.
    #[inline(always)]
    pub fn want(&mut self, told: bool) {
        self.told = u32::from(told);
    }

    /// Whether [`want`](Self::want) has said so.
    #[inline(always)]
    pub(crate) fn are_wanted(&self) -> bool {
        self.told != 0
    }

    /// The walk over Python frames has met an entry frame after so many others.
    #[inline(always)]
    pub fn meet(&mut self, address: u64, frames: u32) {
        let count = self.count;
        if self.told != 0 && (count as usize) < MAX_NATIVE {
            self.entries[count as usize & (MAX_NATIVE - 1)] = frame(address, u64::from(frames));
            self.count = count + 1;
        }
    }
}

/// The state of a search in tables: the answer lies before `high`, and not before the one before `low`.
#[derive(Zeroable)]
#[repr(C)]
struct Search {
    low: u32,
    high: u32,
    /// The mapping that was found last in this walk: callers mostly lie in the same.
    mapping: Mapping,
}

/// Callers of two walks, at least: those of the last one are read while this one's are written.
const KNOWN: usize = 2 * MAX_NATIVE;
/// How many callers of the last walk that are newer are passed at each frame of this one.
const KNOWN_STEPS: u32 = 4;

/// A caller that was met on this CPU: where it goes on, its stack pointer, and its rule.
#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
struct Caller {
    ip: u64,
    sp: u64,
    rule: Rule,
}

/// The callers of the last walk and of this one. Two stacks one after the other mostly have most callers
/// in common, at the same places: what follows here is in the cache that a search would have to fill.
#[derive(Zeroable)]
#[repr(C)]
struct Callers {
    /// [`Target::mappings_id`] of the last walk.
    mappings: u64,
    /// Of the last walk those from here on are not passed yet, up to `begin`, where this one's begin, up
    /// to `end`. Numbers that only grow.
    next: u32,
    begin: u32,
    end: u32,
    padding: u32,
    known: [Caller; KNOWN],
}

/// The state of one walk over native frames.
#[derive(Zeroable)]
#[repr(C)]
pub struct Native {
    ip: u64,
    sp: u64,
    bp: u64,
    /// Of the frames and how they ended.
    pub(crate) hash: u64,
    /// The frame that was taken last, as [`frame`] makes it.
    pub last: u64,
    /// The stack from the first address to the second is in `window`, each byte where it has its place
    /// in its page.
    low: u64,
    high: u64,
    /// 1: `ip` is an instruction that runs; 0: an address that is returned to.
    runs: u32,
    /// How many entry frames were passed.
    passed: u32,
    /// How many Python frames are newer.
    newer: u32,
    pub frames: u32,
    /// A [`NativeEnd`].
    pub end: u32,
    padding: u32,
    search: Search,
    callers: Callers,
    untold: Untold,
    /// By DWARF's numbers, as they were in the newest frame.
    pub registers: [u64; REGISTERS],
    /// Half of it is in use: both the start and the length of a read are below a page, and the verifier
    /// does not know their sum.
    window: [u8; 2 * WINDOW as usize],
}

impl Native {
    /// Begins at `ip` with the [`registers`](Self::registers). False when there is nothing to step
    /// over.
    #[inline(always)]
    pub fn begin(&mut self, target: &Target, entries: &Entries, ip: u64) -> bool {
        self.ip = ip;
        self.sp = self.registers[RSP as usize];
        self.bp = self.registers[RBP as usize];
        self.low = 0;
        self.high = 0;
        self.runs = 1;
        self.untold.begin();
        self.passed = 0;
        self.frames = 0;
        self.hash = 0;
        self.search.mapping.end = 0;
        self.callers.begin(target.mappings_id);
        self.newer = if entries.told == 0 {
            u32::from(NEWER_UNTOLD)
        } else {
            0
        };
        // What holds if the steps run out.
        self.end = NativeEnd::TooDeep as u32;
        target.mapping_count != 0 || self.end(NativeEnd::NotLoaded)
    }

    /// Takes one frame, or gives up those from a guess on that has proved wrong. False when the walk is
    /// over.
    #[inline(always)]
    pub fn step<M: Memory, T: Tables>(
        &mut self,
        (memory, tables): (&M, &T),
        target: &Target,
        entries: &Entries,
    ) -> bool {
        match self.take((memory, tables), target, entries) {
            Ok(()) => true,
            Err(end) => self.fail(memory, end),
        }
    }

    /// Takes one frame; or says why it is the last.
    #[inline(always)]
    fn take<M: Memory, T: Tables>(
        &mut self,
        (memory, tables): (&M, &T),
        target: &Target,
        entries: &Entries,
    ) -> Result<(), NativeEnd> {
        let ip = self.ip;
        let newest = self.frames == 0;
        if self.frames as usize >= MAX_NATIVE {
            return Err(NativeEnd::TooDeep);
        }
        if !self.may_be_caller(memory) {
            return Err(NativeEnd::BadStack);
        }
        let rule = if self.runs != 0 {
            self.search.rule(tables, target, ip)
        } else {
            self.caller_rule(tables, target)
        };
        let cfa = match rule {
            Ok(rule) => self.frame_address(memory, &rule, newest),
            Err(end) => Err(end),
        };
        if let Ok(cfa) = cfa {
            self.pass(entries, cfa);
        }
        let guessed = self.untold.is_guess();
        let kept = frame(ip, u64::from(self.newer)) | if guessed { GUESSED } else { 0 };
        self.last = kept;
        self.frames += 1;
        self.hash = mix(self.hash, kept);
        let (rule, cfa) = match (rule, cfa) {
            (Ok(rule), Ok(cfa)) => (rule, cfa),
            (Err(end), _) | (_, Err(end)) if guessed => return Err(end),
            (Err(end), _) | (_, Err(end)) => return self.go_on_untold(memory, end),
        };
        if rule.cfa == Cfa::Signal as u8 {
            return self.interrupted(memory);
        }
        if cfa <= self.sp {
            return Err(NativeEnd::BadStack);
        }
        let caller = self.word(memory, cfa.wrapping_sub(8));
        let pointed = rule.rbp == Rbp::Pointed as u8;
        let bp = if pointed || rule.rbp == Rbp::Saved as u8 {
            let base = if pointed { self.bp } else { cfa };
            self.word(memory, base.wrapping_add(i64::from(rule.rbp_offset) as u64))
        } else if rule.rbp == Rbp::Lost as u8 {
            Some(0)
        } else {
            Some(self.bp)
        };
        let (Some(caller), Some(bp)) = (caller, bp) else {
            return Err(NativeEnd::UnreadableStack);
        };
        self.ip = caller;
        self.sp = cfa;
        self.bp = bp;
        self.runs = 0;
        self.untold.lead_on();
        // What a thread's first function has instead of a caller, where it does not say so otherwise.
        if caller == 0 {
            let end = [NativeEnd::Complete, NativeEnd::BadStack];
            return Err(end[usize::from(guessed)]);
        }
        Ok(())
    }

    /// The rule for where a call returns to.
    #[inline(always)]
    fn caller_rule<T: Tables>(&mut self, tables: &T, target: &Target) -> Result<Rule, NativeEnd> {
        let (ip, sp) = (self.ip, self.sp);
        let rule = match self.callers.find(ip, sp) {
            Some(rule) => rule,
            // A call may be the last instruction of its function: what it returns to is another one's.
            None => self.search.rule(tables, target, ip.wrapping_sub(1))?,
        };
        self.callers.keep(Caller { ip, sp, rule });
        Ok(rule)
    }

    /// The canonical frame address of this frame.
    #[inline(always)]
    fn frame_address<M: Memory>(
        &mut self,
        memory: &M,
        rule: &Rule,
        newest: bool,
    ) -> Result<u64, NativeEnd> {
        let base = if rule.register == RSP {
            self.sp
        } else if rule.register == RBP {
            self.bp
        } else if newest {
            self.registers[rule.register as usize & (REGISTERS - 1)]
        } else {
            // A caller's: nobody has followed it.
            0
        };
        let indexed = rule.cfa == Cfa::Indexed as u8;
        let base = match indexed {
            true => base.wrapping_mul(8).wrapping_add(self.sp),
            false => base,
        };
        let at = base.wrapping_add(i64::from(rule.offset) as u64);
        if indexed && !newest {
            return Err(NativeEnd::Unsupported);
        }
        if rule.cfa == Cfa::Register as u8 {
            if base == 0 {
                return Err(NativeEnd::Unsupported);
            }
            Ok(at)
        } else if rule.cfa == Cfa::Memory as u8 || indexed {
            let word = self.word(memory, at).ok_or(NativeEnd::UnreadableStack)?;
            Ok(word.wrapping_add(i64::from(rule.add) as u64))
        } else if rule.cfa == Cfa::Plt as u8 {
            let behind = (self.ip & 15) as i64 >= i64::from(rule.add);
            Ok(at.wrapping_add(8 * u64::from(behind)))
        } else if rule.cfa == Cfa::Signal as u8 {
            Ok(self.sp)
        } else if rule.cfa == Cfa::End as u8 {
            Err(NativeEnd::Complete)
        } else if rule.cfa == Cfa::None as u8 {
            Err(NativeEnd::NoRule)
        } else {
            Err(NativeEnd::Unsupported)
        }
    }

    /// The entry frame that lies below `cfa`, in this native frame, is passed, and with it the Python
    /// frames that it has entered.
    #[inline(always)]
    fn pass(&mut self, entries: &Entries, cfa: u64) {
        let passed = self.passed;
        if passed >= entries.count {
            return;
        }
        let entry = entries.entries[passed as usize & (MAX_NATIVE - 1)];
        if address(entry) < cfa {
            self.newer = u32::from(newer(entry));
            self.passed = passed + 1;
        }
    }

    /// Goes on where a signal has interrupted the thread.
    #[inline(always)]
    fn interrupted<M: Memory>(&mut self, memory: &M) -> Result<(), NativeEnd> {
        let sp = self.sp;
        let ip = self.word(memory, sp.wrapping_add(SIGNAL_RIP));
        let bp = self.word(memory, sp.wrapping_add(SIGNAL_RBP));
        let sp = self.word(memory, sp.wrapping_add(SIGNAL_RSP));
        let (Some(ip), Some(bp), Some(sp)) = (ip, bp, sp) else {
            return Err(NativeEnd::UnreadableStack);
        };
        self.untold.confirm();
        self.ip = ip;
        self.bp = bp;
        self.sp = sp;
        self.runs = 1;
        Ok(())
    }

    /// The word at this address of the stack.
    #[inline(always)]
    fn word<M: Memory>(&mut self, memory: &M, address: u64) -> Option<u64> {
        if address & 7 != 0 {
            return None;
        }
        if address < self.low || address >= self.high {
            let into = address & (WINDOW - 1);
            let length = WINDOW - into;
            if !memory.read(
                address,
                &mut self.window[into as usize..][..length as usize],
            ) {
                return None;
            }
            self.low = address;
            self.high = address.wrapping_add(length);
        }
        let at = (address & (WINDOW - 8)) as usize;
        // SAFETY: `at` is at most `WINDOW - 8`, so 8 bytes from there lie within the array.
        Some(unsafe { self.window.as_ptr().add(at).cast::<u64>().read_unaligned() })
    }

    #[inline(always)]
    pub(crate) fn end(&mut self, end: NativeEnd) -> bool {
        self.end = end as u32;
        false
    }
}

impl Callers {
    /// Before a walk by the mappings with this id.
    #[inline(always)]
    fn begin(&mut self, mappings: u64) {
        self.next = if self.mappings == mappings {
            self.begin
        } else {
            self.end
        };
        self.mappings = mappings;
        self.begin = self.end;
    }

    /// The rule of a caller that the last walk has met, too.
    #[inline(always)]
    fn find(&mut self, ip: u64, sp: u64) -> Option<Rule> {
        for _ in 0..KNOWN_STEPS {
            let next = self.next;
            if next == self.begin {
                return None;
            }
            let caller = &self.known[next as usize & (KNOWN - 1)];
            if caller.sp >= sp {
                return (caller.sp == sp && caller.ip == ip).then_some(caller.rule);
            }
            self.next = next.wrapping_add(1);
        }
        None
    }

    #[inline(always)]
    fn keep(&mut self, caller: Caller) {
        let end = self.end;
        self.known[end as usize & (KNOWN - 1)] = caller;
        self.end = end.wrapping_add(1);
    }
}

impl Search {
    /// The rule for an address of the process.
    #[inline(always)]
    fn rule<T: Tables>(
        &mut self,
        tables: &T,
        target: &Target,
        address: u64,
    ) -> Result<Rule, NativeEnd> {
        if address < self.mapping.start || address >= self.mapping.end {
            let (first, count) = (target.first_mapping, target.mapping_count);
            let slot = self.last(first, count, MAPPING_STEPS, |slot| {
                Some(tables.mapping(slot)?.start <= address)
            });
            let Some(mapping) = slot.and_then(|slot| tables.mapping(slot)) else {
                return Err(NativeEnd::NoMapping);
            };
            if address >= mapping.end {
                return Err(NativeEnd::NoMapping);
            }
            self.mapping = mapping;
        }
        let offset = (address - self.mapping.start).wrapping_add(self.mapping.offset);
        self.row(tables, offset)
            .and_then(|row| tables.rule(row as u16))
            .ok_or(NativeEnd::NoRule)
    }

    /// The row for an offset behind the start of the first block of the mapping's table.
    #[inline(always)]
    fn row<T: Tables>(&mut self, tables: &T, offset: u64) -> Option<u32> {
        let (table, blocks) = (self.mapping.table, self.mapping.blocks);
        let block = offset >> BLOCK_BITS;
        if block >= u64::from(blocks) {
            return None;
        }
        let block = table.wrapping_add(block as u32);
        let first = tables.word(block)?;
        let after = tables.word(block.wrapping_add(1))?;
        let within = within_block(offset as u32);
        let behind = self.last(
            table.wrapping_add(first),
            after.wrapping_sub(first),
            ROW_STEPS,
            |index| Some(tables.word(index)? >> 16 <= within),
        );
        let row = match behind {
            Some(row) => row,
            // It began in a block before, unless the table begins here.
            None if first > blocks.wrapping_add(1) => table.wrapping_add(first).wrapping_sub(1),
            None => return None,
        };
        tables.word(row)
    }

    /// Of `count` indices from `first` on, sorted, the last for which `holds`.
    #[inline(always)]
    fn last(
        &mut self,
        first: u32,
        count: u32,
        steps: u32,
        holds: impl Fn(u32) -> Option<bool>,
    ) -> Option<u32> {
        let (mut low, mut high) = (Unknown(&mut self.low), Unknown(&mut self.high));
        low.set(first);
        high.set(first.wrapping_add(count));
        for _ in 0..steps {
            if low.get() >= high.get() {
                break;
            }
            let middle = low.get() + (high.get() - low.get()) / 2;
            if holds(middle)? {
                low.set(middle + 1);
            } else {
                high.set(middle);
            }
        }
        (low.get() != first).then(|| low.get() - 1)
    }
}

/// A number in a map value that the compiler may not keep elsewhere: there the verifier would follow
/// what it can be from step to step, and it doubles with each.
struct Unknown<'a>(&'a mut u32);

impl Unknown<'_> {
    #[inline(always)]
    fn get(&self) -> u32 {
        // SAFETY: a reference is valid for reads.
        unsafe { core::ptr::read_volatile(&raw const *self.0) }
    }

    #[inline(always)]
    fn set(&mut self, number: u32) {
        // SAFETY: a mutable reference is valid for writes.
        unsafe { core::ptr::write_volatile(&raw mut *self.0, number) };
    }
}
