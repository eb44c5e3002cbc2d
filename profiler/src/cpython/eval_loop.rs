//! Where the code of the interpreter's loop lies in a file up to 3.10, where a run of it stands for one
//! Python frame: the function that is exported, and the part of it that a compiler has put elsewhere
//! because it seldom runs, which has no name in a stripped file. Both are needed to count runs.

use std::collections::BTreeMap;
use std::ops::Range;

use super::elf::{Image, Symbol};

/// Most bytes of the loop; it has 40 KB.
const LOOP_MAX: u64 = 1 << 20;
/// Most bytes of the table of functions: of 500,000.
const FUNCTIONS_MAX: u64 = 4 << 20;
/// How many jumps from the loop into another function's inside make that a part of it. Debian's 3.9
/// and 2.7, optimised by profile, have some 260; a build that is not has none. What only looks like a
/// jump seldom leads twice to the same function.
const JUMPS_MIN: usize = 4;

/// The addresses of the code of `function`, the loop, as the file has them.
pub(super) fn parts(image: &Image, function: Symbol) -> Vec<Range<u64>> {
    let Some(end) = function.address.checked_add(function.size) else {
        return Vec::new();
    };
    let whole = function.address..end;
    if function.size == 0 || function.size > LOOP_MAX {
        return Vec::new();
    }
    let code = image.bytes(whole.start, function.size).unwrap_or_default();
    let table = image.section(".eh_frame_hdr").and_then(|section| {
        let bytes = image.bytes(section.address, section.size.min(FUNCTIONS_MAX))?;
        functions(&bytes, section.address)
    });
    divided(&code, whole, &table.unwrap_or_default())
}

/// The loop itself, and what its code belongs to elsewhere; `functions` are the starts of all.
fn divided(code: &[u8], whole: Range<u64>, functions: &[u64]) -> Vec<Range<u64>> {
    let mut jumps: BTreeMap<usize, usize> = BTreeMap::new();
    for target in conditional_jumps(code, whole.start) {
        let next = functions.partition_point(|start| *start <= target);
        let inside = next > 0 && functions[next - 1] < target;
        if inside && !whole.contains(&target) {
            *jumps.entry(next).or_default() += 1;
        }
    }
    let elsewhere = jumps.into_iter().filter_map(|(next, jumps)| {
        let end = *functions.get(next)?;
        (jumps >= JUMPS_MIN).then(|| functions[next - 1]..end)
    });
    let elsewhere: Vec<Range<u64>> = elsewhere.collect();
    [whole].into_iter().chain(elsewhere).collect()
}

/// Where the conditional jumps with 32-bit displacements lead, which are `0F 80` to `0F 8F` and the
/// displacement (Intel SDM volume 2, Jcc), and what else has such bytes.
fn conditional_jumps(code: &[u8], address: u64) -> impl Iterator<Item = u64> {
    let windows = code.windows(6).enumerate();
    windows.filter_map(move |(at, bytes)| {
        let [0x0f, 0x80..=0x8f, displacement @ ..] = bytes else {
            return None;
        };
        let displacement = i32::from_le_bytes(displacement.try_into().ok()?);
        let next = address.wrapping_add(at as u64 + 6);
        Some(next.wrapping_add_signed(displacement.into()))
    })
}

/// The sorted starts of all functions with unwind information: the search table of an `.eh_frame_hdr`
/// at `address`, in the one form that linkers write (Linux Standard Base Core, 10.6.2).
fn functions(bytes: &[u8], address: u64) -> Option<Vec<u64>> {
    let table = bytes.strip_prefix(&[1, 0x1b, 0x03, 0x3b])?.get(8..)?;
    let (entries, _) = table.as_chunks::<8>();
    let starts = entries.iter().map(|&[a, b, c, d, ..]| {
        let start = i32::from_le_bytes([a, b, c, d]);
        address.wrapping_add_signed(start.into())
    });
    let starts: Vec<u64> = starts.collect();
    starts.is_sorted().then_some(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOP: Range<u64> = 0x5000..0x5100;

    /// Code of the loop: conditional jumps, of 6 bytes each.
    fn code(targets: &[u64]) -> Vec<u8> {
        let jumps = targets.iter().zip((LOOP.start..).step_by(6));
        let mut code: Vec<u8> = jumps
            .flat_map(|(target, at)| {
                let displacement = target.wrapping_sub(at + 6) as u32;
                [[0x0f, 0x84].as_slice(), &displacement.to_le_bytes()].concat()
            })
            .collect();
        code.resize(0x100, 0x90);
        code
    }

    #[test]
    fn what_the_loop_jumps_into_is_a_part_of_it() {
        let functions = [0x1000, 0x2000, 0x3000, LOOP.start, LOOP.end];
        let check = |targets: &[u64], parts: &[Range<u64>]| {
            assert_eq!(divided(&code(targets), LOOP, &functions), parts);
        };
        check(&[0x2010, 0x2020, 0x2ffe, 0x2010], &[LOOP, 0x2000..0x3000]);
        // Too few; calls of other functions; within the loop; below and above all functions.
        check(&[0x2010, 0x2020, 0x2ffe], &[LOOP]);
        check(&[0x2000, 0x2000, 0x2000, 0x2000], &[LOOP]);
        check(&[0x5010, 0x5020, 0x5030, 0x5040], &[LOOP]);
        check(&[0x10, 0x20, 0x30, 0x40], &[LOOP]);
        check(&[0x5110, 0x5120, 0x5130, 0x5140], &[LOOP]);
    }

    #[test]
    fn the_search_table_gives_the_starts_of_functions() {
        let head = [1, 0x1b, 0x03, 0x3b, 0, 0, 0, 0, 2, 0, 0, 0];
        let entries = [0x10, -0x100, 0x20, -0x80_i32].map(|start: i32| start.to_le_bytes());
        let [high, high_entry, _, low] = entries;
        let sorted = [&head[..], &low, &[0; 4], &high, &high_entry].concat();
        assert_eq!(functions(&sorted, 0x4000), Some(vec![0x3f80, 0x4010]));
        let mixed = [&head[..], &high, &[0; 4], &low, &[0; 4]].concat();
        assert_eq!(functions(&mixed, 0x4000), None);
        assert_eq!(functions(&sorted[..10], 0x4000), None);
        assert_eq!(functions(&[0; 40], 0x4000), None);
    }
}
