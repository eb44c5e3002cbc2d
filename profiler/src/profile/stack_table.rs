//! Stacks as a prefix tree: a node is its parent and a frame, so stacks that share their callers
//! share the nodes. A node takes 8 bytes, and its slot in the hash table of (parent, frame) 5 to
//! 11 more. Node 0 is the empty stack.

use std::hash::BuildHasher;

use rustc_hash::FxBuildHasher;

/// The tree. Frames are plain numbers here; what they mean is the profile's business.
#[derive(Debug)]
pub(crate) struct StackTable {
    /// (parent, frame); parents come before their children.
    nodes: Vec<(u32, u32)>,
    /// Open addressing with linear probing; the length is a power of two, 0 is a free slot
    /// (node 0 is nobody's child).
    slots: Vec<u32>,
    limit: usize,
    /// The last stack's nodes from the root: the next one mostly begins with the same frames, and
    /// following them here costs no look-up.
    last: Vec<u32>,
}

impl StackTable {
    pub(crate) const EMPTY: u32 = 0;

    /// A table of at most `limit` nodes.
    pub(crate) fn new(limit: usize) -> Self {
        let limit = limit.min(u32::MAX as usize);
        Self {
            nodes: vec![(0, u32::MAX)],
            slots: vec![0; 16],
            limit,
            last: Vec::new(),
        }
    }

    /// The node of the stack with these frames, root first; `None` when it needs a new node and
    /// the table is full.
    pub(crate) fn insert(&mut self, root_to_leaf: impl Iterator<Item = u32>) -> Option<u32> {
        let mut node = Self::EMPTY;
        let mut same = true;
        let mut depth = 0;
        for frame in root_to_leaf {
            if same {
                match self.last.get(depth) {
                    Some(&child) if self.nodes[child as usize].1 == frame => {
                        node = child;
                        depth += 1;
                        continue;
                    }
                    _ => {
                        self.last.truncate(depth);
                        same = false;
                    }
                }
            }
            node = self.child(node, frame)?;
            self.last.push(node);
        }
        Some(node)
    }

    /// The frames of a stack, leaf first.
    pub(crate) fn leaf_to_root(&self, mut node: u32) -> impl Iterator<Item = u32> {
        std::iter::from_fn(move || {
            let (parent, frame) = self.nodes[node as usize];
            let here = (node != Self::EMPTY).then_some(frame);
            node = parent;
            here
        })
    }

    /// How many nodes there are, the empty stack included; every node is below this.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Parent and frame of a node.
    pub(crate) fn node(&self, node: u32) -> (u32, u32) {
        self.nodes[node as usize]
    }

    /// Makes the table full as it is.
    #[cfg(test)]
    pub(crate) fn limit(&mut self) {
        self.limit = self.nodes.len();
    }

    /// The node of `frame` above `parent`; `None` when it is new and the table is full.
    pub(crate) fn child(&mut self, parent: u32, frame: u32) -> Option<u32> {
        let mut slot = self.first_slot(parent, frame);
        loop {
            match self.slots[slot] {
                0 => break,
                node if self.nodes[node as usize] == (parent, frame) => return Some(node),
                _ => slot = (slot + 1) & (self.slots.len() - 1),
            }
        }
        if self.nodes.len() >= self.limit {
            return None;
        }
        let node = self.nodes.len() as u32;
        self.nodes.push((parent, frame));
        self.slots[slot] = node;
        if self.nodes.len() > self.slots.len() / 4 * 3 {
            self.grow();
        }
        Some(node)
    }

    fn first_slot(&self, parent: u32, frame: u32) -> usize {
        FxBuildHasher.hash_one(u64::from(parent) << 32 | u64::from(frame)) as usize
            & (self.slots.len() - 1)
    }

    fn grow(&mut self) {
        // The old slots are not needed to fill the new ones, so both need not exist at once.
        let length = self.slots.len() * 2;
        self.slots = Vec::new();
        self.slots = vec![0; length];
        for (index, &(parent, frame)) in self.nodes.iter().enumerate().skip(1) {
            let mut slot = self.first_slot(parent, frame);
            while self.slots[slot] != 0 {
                slot = (slot + 1) & (length - 1);
            }
            self.slots[slot] = index as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(table: &StackTable, node: u32) -> Vec<u32> {
        let mut frames: Vec<u32> = table.leaf_to_root(node).collect();
        frames.reverse();
        frames
    }

    #[test]
    fn equal_stacks_are_one_node_and_prefixes_are_shared() {
        let mut table = StackTable::new(1000);
        let long = table.insert([1, 2, 3].into_iter()).unwrap();
        let fork = table.insert([1, 2, 4].into_iter()).unwrap();
        let short = table.insert([1, 2].into_iter()).unwrap();
        assert_eq!(table.insert([1, 2, 3].into_iter()), Some(long));
        assert_eq!(table.insert([1, 2, 4].into_iter()), Some(fork));
        assert_eq!(table.nodes.len(), 5);
        assert_eq!(frames(&table, long), [1, 2, 3]);
        assert_eq!(frames(&table, fork), [1, 2, 4]);
        assert_eq!(frames(&table, short), [1, 2]);
        assert_eq!(table.insert(std::iter::empty()), Some(StackTable::EMPTY));
        assert!(frames(&table, StackTable::EMPTY).is_empty());
    }

    #[test]
    fn the_last_stack_is_no_shortcut_to_a_wrong_node() {
        let mut table = StackTable::new(1000);
        for stack in [
            &[1, 2, 3][..],
            &[1, 2, 4],
            &[1, 2, 3, 4],
            &[1],
            &[1, 4],
            &[1, 2, 4],
        ] {
            let node = table.insert(stack.iter().copied()).unwrap();
            assert_eq!(frames(&table, node), stack);
        }
    }

    #[test]
    fn many_stacks_survive_growth() {
        let mut table = StackTable::new(1 << 20);
        let stacks: Vec<Vec<u32>> = (0..2000)
            .map(|n: u32| vec![n % 7, n % 11, n, 0, n % 3])
            .collect();
        let nodes: Vec<u32> = stacks
            .iter()
            .map(|stack| table.insert(stack.iter().copied()).unwrap())
            .collect();
        for (stack, node) in stacks.iter().zip(nodes) {
            assert_eq!(frames(&table, node), *stack);
            assert_eq!(table.insert(stack.iter().copied()), Some(node));
        }
    }

    #[test]
    fn a_full_table_keeps_what_it_has_and_refuses_the_rest() {
        let mut table = StackTable::new(4);
        let kept = table.insert([1, 2, 3].into_iter()).unwrap();
        assert_eq!(table.insert([1, 2, 9].into_iter()), None);
        assert_eq!(table.insert([1, 2, 3].into_iter()), Some(kept));
        assert_eq!(frames(&table, kept), [1, 2, 3]);
    }
}
