//! The table of one file as the kernel has it: words, of which the first tell where the rows of each
//! block of the file begin ([`Page`](profiler_ebpf::Page)).

use profiler_ebpf::{BLOCK_BITS, row};

use super::{Row, Table};

/// A table that is ready for the kernel; one without rows has no words.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Where in the file the first block starts, bytes.
    pub start: u32,
    /// How many blocks there are, up to that where the last row starts.
    pub blocks: u32,
    pub words: Vec<u32>,
}

impl Table {
    /// The same for the kernel. What comes after the block of the last row has no rule there.
    pub fn packed(&self) -> Packed {
        let (Some(first), Some(last)) = (self.rows.first(), self.rows.last()) else {
            return Packed::default();
        };
        let block = |row: &Row| row.start >> BLOCK_BITS;
        let blocks = block(last) - block(first) + 1;
        let head = blocks as usize + 1;
        let mut words = Vec::with_capacity(head + self.rows.len());
        for (index, row) in self.rows.iter().enumerate() {
            // Of each block up to this row's the rows begin here, if they did not before.
            let reached = (block(row) - block(first)) as usize + 1;
            words.resize(words.len().max(reached), (head + index) as u32);
        }
        words.resize(head, (head + self.rows.len()) as u32);
        words.extend(self.rows.iter().map(|it| row(it.start, it.rule)));
        Packed {
            start: block(first) << BLOCK_BITS,
            blocks,
            words,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_tells_where_its_rows_begin() {
        let rows = [(0x1404, 7), (0x1c00, 8), (0x1fff, 9), (0x2800, 1)];
        let rows = rows.map(|(start, rule)| Row { start, rule });
        let packed = Table {
            rows: rows.to_vec(),
        }
        .packed();
        assert_eq!((packed.start, packed.blocks), (0x1400, 6));
        let rows = [0x0004_0007, 8, 0x03ff_0009, 1];
        let head = [7, 8, 8, 10, 10, 10, 11];
        assert_eq!(packed.words, [&head[..], &rows].concat());
        assert_eq!(Table::default().packed(), Packed::default());
    }
}
