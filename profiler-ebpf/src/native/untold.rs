//! The caller of code that tells nothing of its frames: code in no file, which was made at run time, and
//! assembly without unwind information. Where all that the code does before it returns is to move the
//! stack pointer, as CPython's trampolines for perf, its caller is known. Else one is *guessed*: each of
//! a few words of the stack in turn, until one is a return address in code that has unwind information
//! and leads to another one. A guess can still be wrong (an old return address in memory that the code
//! does not use; the caller's caller, where the frame pointer is the caller's), so its frame says that
//! it is one.

use bytemuck::Zeroable;

use super::{Native, Unknown};
use crate::{NativeEnd, python::Memory};

/// Instructions of such code at most: those of `_Py_trampoline_func_start` (CPython's
/// Python/asm_trampoline.S, 3.12 to 3.15), and how many bytes they are looked for in.
const INSTRUCTIONS: u32 = 6;
const CODE: usize = 16;
/// The longest of them.
const LONGEST: usize = 4;
/// How far above the stack pointer a frame pointer is believed.
const FRAME_MAX: u64 = 1 << 16;

/// How many guesses there are: so many words less one, which is what a frame pointer leads to.
const GUESSES: u32 = 12;
const BY_POINTER: u32 = 1;

/// How far a guess is confirmed.
const CONFIRMED: u32 = 0;
/// What is stepped over is what was guessed.
const GUESSED: u32 = 1;
/// It is what that leads to.
const ITS_CALLER: u32 = 2;

/// Code that tells nothing, and which caller of it is tried.
#[derive(Zeroable)]
#[repr(C)]
pub(super) struct Untold {
    /// [`CONFIRMED`] to [`ITS_CALLER`].
    trial: u32,
    /// The number of the guess.
    guess: u32,
    /// A [`NativeEnd`]: that of the walk if there is no caller.
    end: u32,
    /// The walk as it was behind this code.
    frames: u32,
    newer: u32,
    passed: u32,
    runs: u32,
    /// How far the code was read, bytes.
    read: u32,
    hash: u64,
    sp: u64,
    bp: u64,
    /// Which callers were known behind this code.
    callers: u32,
    /// How far the code has moved the stack pointer, bytes up, of 32 bits with a sign.
    moved: u32,
    /// The last instruction may end beyond what is read.
    code: [u8; CODE + LONGEST],
    padding_2: u32,
}

impl Untold {
    #[inline(always)]
    pub(super) fn begin(&mut self) {
        self.trial = CONFIRMED;
    }

    /// Whether the frame that is stepped over was guessed.
    #[inline(always)]
    pub(super) fn is_guess(&self) -> bool {
        self.trial == GUESSED
    }

    /// The next frame is what the guessed one leads to.
    #[inline(always)]
    pub(super) fn lead_on(&mut self) {
        if self.trial == GUESSED {
            self.trial = ITS_CALLER;
        }
    }

    /// The guess needs no more proof.
    #[inline(always)]
    pub(super) fn confirm(&mut self) {
        self.trial = CONFIRMED;
    }
}

impl Native {
    /// Before a step: false when the address can't be a caller's, although it should be that of a guess.
    #[inline(always)]
    pub(super) fn may_be_caller<M: Memory>(&mut self, memory: &M) -> bool {
        if self.untold.trial == CONFIRMED {
            return true;
        }
        let follows = follows_call(memory, self.ip);
        if self.untold.trial == ITS_CALLER {
            self.untold.trial = if follows { CONFIRMED } else { ITS_CALLER };
        }
        follows
    }

    /// Goes on behind the frame taken last, if its code tells nothing: where that is known to return to,
    /// else [`fail`](Self::fail) is to guess.
    #[inline(always)]
    pub(super) fn go_on_untold<M: Memory>(
        &mut self,
        memory: &M,
        end: NativeEnd,
    ) -> Result<(), NativeEnd> {
        if !matches!(end, NativeEnd::NoRule | NativeEnd::NoMapping) {
            return Err(end);
        }
        let untold = &mut self.untold;
        untold.end = end as u32;
        untold.guess = 0;
        untold.frames = self.frames;
        untold.newer = self.newer;
        untold.passed = self.passed;
        untold.callers = self.callers.end;
        untold.runs = self.runs;
        untold.hash = self.hash;
        untold.sp = self.sp;
        untold.bp = self.bp;
        let known = self.follow_to_return(memory);
        let moved = i64::from(Unknown(&mut self.untold.moved).get() as i32);
        if known && self.go_to(memory, self.sp.wrapping_add(moved as u64), self.bp) {
            return Ok(());
        }
        self.untold.trial = GUESSED;
        Err(end)
    }

    /// The walk can't go on: ends it, or tries the next guess when it was one that has led here.
    #[inline(always)]
    pub(super) fn fail<M: Memory>(&mut self, memory: &M, end: NativeEnd) -> bool {
        // What is complete is so behind a guess, too.
        if self.untold.trial == CONFIRMED || end as u32 == NativeEnd::Complete as u32 {
            return self.end(end);
        }
        let untold = &self.untold;
        self.frames = untold.frames;
        self.newer = untold.newer;
        self.passed = untold.passed;
        self.callers.end = untold.callers;
        self.hash = untold.hash;
        self.guess(memory)
    }

    /// Goes on at the next guess: of code that runs the word on top of the stack, as in a leaf, else the
    /// word above that, as in a function that only aligns the stack for its calls; then what a frame
    /// pointer leads to; then further words. At a call the stack is aligned to 16 bytes, so the address to
    /// which its function returns is in every second word (System V ABI, AMD64 supplement, 3.2.2).
    #[inline(always)]
    fn guess<M: Memory>(&mut self, memory: &M) -> bool {
        let untold = &mut self.untold;
        let (sp, bp, mut guess) = (untold.sp, untold.bp, untold.guess);
        untold.trial = GUESSED;
        if guess == BY_POINTER {
            guess += 1;
            self.untold.guess = guess;
            let framed = bp & 15 == 0 && bp >= sp && bp - sp < FRAME_MAX;
            let saved = if framed { self.word(memory, bp) } else { None };
            if let Some(saved) = saved.filter(|&saved| saved == 0 || saved > bp)
                && self.go_to(memory, bp.wrapping_add(8), saved)
            {
                return true;
            }
        }
        self.untold.guess = guess + 1;
        let number = u64::from(guess - u32::from(guess > BY_POINTER));
        let above = match self.untold.runs {
            0 => 8 + 16 * number,
            _ => 8 * number,
        };
        if guess < GUESSES && self.go_to(memory, sp.wrapping_add(above), bp) {
            return true;
        }
        self.end = self.untold.end;
        false
    }

    /// Goes on at the return address that lies at `at`.
    #[inline(always)]
    fn go_to<M: Memory>(&mut self, memory: &M, at: u64, bp: u64) -> bool {
        let Some(caller) = self.word(memory, at) else {
            return false;
        };
        self.ip = caller;
        self.sp = at.wrapping_add(8);
        self.bp = bp;
        self.runs = 0;
        true
    }

    /// Whether the code from `ip` on moves the stack pointer and returns, with perhaps a call in between
    /// that leaves it as it is; then `bp` is the caller's, and `moved` says where its address lies.
    #[inline(always)]
    fn follow_to_return<M: Memory>(&mut self, memory: &M) -> bool {
        if !memory.read(self.ip, &mut self.untold.code[..CODE]) {
            return false;
        }
        let before = self.bp;
        Unknown(&mut self.untold.read).set(0);
        Unknown(&mut self.untold.moved).set(0);
        for _ in 0..INSTRUCTIONS {
            let read = Unknown(&mut self.untold.read).get();
            let moved = Unknown(&mut self.untold.moved).get();
            if read as usize >= CODE {
                break;
            }
            let code = self.untold.code.as_ptr();
            // SAFETY: `read` is less than `CODE`, so 4 bytes from there lie within the array.
            let code = unsafe {
                code.add(read as usize & (CODE - 1))
                    .cast::<u32>()
                    .read_unaligned()
            };
            let distance = (code >> 24) as i8 as i32 as u32;
            // Intel's manual, volume 2; `REX.W` is 48.
            let (length, up) = if code as u8 == 0xc3 {
                return true; // ret
            } else if code == 0xfa1e_0ff3 {
                (4, 0) // endbr64
            } else if code & 0xff_ffff == 0xec_8348 {
                (4, 0_u32.wrapping_sub(distance)) // sub $distance, %rsp
            } else if code & 0xff_ffff == 0xc4_8348 {
                (4, distance) // add $distance, %rsp
            } else if code & 0xff_ffff == 0xe5_8948 {
                (3, 0) // mov %rsp, %rbp
            } else if code & 0xf8ff == 0xd0ff {
                (2, 0) // call by a register
            } else if code as u8 == 0x55 {
                (1, 0_u32.wrapping_sub(8)) // push %rbp
            } else if code as u8 == 0x5d {
                // pop %rbp: what this code has not pushed yet is still there.
                if moved as i32 >= 0 {
                    let at = self.sp.wrapping_add(moved.into());
                    let Some(saved) = self.word(memory, at) else {
                        break;
                    };
                    self.bp = saved;
                }
                (1, 8)
            } else {
                break;
            };
            Unknown(&mut self.untold.read).set(read + length);
            Unknown(&mut self.untold.moved).set(moved.wrapping_add(up));
        }
        self.bp = before;
        false
    }
}

/// Whether there is a call before this address (Intel's manual, volume 2, "CALL"): `e8` with 4 bytes of
/// distance, or `ff /2` with an operand of up to 6.
#[inline(always)]
fn follows_call<M: Memory>(memory: &M, address: u64) -> bool {
    const LONGEST: usize = 7;
    let mut code = [0; LONGEST];
    let before = address.checked_sub(LONGEST as u64);
    if !before.is_some_and(|before| memory.read(before, &mut code)) {
        return false;
    }
    let indirect = |at: usize| code[at] == 0xff && code[at + 1] & 0x38 == 0x10;
    code[2] == 0xe8 || indirect(0) || indirect(1) || indirect(3) || indirect(4) || indirect(5)
}
