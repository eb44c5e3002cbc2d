//! Line tables: from a code object's `co_lnotab` or `co_linetable` and an instruction to a line.
//! Three encodings: pairs of increments up to 3.9 (`Objects/lnotab_notes.txt` of 2.7 and 3.9), ranges
//! in 3.10 (the same file of 3.10), locations with columns from 3.11 (`Objects/locations.md`).
//! A table is foreign bytes: any content ends, and gives a line, perhaps a wrong one, or none.

/// The bytes of one code unit, an opcode and its argument.
const CODE_UNIT: i64 = 2;

/// A code object's line table, kept as the interpreter encodes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineTable {
    encoding: Encoding,
    first_line: u32,
    table: Box<[u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// As in Python 2, where a line is never below the one before.
    UnsignedIncrements,
    Increments,
    Ranges,
    Locations,
    Absent,
}

impl LineTable {
    /// The table of a code object of `version` (as in `Layout::version`) that begins at line
    /// `first_line`.
    pub fn new(version: u32, first_line: u32, table: Vec<u8>) -> LineTable {
        let encoding = match version {
            ..0x300 => Encoding::UnsignedIncrements,
            0x300..0x30a => Encoding::Increments,
            0x30a => Encoding::Ranges,
            _ => Encoding::Locations,
        };
        LineTable {
            encoding,
            first_line,
            table: table.into(),
        }
    }

    /// Of a code object whose table is not known: it has no lines.
    pub fn absent(first_line: u32) -> LineTable {
        LineTable {
            encoding: Encoding::Absent,
            first_line,
            table: Box::default(),
        }
    }

    /// Whether the table is known.
    pub fn is_known(&self) -> bool {
        self.encoding != Encoding::Absent
    }

    /// How many bytes the table takes.
    pub fn bytes(&self) -> usize {
        self.table.len()
    }

    /// The line of `instruction`, in the unit of the contract's `Frame::instruction`: bytes up to
    /// 3.9 and from 3.11 on, code units in 3.10. A frame that has not started (negative) is at its
    /// first line. `None`: the compiler made the instruction, it stands on no line.
    pub fn line(&self, instruction: i32) -> Option<u32> {
        if instruction < 0 {
            return Some(self.first_line);
        }
        let instruction = i64::from(instruction);
        let line = match self.encoding {
            Encoding::UnsignedIncrements => Some(self.increments(instruction, i64::from)),
            Encoding::Increments => {
                Some(self.increments(instruction, |lines| i64::from(lines as i8)))
            }
            Encoding::Ranges => self.ranges(instruction * CODE_UNIT),
            Encoding::Locations => self.locations(instruction),
            Encoding::Absent => None,
        };
        line.and_then(|line| u32::try_from(line).ok())
    }

    /// Pairs of an unsigned increment of the offset and one of the line, which `of_line` gives its
    /// sign, each pair valid from the offset that it leads to.
    fn increments(&self, offset: i64, of_line: impl Fn(u8) -> i64) -> i64 {
        let (mut at, mut line) = (0, i64::from(self.first_line));
        for [bytes, lines] in self.table.as_chunks().0 {
            at += i64::from(*bytes);
            if at > offset {
                break;
            }
            line += of_line(*lines);
        }
        line
    }

    /// Pairs of a range's length in bytes and a signed increment of the line that holds in it;
    /// -128 says that no line does.
    fn ranges(&self, offset: i64) -> Option<i64> {
        let (mut end, mut line) = (0, i64::from(self.first_line));
        for [bytes, lines] in self.table.as_chunks().0 {
            end += i64::from(*bytes);
            let lines = *lines as i8;
            if lines != i8::MIN {
                line += i64::from(lines);
            }
            if offset < end {
                return (lines != i8::MIN).then_some(line);
            }
        }
        None
    }

    /// Entries of a head byte (`1`, four bits of form, three of length in code units less one) and
    /// what the form says: an increment of the line, then columns, which are passed over.
    fn locations(&self, offset: i64) -> Option<i64> {
        let (mut end, mut line) = (0, i64::from(self.first_line));
        let mut bytes = Bytes(&self.table);
        loop {
            let head = bytes.next()?;
            end += (i64::from(head & 7) + 1) * CODE_UNIT;
            let form = head >> 3 & 15;
            match form {
                0..=9 => {
                    bytes.next()?;
                }
                10..=12 => {
                    line += i64::from(form - 10);
                    bytes.next()?;
                    bytes.next()?;
                }
                13 => line += bytes.signed()?,
                14 => {
                    line += bytes.signed()?;
                    for _end_line_and_columns in 0..3 {
                        bytes.number()?;
                    }
                }
                _ => {}
            }
            if offset < end {
                return (form != 15).then_some(line);
            }
        }
    }
}

/// What is left of a location table.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Groups of six bits, lowest first; bit 6 says that another follows. At most 32 bits of value,
    /// as in the interpreter.
    fn number(&mut self) -> Option<i64> {
        let mut number = 0;
        for group in 0..6 {
            let byte = self.next()?;
            number |= i64::from(byte & 63) << (6 * group);
            if byte & 64 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// A number whose lowest bit is its sign.
    fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some(match number & 1 {
            0 => number >> 1,
            _ => -(number >> 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// A code object that `tests/python/record_lines.py` recorded: the line of each code unit as
    /// runs of (length, line).
    #[derive(Deserialize)]
    struct Code {
        name: String,
        first: u32,
        table: String,
        runs: Vec<(i32, Option<u32>)>,
    }

    fn unhex(text: &str) -> Vec<u8> {
        let digits = (0..text.len()).step_by(2);
        digits
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn every_version_gives_the_lines_that_its_interpreter_gives() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/lines");
        for (version, name) in [(0x207, "2.7".to_owned())]
            .into_iter()
            .chain((6..=15).map(|minor| (0x300 + minor, format!("3.{minor}"))))
        {
            let path = format!("{folder}/{name}.json");
            let recorded = std::fs::read(&path).expect(&path);
            let codes: Vec<Code> = serde_json::from_slice(&recorded).unwrap();
            assert!(codes.len() >= 24, "{path}: {} code objects", codes.len());
            // In 3.10 an instruction is a number of code units, in 2.7 each byte has its line.
            let unit = if matches!(version, 0x207 | 0x30a) {
                1
            } else {
                2
            };
            for code in codes {
                let table = LineTable::new(version, code.first, unhex(&code.table));
                let mut at = 0;
                for (length, line) in code.runs {
                    for _ in 0..length {
                        let function = &code.name;
                        assert_eq!(table.line(at), line, "{name} {function} at {at}");
                        at += unit;
                    }
                }
                assert_eq!(table.line(-1), Some(code.first));
                assert_eq!(table.line(i32::MIN), Some(code.first));
            }
        }
    }

    #[test]
    fn past_the_end_only_increments_go_on() {
        assert_eq!(LineTable::new(0x309, 7, vec![2, 1]).line(i32::MAX), Some(8));
        assert_eq!(LineTable::new(0x30a, 7, vec![2, 1]).line(1), None);
        assert_eq!(LineTable::new(0x30b, 7, vec![0xe8, 2]).line(2), None);
        assert_eq!(LineTable::new(0x30b, 7, vec![0xe8, 2]).line(0), Some(8));
        for version in [0x306, 0x30a, 0x30b] {
            let empty = LineTable::new(version, 7, vec![]).line(0);
            assert_eq!(empty, (version == 0x306).then_some(7));
        }
    }

    #[test]
    fn a_line_below_zero_is_no_line() {
        assert_eq!(LineTable::new(0x309, 1, vec![0, 0x80]).line(0), None);
        assert_eq!(LineTable::new(0x30b, 1, vec![0xe8, 0x0b]).line(0), None);
    }

    #[test]
    fn a_table_that_is_not_known_has_no_lines() {
        let absent = LineTable::absent(7);
        assert_eq!((absent.line(-1), absent.line(0)), (Some(7), None));
        assert!(!absent.is_known() && LineTable::new(0x30b, 7, vec![]).is_known());
    }

    #[test]
    fn any_bytes_end_without_a_panic() {
        let mut state = 7_u64;
        let mut random = move || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        for round in 0..3000 {
            let length = random() % 64;
            // Every other table has many continued numbers.
            let bytes = (0..length).map(|_| random() as u8 | if round % 2 == 0 { 0 } else { 0x40 });
            let bytes: Vec<u8> = bytes.collect();
            for version in [0x207, 0x306, 0x309, 0x30a, 0x30b, 0x30f] {
                let first = if round % 3 == 0 { u32::MAX } else { random() };
                let table = LineTable::new(version, first, bytes.clone());
                for instruction in [i32::MIN, -1, 0, 1, 64, i32::MAX, random() as i32] {
                    table.line(instruction);
                }
            }
        }
    }
}
