//! A profile as a tree of labels, which is what collapsed stacks and flame graphs show: process and
//! thread frames are added, and frames that read the same are the same. Lines are made one at a
//! time while walking the tree, so thousands of stacks of a thousand frames are never all in memory.

use indexmap::IndexSet;
use rustc_hash::FxHashMap;

use crate::profile::stack_table::StackTable;
use crate::profile::{FrameId, Profile};

/// The tree; a node's samples are those that ended there.
pub(super) struct LabelTree {
    labels: IndexSet<String>,
    tree: StackTable,
    /// Samples by node: its own, and with all above it.
    own: Vec<u64>,
    total: Vec<u64>,
    /// All nodes but the first, by parent and then by label; `first[n]..first[n + 1]` are the
    /// children of node n.
    children: Vec<u32>,
    first: Vec<u32>,
}

impl LabelTree {
    pub(super) fn new(profile: &Profile) -> Self {
        let processes = profile.processes_with_samples() > 1;
        let mut labels = IndexSet::new();
        let mut of_frame: FxHashMap<FrameId, u32> = FxHashMap::default();
        let mut tree = StackTable::new(usize::MAX);
        let mut own = Vec::new();
        let (mut roots, mut frames, mut path) = (Vec::new(), Vec::new(), Vec::new());
        let mut thread_before = None;
        for (thread, stack, count) in profile.counts() {
            if thread_before.replace(thread) != Some(thread) {
                let names = profile.root_labels(thread, processes);
                roots = names
                    .into_iter()
                    .map(|label| intern(&mut labels, label))
                    .collect();
            }
            profile.frames_of(stack, &mut frames);
            path.clear();
            path.extend(&roots);
            path.extend(frames.iter().map(|frame| {
                *of_frame
                    .entry(*frame)
                    .or_insert_with(|| intern(&mut labels, profile.frame_label(*frame)))
            }));
            let node = tree
                .insert(path.iter().copied())
                .expect("the table has no limit") as usize;
            own.resize(tree.len(), 0);
            own[node] += count.samples;
        }
        own.resize(tree.len(), 0);
        let total = totals(&tree, &own);
        let (children, first) = children(&tree, &labels);
        Self {
            labels,
            tree,
            own,
            total,
            children,
            first,
        }
    }

    /// All samples.
    pub(super) fn samples(&self) -> u64 {
        self.total[StackTable::EMPTY as usize]
    }

    /// How many frames a picture has that leaves out what has fewer than `narrowest` samples.
    pub(super) fn frames(&self, narrowest: u64) -> usize {
        self.total
            .iter()
            .filter(|total| **total >= narrowest)
            .count()
            - 1
    }

    /// Calls `each` with every collapsed stack (`a;b;c`) and its samples, callers before callees
    /// and siblings by name. Frames with fewer samples than `narrowest` are left out and their
    /// samples counted for the caller.
    pub(super) fn lines<E>(
        &self,
        narrowest: u64,
        mut each: impl FnMut(&str, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut path = String::new();
        // Nodes to visit, each with the length of its caller's path.
        let mut waiting = vec![(StackTable::EMPTY, 0)];
        while let Some((node, length)) = waiting.pop() {
            path.truncate(length);
            if node != StackTable::EMPTY {
                if !path.is_empty() {
                    path.push(';');
                }
                path.push_str(&self.labels[self.tree.node(node).1 as usize]);
            }
            let mut samples = self.own[node as usize];
            for child in self.children_of(node).iter().rev() {
                match self.total[*child as usize] {
                    total if total < narrowest => samples += total,
                    _ => waiting.push((*child, path.len())),
                }
            }
            if samples > 0 {
                each(&path, samples)?;
            }
        }
        Ok(())
    }

    fn children_of(&self, node: u32) -> &[u32] {
        let node = node as usize;
        &self.children[self.first[node] as usize..self.first[node + 1] as usize]
    }
}

fn intern(labels: &mut IndexSet<String>, label: String) -> u32 {
    labels.insert_full(label).0 as u32
}

fn totals(tree: &StackTable, own: &[u64]) -> Vec<u64> {
    let mut total = own.to_vec();
    // Children come after their parents, so backwards every node is whole when it is added.
    for node in (1..tree.len()).rev() {
        total[tree.node(node as u32).0 as usize] += total[node];
    }
    total
}

fn children(tree: &StackTable, labels: &IndexSet<String>) -> (Vec<u32>, Vec<u32>) {
    let mut by_name: Vec<u32> = (0..labels.len() as u32).collect();
    by_name.sort_unstable_by_key(|label| &labels[*label as usize]);
    let mut rank = vec![0; labels.len()];
    for (place, label) in by_name.into_iter().enumerate() {
        rank[label as usize] = place;
    }
    let mut children: Vec<u32> = (1..tree.len() as u32).collect();
    children.sort_unstable_by_key(|node| {
        let (parent, label) = tree.node(*node);
        (parent, rank[label as usize])
    });
    let mut first = vec![0; tree.len() + 1];
    for node in &children {
        first[tree.node(*node).0 as usize + 1] += 1;
    }
    for node in 0..tree.len() {
        first[node + 1] += first[node];
    }
    (children, first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Meta, Process, Shape};
    use std::time::{Duration, SystemTime};

    /// A tree of these stacks of markers, with their samples.
    fn tree(stacks: &[(&[&str], u64)]) -> LabelTree {
        let meta = Meta {
            started: SystemTime::UNIX_EPOCH,
            rate: 99,
            command: String::new(),
            duration: Duration::ZERO,
        };
        let mut profile = Profile::new(meta, Shape::default(), false);
        let process = profile.add_process(Process::default());
        let thread = profile.add_thread(process, 1, String::new());
        for (labels, samples) in stacks {
            let frames: Vec<FrameId> = labels.iter().map(|label| profile.marker(label)).collect();
            let stack = profile.stack(frames);
            (0..*samples).for_each(|time| profile.record(time, thread, stack, 1));
        }
        LabelTree::new(&profile)
    }

    fn lines(tree: &LabelTree, narrowest: u64) -> Vec<String> {
        let mut lines = Vec::new();
        let each = |stack: &str, samples| {
            lines.push(format!("{stack} {samples}"));
            Ok::<(), ()>(())
        };
        tree.lines(narrowest, each).unwrap();
        lines
    }

    #[test]
    fn narrow_frames_are_counted_for_their_caller() {
        let tree = tree(&[
            (&["[b]", "[x]"], 1),
            (&["[a]", "[x]", "[y]"], 2),
            (&["[a]", "[z]"], 1),
            (&["[a]"], 3),
        ]);
        assert_eq!(
            lines(&tree, 0),
            ["[a] 3", "[a];[x];[y] 2", "[a];[z] 1", "[b];[x] 1"]
        );
        assert_eq!(lines(&tree, 2), [" 1", "[a] 4", "[a];[x];[y] 2"]);
        assert_eq!((tree.samples(), tree.frames(0), tree.frames(2)), (7, 6, 3));
    }
}
