//! DWARF's way of saying how a frame leads to its caller, made one of our few kinds of rules; equal
//! rules of all files are one, with a number.

use gimli::{
    CfaRule, EndianSlice, Expression, LittleEndian, Operation, Register, RegisterRule,
    UnwindExpression, UnwindSection, UnwindTableRow, X86_64,
};
use profiler_ebpf::{Cfa, MAX_RULES, RSP, Rbp, Rule};
use rustc_hash::FxHashMap;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Operations of the longest expression that is understood.
const OPERATIONS_MAX: usize = 9;

/// Rules by number. The first is that there is none.
#[derive(Debug)]
pub struct Rules {
    numbers: FxHashMap<Rule, u16>,
    /// How many rules found no number.
    overflow: u64,
}

impl Default for Rules {
    fn default() -> Rules {
        let mut rules = Rules {
            numbers: FxHashMap::default(),
            overflow: 0,
        };
        rules.number(Rule::default());
        rules.number(unsupported());
        rules
    }
}

impl Rules {
    /// The number of a rule; of one too many, that of an unsupported one.
    pub fn number(&mut self, rule: Rule) -> u16 {
        if let Some(&number) = self.numbers.get(&rule) {
            return number;
        }
        match u16::try_from(self.numbers.len()) {
            Ok(number) if u32::from(number) < MAX_RULES => {
                self.numbers.insert(rule, number);
                number
            }
            _ => {
                self.overflow += 1;
                self.numbers[&unsupported()]
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Never: there is one for what has no unwind information.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Every rule from this number on, with its number.
    pub fn since(&self, number: usize) -> Vec<(u16, Rule)> {
        let rules = self.numbers.iter().map(|(&rule, &number)| (number, rule));
        rules
            .filter(|&(found, _)| usize::from(found) >= number)
            .collect()
    }

    /// How many rules were one too many.
    pub fn overflow(&self) -> u64 {
        self.overflow
    }
}

/// A rule that can't be followed.
fn unsupported() -> Rule {
    Rule {
        cfa: Cfa::Unsupported as u8,
        ..Rule::default()
    }
}

/// The rule of one row of a frame description entry; `signal`: it describes a signal handler's caller.
pub(super) fn rule<'a, S: UnwindSection<Bytes<'a>>>(
    section: &S,
    row: &UnwindTableRow<usize>,
    signal: bool,
) -> Rule {
    if signal {
        return Rule {
            cfa: Cfa::Signal as u8,
            ..Rule::default()
        };
    }
    match row.register(X86_64::RA) {
        Some(RegisterRule::Undefined) => {
            return Rule {
                cfa: Cfa::End as u8,
                ..Rule::default()
            };
        }
        Some(RegisterRule::Offset(-8)) => {}
        _ => return unsupported(),
    }
    let frame = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => based(*register, *offset),
        CfaRule::Expression(expression) => expressed(section, expression),
    };
    let Some(mut rule) = frame else {
        return unsupported();
    };
    let (rbp, offset) = match row.register(X86_64::RBP) {
        None | Some(RegisterRule::SameValue) => (Rbp::Same, Some(0)),
        Some(RegisterRule::Offset(offset)) => (Rbp::Saved, Some(offset)),
        Some(RegisterRule::Expression(place)) => (Rbp::Pointed, from_rbp(section, &place)),
        Some(_) => (Rbp::Lost, Some(0)),
    };
    match offset.and_then(|offset| i32::try_from(offset).ok()) {
        Some(offset) => (rule.rbp, rule.rbp_offset) = (rbp as u8, offset),
        None => rule.rbp = Rbp::Lost as u8,
    }
    rule
}

/// How many bytes from where rbp points to: what gcc writes of a frame whose stack it has realigned.
fn from_rbp<'a, S: UnwindSection<Bytes<'a>>>(
    section: &S,
    place: &UnwindExpression<usize>,
) -> Option<i64> {
    match operations(section, place)?[..] {
        [
            Operation::RegisterOffset {
                register: X86_64::RBP,
                offset,
                ..
            },
        ] => Some(offset),
        _ => None,
    }
}

fn based(register: Register, offset: i64) -> Option<Rule> {
    Some(Rule {
        cfa: Cfa::Register as u8,
        register: number(register)?,
        offset: i32::try_from(offset).ok()?,
        ..Rule::default()
    })
}

/// One of the registers that a walk begins with.
fn number(register: Register) -> Option<u8> {
    u8::try_from(register.0).ok().filter(|&number| number < 16)
}

/// The operations of an expression; none when there are more than any that is understood has.
fn operations<'a, S: UnwindSection<Bytes<'a>>>(
    section: &S,
    expression: &UnwindExpression<usize>,
) -> Option<Vec<Operation<Bytes<'a>>>> {
    let expression: Expression<Bytes<'a>> = expression.get(section).ok()?;
    // All of our 64-bit files have 8-byte addresses and DWARF's 32-bit format in `.eh_frame`.
    let encoding = gimli::Encoding {
        address_size: 8,
        format: gimli::Format::Dwarf32,
        version: 4,
    };
    let mut operations = expression.operations(encoding);
    let mut seen = Vec::new();
    while let Some(operation) = operations.next().ok()? {
        if seen.len() >= OPERATIONS_MAX {
            return None;
        }
        seen.push(operation);
    }
    Some(seen)
}

/// What compilers and linkers write as expressions: of a realigned stack `*(rbp - 8)`, of hand-written
/// code that keeps the old stack pointer in memory `*(rsp + n) + 8`, and of linkage tables.
fn expressed<'a, S: UnwindSection<Bytes<'a>>>(
    section: &S,
    expression: &UnwindExpression<usize>,
) -> Option<Rule> {
    use Operation::{
        And, Deref, Ge, Mul, Plus, PlusConstant, RegisterOffset, Shl, UnsignedConstant,
    };
    match operations(section, expression)?[..] {
        [
            RegisterOffset {
                register, offset, ..
            },
            Deref { space: false, .. },
        ] => in_memory(register, offset, 0),
        [
            RegisterOffset {
                register, offset, ..
            },
            Deref { space: false, .. },
            PlusConstant { value },
        ] => in_memory(register, offset, value),
        // OpenSSL's multiplication, which keeps the old stack pointer behind a number of words that it
        // has on the stack (crypto/bn/asm/x86_64-mont.pl).
        [
            RegisterOffset {
                register: X86_64::RSP,
                offset,
                ..
            },
            RegisterOffset {
                register,
                offset: 0,
                ..
            },
            UnsignedConstant { value: 8 },
            Mul,
            Plus,
            Deref { space: false, .. },
            PlusConstant { value },
        ] => Some(Rule {
            cfa: Cfa::Indexed as u8,
            ..in_memory(register, offset, value)?
        }),
        // The linkers' own: binutils bfd/elfxx-x86.c, lld ELF/Arch/X86_64.cpp.
        [
            RegisterOffset {
                register: X86_64::RSP,
                offset: 8,
                ..
            },
            RegisterOffset {
                register: X86_64::RA,
                offset: 0,
                ..
            },
            UnsignedConstant { value: 15 },
            And,
            UnsignedConstant { value: from },
            Ge,
            UnsignedConstant { value: 3 },
            Shl,
            Plus,
        ] => linkage(from),
        _ => None,
    }
}

fn in_memory(register: Register, offset: i64, add: u64) -> Option<Rule> {
    Some(Rule {
        cfa: Cfa::Memory as u8,
        add: i32::try_from(add).ok()?,
        ..based(register, offset)?
    })
}

fn linkage(from: u64) -> Option<Rule> {
    Some(Rule {
        cfa: Cfa::Plt as u8,
        register: RSP,
        offset: 8,
        add: i32::try_from(from).ok().filter(|from| *from < 16)?,
        ..Rule::default()
    })
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::RBP;

    use super::*;

    #[test]
    fn rules_are_numbered_once_and_their_number_is_bounded() {
        let mut rules = Rules::default();
        assert_eq!(rules.number(Rule::default()), 0);
        let rule = |offset| Rule {
            cfa: Cfa::Register as u8,
            register: RBP,
            offset,
            ..Rule::default()
        };
        let first = rules.number(rule(16));
        assert_eq!(rules.number(rule(16)), first);
        assert_eq!(rules.since(usize::from(first)), [(first, rule(16))]);
        for offset in 0..1 << 17 {
            rules.number(rule(offset));
        }
        assert_eq!(rules.len(), 1 << 16);
        assert_eq!(rules.number(rule(-8)), rules.number(unsupported()));
        assert!(rules.overflow() > 1 << 16);
    }
}
