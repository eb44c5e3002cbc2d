//! Decodes CPython's smallest exported functions (x86-64) to learn where they look: addresses that
//! no symbol names, or that moved between micro releases. Takes the first bytes of a function and
//! its address; gives addresses of the file. Only the shapes that compilers were seen to emit.

/// The bytes of a function, at most [`LENGTH`], and where they lie.
#[derive(Clone, Copy)]
pub(super) struct Function<'a> {
    pub code: &'a [u8],
    pub address: u64,
}

/// How much of a function is looked at.
pub(super) const LENGTH: u64 = 96;

/// Where a thread's own `PyThreadState` is kept in thread-local storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ThreadLocal {
    /// At this offset from the thread control block.
    Fixed(i64),
    /// At the offset from the thread control block that the loader stored at this address.
    Stored { slot: u64 },
    /// As the TLS descriptor at `slot` says, plus `offset`.
    Described { slot: u64, offset: i64 },
    /// In the block of the module whose id the loader stored at `slot`, at the offset that it
    /// stored behind that plus `offset`.
    Module { slot: u64, offset: i64 },
}

impl<'a> Function<'a> {
    /// Past the `endbr64` that builds with control-flow protection begin with.
    fn body(self) -> Function<'a> {
        match self.code.strip_prefix(&[0xf3, 0x0f, 0x1e, 0xfa]) {
            Some(code) => Function {
                code,
                address: self.address.wrapping_add(4),
            },
            None => self,
        }
    }

    /// The 32-bit displacement at `at`.
    fn displacement(self, at: usize) -> Option<i64> {
        let bytes = self.code.get(at..at.checked_add(4)?)?;
        Some(i32::from_le_bytes(bytes.try_into().ok()?).into())
    }

    /// The target of the instruction-relative displacement at `at`, with which the instruction
    /// ends.
    fn target(self, at: usize) -> Option<u64> {
        let next = self.address.wrapping_add(at as u64).wrapping_add(4);
        Some(next.wrapping_add_signed(self.displacement(at)?))
    }

    /// Each position where `opcode` stands.
    fn all<'p>(self, opcode: &'p [u8]) -> impl Iterator<Item = usize> + use<'a, 'p> {
        let windows = self.code.windows(opcode.len()).enumerate();
        windows.filter_map(move |(at, window)| (window == opcode).then_some(at))
    }

    fn first(self, opcode: &[u8]) -> Option<usize> {
        self.all(opcode).next()
    }
}

/// What `return variable;` reads: `mov variable(%rip),%rax; ret`, or, in a library,
/// `mov GOT(%rip),%rax; mov offset(%rax),%rax; ret` with the runtime's address in the GOT.
pub(super) fn returned(function: Function<'_>, runtime: Option<u64>) -> Option<u64> {
    let body = function.body();
    let rest = body.code.strip_prefix(&[0x48, 0x8b, 0x05])?.get(4..)?;
    match rest {
        [0xc3, ..] => body.target(3),
        [0x48, 0x8b, 0x40, offset, 0xc3, ..] => {
            Some(runtime?.wrapping_add_signed(i64::from(*offset as i8)))
        }
        [0x48, 0x8b, 0x80, _, _, _, _, 0xc3, ..] => {
            Some(runtime?.wrapping_add_signed(body.displacement(10)?))
        }
        _ => None,
    }
}

/// Where `PyGILState_GetThisThreadState` finds its `pthread_key_t`. Several shapes can match by
/// accident, so only an address that `plausible` accepts counts.
pub(super) fn thread_key(
    function: Function<'_>,
    runtime: Option<u64>,
    plausible: impl Fn(u64) -> bool,
) -> Option<u64> {
    let body = function.body();
    // `mov key(%rip),%edi` before the call of `pthread_getspecific`.
    let direct = body.all(&[0x8b, 0x3d]).filter_map(|at| body.target(at + 2));
    // The address of a `Py_tss_t`, whose key stands behind its flag: `lea tss(%rip),%rdi`,
    // `mov $tss,%edi`, and `lea offset(%rax),%rdi` or `%rbx` with the runtime in `%rax`.
    let relative = body.all(&[0x48, 0x8d, 0x3d]);
    let relative = relative.filter_map(|at| body.target(at + 3));
    let absolute = body.all(&[0xbf]).filter_map(|at| body.displacement(at + 1));
    let absolute = absolute.map(|address| address as u64);
    let based = [[0x48, 0x8d, 0xb8], [0x48, 0x8d, 0x98]];
    let based: Vec<u64> = based
        .iter()
        .flat_map(|opcode| body.all(opcode))
        .filter_map(|at| Some(runtime?.wrapping_add_signed(body.displacement(at + 3)?)))
        .collect();
    let behind_flag = relative.chain(absolute).chain(based);
    direct
        .chain(behind_flag.map(|tss| tss.wrapping_add(4)))
        .find(|address| address % 4 == 0 && plausible(*address))
}

/// Where `PyGILState_GetThisThreadState` of 3.15 finds the thread's own state, `_Py_tss_gilstate`.
pub(super) fn thread_local(function: Function<'_>) -> Option<ThreadLocal> {
    let body = function.body();
    // `mov %fs:offset,%rax`; an offset of 0 is the control block itself, and then
    // `mov offset(%rax),%rax` follows.
    let prefix = [0x64, 0x48, 0x8b, 0x04, 0x25];
    if let Some(at) = body.first(&prefix) {
        let offset = match body.displacement(at + 5)? {
            0 => {
                let rest = body.code.get(at + 9..)?;
                member(rest)?
            }
            offset => offset,
        };
        return Some(ThreadLocal::Fixed(offset));
    }
    // `mov slot(%rip),%rax; mov %fs:(%rax),%rax`.
    if let Some(at) = body.first(&[0x48, 0x8b, 0x05])
        && body.code.get(at + 7..at + 11) == Some(&[0x64, 0x48, 0x8b, 0x00])
    {
        let slot = body.target(at + 3)?;
        return Some(ThreadLocal::Stored { slot });
    }
    // `lea slot(%rip),%rax; call *(%rax); mov %fs:offset(%rax),%rax`, or `add %fs:0,%rax` and
    // `mov offset(%rax),%rax`.
    if let Some(at) = body.first(&[0x48, 0x8d, 0x05])
        && let Some(rest) = body.code.get(at + 7..)?.strip_prefix(&[0xff, 0x10])
    {
        let rest = match rest.strip_prefix(&[0x64, 0x48, 0x03, 0x04, 0x25, 0, 0, 0, 0]) {
            Some(rest) => rest,
            None => rest.strip_prefix(&[0x64])?,
        };
        let (slot, offset) = (body.target(at + 3)?, member(rest)?);
        return Some(ThreadLocal::Described { slot, offset });
    }
    // `lea slot(%rip),%rdi; call __tls_get_addr; mov offset(%rax),%rax`, the first two with
    // prefixes that leave the linker room to relax them.
    let at = body.first(&[0x48, 0x8d, 0x3d])?;
    let slot = body.target(at + 3)?;
    let call = body.code.get(at + 7..)?;
    let after = [
        (&[0x66, 0x66, 0x48, 0xe8][..], 8),
        (&[0x66, 0x48, 0xff, 0x15][..], 8),
        (&[0xe8][..], 5),
    ];
    let (_, length) = after.iter().find(|(opcode, _)| call.starts_with(opcode))?;
    let offset = member(call.get(*length..)?)?;
    Some(ThreadLocal::Module { slot, offset })
}

/// The offset of `mov offset(%rax),%rax`.
fn member(code: &[u8]) -> Option<i64> {
    match code {
        [0x48, 0x8b, 0x00, ..] => Some(0),
        [0x48, 0x8b, 0x40, offset, ..] => Some(i64::from(*offset as i8)),
        [0x48, 0x8b, 0x80, a, b, c, d, ..] => Some(i64::from(i32::from_le_bytes([*a, *b, *c, *d]))),
        _ => None,
    }
}

/// Every address that the function takes: `lea address(%rip),%reg` and `mov $address,%reg`. For
/// `Py_GetVersion` the text of `PY_VERSION` is among them.
pub(super) fn taken_addresses(function: Function<'_>) -> impl Iterator<Item = u64> + use<'_> {
    (0..function.code.len()).filter_map(move |at| match function.code.get(at..)? {
        // REX.W with or without REX.R, lea, mod 00 and r/m 101: relative to the next instruction.
        [0x48 | 0x4c, 0x8d, modrm, ..] if modrm & 0xc7 == 0x05 => function.target(at + 3),
        [0xb8..=0xbf, ..] => Some(function.displacement(at + 1)? as u64),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x1000;
    const RUNTIME: u64 = 0x9000;

    fn function(code: &[u8]) -> Function<'_> {
        Function { code, address: AT }
    }

    #[test]
    fn a_returned_variable_is_found_in_executables_and_libraries() {
        let executable = [0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0xc3];
        assert_eq!(returned(function(&executable), None), Some(AT + 7 + 0x10));
        let library = [
            0x48, 0x8b, 0x05, 1, 2, 3, 0, 0x48, 0x8b, 0x80, 0x38, 2, 0, 0, 0xc3,
        ];
        assert_eq!(
            returned(function(&library), Some(RUNTIME)),
            Some(RUNTIME + 0x238)
        );
        let near = [0x48, 0x8b, 0x05, 1, 2, 3, 0, 0x48, 0x8b, 0x40, 0x20, 0xc3];
        assert_eq!(
            returned(function(&near), Some(RUNTIME)),
            Some(RUNTIME + 0x20)
        );
        let guarded = [
            0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0xc3,
        ];
        assert_eq!(returned(function(&guarded), None), Some(AT + 11 + 0x10));
        assert_eq!(returned(function(&executable[..6]), None), None);
    }

    #[test]
    fn the_key_is_found_in_each_shape_and_only_where_it_can_be() {
        let key = |code: &[u8]| {
            thread_key(function(code), Some(RUNTIME), |address| {
                (RUNTIME..RUNTIME + 0x1000).contains(&address)
            })
        };
        // cmpq $0,x(%rip); je; mov key(%rip),%edi; jmp (Debian's 3.11 executable).
        let direct = [
            0x48, 0x83, 0x3d, 0x50, 0x3d, 0x56, 0, 0, 0x74, 0x1f, 0x8b, 0x3d, 0x50, 0x80, 0, 0,
            0xe9,
        ];
        assert_eq!(key(&direct), Some(AT + 16 + 0x8050));
        // lea 0x250(%rax),%rdi (libpython 3.11).
        let based = [
            0x48, 0x8b, 0x05, 1, 2, 3, 0, 0x48, 0x8d, 0xb8, 0x50, 2, 0, 0, 0xe9,
        ];
        assert_eq!(key(&based), Some(RUNTIME + 0x254));
        // lea 0x608(%rax),%rbx (libpython 3.12).
        let kept = [0x48, 0x8d, 0x98, 0x08, 6, 0, 0];
        assert_eq!(key(&kept), Some(RUNTIME + 0x60c));
        // mov $tss,%edi (Debian's 3.14 executable).
        assert_eq!(key(&[0xbf, 0x20, 0x90, 0, 0, 0xe9]), Some(0x9024));
        // lea tss(%rip),%rdi.
        assert_eq!(
            key(&[0x48, 0x8d, 0x3d, 0, 0x80, 0, 0]),
            Some(AT + 7 + 0x8000 + 4).filter(|address| address % 4 == 0)
        );
        assert_eq!(key(&[0xbf, 0x20, 0x20, 0, 0]), None, "outside the runtime");
    }

    #[test]
    fn the_thread_local_is_found_in_each_model() {
        let fixed = [
            0xf3, 0x0f, 0x1e, 0xfa, 0x64, 0x48, 0x8b, 0x04, 0x25, 0xd8, 0xff, 0xff, 0xff, 0xc3,
        ];
        let found = thread_local(function(&fixed));
        assert_eq!(found, Some(ThreadLocal::Fixed(-0x28)));
        let relaxed = [
            0x66, 0x66, 0x66, 0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x48, 0x8b, 0x80, 0xe0,
            0xff, 0xff, 0xff,
        ];
        let found = thread_local(function(&relaxed));
        assert_eq!(found, Some(ThreadLocal::Fixed(-0x20)));
        let stored = [
            0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0x64, 0x48, 0x8b, 0x00, 0xc3,
        ];
        let slot = AT + 7 + 0x10;
        let found = thread_local(function(&stored));
        assert_eq!(found, Some(ThreadLocal::Stored { slot }));
        let module = [
            0x48, 0x83, 0xec, 0x08, 0x66, 0x48, 0x8d, 0x3d, 0x10, 0, 0, 0, 0x66, 0x66, 0x48, 0xe8,
            1, 2, 3, 4, 0x48, 0x8b, 0x40, 0x18, 0x48, 0x83, 0xc4, 0x08, 0xc3,
        ];
        let found = thread_local(function(&module));
        let slot = AT + 12 + 0x10;
        assert_eq!(found, Some(ThreadLocal::Module { slot, offset: 0x18 }));
    }

    #[test]
    fn the_thread_local_is_found_through_a_descriptor() {
        // sub $8,%rsp; lea slot(%rip),%rax; call *(%rax); mov %fs:(%rax),%rax; add $8,%rsp; ret
        // (gcc 12, -mtls-dialect=gnu2).
        let whole = [
            0x48, 0x83, 0xec, 0x08, 0x48, 0x8d, 0x05, 0xc5, 0x2e, 0, 0, 0xff, 0x10, 0x64, 0x48,
            0x8b, 0x00, 0x48, 0x83, 0xc4, 0x08, 0xc3,
        ];
        let described = |offset| {
            let slot = AT + 11 + 0x2ec5;
            Some(ThreadLocal::Described { slot, offset })
        };
        assert_eq!(thread_local(function(&whole)), described(0));
        let mut member = whole;
        member[16..18].copy_from_slice(&[0x40, 0x18]);
        assert_eq!(thread_local(function(&member)), described(0x18));
        // add %fs:0,%rax; mov 0x18(%rax),%rax.
        let mut added = whole[..13].to_vec();
        added.extend_from_slice(&[0x64, 0x48, 0x03, 0x04, 0x25, 0, 0, 0, 0]);
        added.extend_from_slice(&[0x48, 0x8b, 0x40, 0x18]);
        assert_eq!(thread_local(function(&added)), described(0x18));
        assert_eq!(thread_local(function(&whole[..14])), None);
    }

    #[test]
    fn cut_or_random_code_gives_nothing_and_does_not_panic() {
        let mut state = 1_u64;
        for length in 0..4096 {
            let code: Vec<u8> = (0..length % 97)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                    // Few distinct bytes, so that opcodes do turn up.
                    [0x48, 0x8b, 0x8d, 0x3d, 0x05, 0x64, 0xe8, 0xff][(state >> 61) as usize]
                })
                .collect();
            let function = Function {
                code: &code,
                address: u64::MAX - 3,
            };
            returned(function, None);
            thread_key(function, None, |_| false);
            thread_local(function);
            taken_addresses(function).for_each(drop);
        }
    }
}
