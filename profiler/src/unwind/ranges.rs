//! Parts of a map's indices, taken and given back: which are free, the first that fits is taken.

use std::collections::BTreeMap;

/// The free ranges by their start; no two touch.
#[derive(Debug)]
pub struct Ranges {
    free: BTreeMap<u32, u32>,
    left: u32,
}

impl Ranges {
    /// Indices from 0 to one less than `capacity`, all free.
    pub fn new(capacity: u32) -> Ranges {
        let free = (capacity > 0).then_some((0, capacity));
        Ranges {
            free: free.into_iter().collect(),
            left: capacity,
        }
    }

    /// Takes so many in a row: the first of them; `None` if there is no room.
    pub fn take(&mut self, length: u32) -> Option<u32> {
        let (&start, &room) = self.free.iter().find(|&(_, &room)| room >= length)?;
        self.free.remove(&start);
        if room > length {
            self.free.insert(start + length, room - length);
        }
        self.left -= length;
        Some(start)
    }

    /// Gives back what [`take`](Self::take) gave.
    pub fn give_back(&mut self, start: u32, length: u32) {
        if length == 0 {
            return;
        }
        self.left += length;
        let mut length = length;
        if let Some(after) = self.free.remove(&(start + length)) {
            length += after;
        }
        if let Some((_, before)) = self
            .free
            .range_mut(..start)
            .next_back()
            .filter(|it| *it.0 + *it.1 == start)
        {
            *before += length;
        } else {
            self.free.insert(start, length);
        }
    }

    /// How many are free.
    pub fn left(&self) -> u32 {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_taken_again_in_one_piece() {
        let mut ranges = Ranges::new(100);
        let parts: Vec<_> = (0..10).map(|_| ranges.take(10).unwrap()).collect();
        assert_eq!(parts, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]);
        assert_eq!((ranges.take(1), ranges.left()), (None, 0));
        for start in [30, 50, 40, 20] {
            ranges.give_back(start, 10);
        }
        assert_eq!((ranges.take(41), ranges.left()), (None, 40));
        assert_eq!((ranges.take(40), ranges.take(1)), (Some(20), None));
        assert_eq!(Ranges::new(0).take(1), None);
    }
}
