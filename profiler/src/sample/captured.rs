//! A code object and what it leads to, as the kernel copied them: a little of a process's memory,
//! which is read as the process itself would be.

use profiler_ebpf::{CODE_PIECES, Code, Piece, python::Memory};

/// What lies behind each piece: none, or what fills it up to this.
const GRAIN: usize = 8;

/// The bytes that were copied.
#[derive(Clone, Debug)]
pub struct Captured {
    pub target: u32,
    pub address: u64,
    pub identity: u32,
    pieces: [Piece; CODE_PIECES],
    bytes: Box<[u8]>,
}

impl Captured {
    /// A copy with this head and these pieces; `None` if they are shorter than the head says.
    pub(super) fn decode(code: &Code, bytes: &[u8]) -> Option<Captured> {
        let mut length = 0_usize;
        for piece in &code.pieces {
            let piece = usize::try_from(piece.length).ok()?;
            length = length.checked_add(piece.checked_next_multiple_of(GRAIN)?)?;
        }
        Some(Captured {
            target: code.target,
            address: code.address,
            identity: code.identity,
            pieces: code.pieces,
            bytes: bytes.get(..length)?.into(),
        })
    }

    /// How many bytes it takes, all in all.
    pub fn bytes(&self) -> usize {
        size_of::<Captured>() + self.bytes.len()
    }
}

impl Memory for Captured {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let mut start = 0;
        for piece in &self.pieces {
            let bytes = &self.bytes[start..start + piece.length as usize];
            let found = address
                .checked_sub(piece.address)
                .and_then(|skip| bytes.get(usize::try_from(skip).ok()?..))
                .and_then(|rest| rest.get(..into.len()));
            if let Some(found) = found {
                into.copy_from_slice(found);
                return true;
            }
            start += bytes.len().next_multiple_of(GRAIN);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    /// Two pieces, of 3 and of 9 bytes, with an absent one between them.
    fn captured() -> (Code, Vec<u8>) {
        let mut code = Code::zeroed();
        for (piece, address, length) in [(0, 0x1000, 3), (1, 0x9000, 0), (2, u64::MAX - 8, 9)] {
            code.pieces[piece] = Piece {
                address,
                length,
                padding: 0,
            };
        }
        (code, (1..=24).collect())
    }

    #[test]
    fn pieces_are_found_at_their_addresses_and_nowhere_else() {
        let (code, bytes) = captured();
        let captured = Captured::decode(&code, &bytes).unwrap();
        let read = |address, length| {
            let mut into = vec![0; length];
            captured.read(address, &mut into).then_some(into)
        };
        assert_eq!(read(0x1000, 3), Some(vec![1, 2, 3]));
        assert_eq!(read(0x1001, 2), Some(vec![2, 3]));
        assert_eq!(read(0x1000, 4), None, "what fills it up is none of it");
        assert_eq!(read(0xfff, 2), None);
        assert_eq!(read(0x9000, 1), None, "absent");
        assert_eq!(read(u64::MAX - 8, 9), Some((9..=17).collect()));
        assert_eq!(read(u64::MAX, 1), Some(vec![17]));
        assert_eq!(read(u64::MAX, 2), None);
    }

    #[test]
    fn what_is_shorter_than_it_says_is_none() {
        let (mut code, bytes) = captured();
        for length in 0..24 {
            assert!(Captured::decode(&code, &bytes[..length]).is_none());
        }
        for length in [25, u32::MAX - 7, u32::MAX] {
            code.pieces[4].length = length;
            assert!(Captured::decode(&code, &bytes).is_none(), "{length}");
        }
        code.pieces = [code.pieces[0]; CODE_PIECES];
        assert!(Captured::decode(&code, &bytes).is_none(), "five pieces");
    }
}
