//! Reads of single fields: from a process's memory, and from the bytes that were read of it, where
//! each offset is masked so that the verifier knows its bound.

use super::Memory;

/// The 8 bytes at `address`.
#[inline(always)]
pub(super) fn read_word<M: Memory>(memory: &M, address: u64) -> Option<u64> {
    let mut bytes = [0u8; 8];
    memory
        .read(address, &mut bytes)
        .then(|| u64::from_ne_bytes(bytes))
}

/// Reads bytes `start..end` of the object at `object` to the same place in `into`, of which half is
/// in use: with both the start and the length below half, the verifier need not know their sum.
#[inline(always)]
pub(super) fn read_part<M: Memory, const N: usize>(
    memory: &M,
    object: u64,
    start: u32,
    end: u32,
    into: &mut [u8; N],
) -> bool {
    let bound = N / 2 - 1;
    let length = end.wrapping_sub(start) as usize & bound;
    let start = start as usize & bound;
    memory.read(
        object.wrapping_add(start as u64),
        &mut into[start..start + length],
    )
}

/// The 8 bytes at `offset`, which wraps within the buffer: layouts are checked when they are made,
/// the mask is for the verifier. Fields of 8 bytes are aligned to 8.
#[inline(always)]
pub(super) fn word<const N: usize>(bytes: &[u8; N], offset: u32) -> u64 {
    let at = offset as usize & (mask(N) & !7);
    // SAFETY: `mask(N) & !7` is at most N - 8, so 8 bytes from `at` lie within the array.
    unsafe { bytes.as_ptr().add(at).cast::<u64>().read_unaligned() }
}

/// As [`word`], 4 bytes, which are aligned to 4.
#[inline(always)]
pub(super) fn half<const N: usize>(bytes: &[u8; N], offset: u32) -> u32 {
    let at = offset as usize & (mask(N) & !3);
    // SAFETY: `mask(N) & !3` is at most N - 4, so 4 bytes from `at` lie within the array.
    unsafe { bytes.as_ptr().add(at).cast::<u32>().read_unaligned() }
}

/// As [`word`], one byte.
#[inline(always)]
pub(super) fn byte<const N: usize>(bytes: &[u8; N], offset: u32) -> u8 {
    bytes[offset as usize & mask(N)]
}

/// The largest 2^k - 1 below `length`.
const fn mask(length: usize) -> usize {
    if length.is_power_of_two() {
        length - 1
    } else {
        length.next_power_of_two() / 2 - 1
    }
}
