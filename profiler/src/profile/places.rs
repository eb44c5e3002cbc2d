//! Frames that are put in when the recording is over: what stands for them until then is the number of
//! a *place*, whose meaning is the caller's. Names of native code take time to find, and one place may
//! be several frames, where functions were inlined.

use rustc_hash::FxHashMap;

use super::stack_table::StackTable;
use super::{
    Count, FULL_STACK_NODE, Frame, FrameId, FunctionId, MAX_FRAMES, MAX_NODES, PLACE_FUNCTION,
    Profile, StackId, ThreadId,
};

impl Profile {
    /// The frame that stands for a place. When there are too many frames, one that says so.
    pub fn place(&mut self, place: u32) -> FrameId {
        let frame = |line| Frame {
            function: FunctionId(PLACE_FUNCTION),
            line,
        };
        let index = match self.frames.get_index_of(&frame(Some(place))) {
            Some(index) => index,
            None if self.frames.len() >= MAX_FRAMES => self.frames.insert_full(frame(None)).0,
            None => self.frames.insert_full(frame(Some(place))).0,
        };
        FrameId(index as u32)
    }

    /// Puts the frames of all places in; `frames_of` gives them, innermost first.
    pub fn put_in(&mut self, mut frames_of: impl FnMut(&mut Profile, u32) -> Box<[FrameId]>) {
        let old = std::mem::replace(&mut self.stacks, StackTable::new(MAX_NODES));
        let mut known: FxHashMap<u32, Box<[FrameId]>> = FxHashMap::default();
        // By the old node; none where there was no room.
        let mut nodes = vec![Some(StackTable::EMPTY)];
        // Parents come before their children.
        for node in 1..old.len() as u32 {
            let (parent, frame) = old.node(node);
            let frames = known
                .entry(frame)
                .or_insert_with(|| match self.place_of(frame) {
                    Some(place) => frames_of(self, place),
                    None => [FrameId(frame)].into(),
                });
            let frames = frames.iter().rev().map(|frame| frame.0);
            let mut above = |at| {
                frames
                    .clone()
                    .try_fold(at, |at, frame| self.stacks.child(at, frame))
            };
            nodes.push(nodes[parent as usize].and_then(&mut above));
        }
        let moved = |stack: StackId| StackId(nodes[stack.0 as usize].unwrap_or(FULL_STACK_NODE));
        let mut counts: FxHashMap<(ThreadId, StackId), Count> = FxHashMap::default();
        for ((thread, stack), count) in self.counts.drain() {
            counts.entry((thread, moved(stack))).or_default().add(count);
        }
        self.counts = counts;
        for moment in self.timeline.iter_mut().flatten().flatten() {
            moment.stack = moved(moment.stack);
        }
    }

    /// The place that a frame stands for.
    pub(super) fn place_of(&self, frame: u32) -> Option<u32> {
        let frame = self.frames[frame as usize];
        frame
            .line
            .filter(|_| frame.function == FunctionId(PLACE_FUNCTION))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{function, profile};
    use super::*;
    use crate::profile::{Process, Shape};

    #[test]
    fn places_become_frames_in_counts_and_in_the_timeline() {
        let mut profile = profile(Shape::default());
        let process = profile.add_process(Process::default());
        let thread = profile.add_thread(process, 1, String::new());
        let f = profile.function(function("f"));
        let f = profile.frame(f, None);
        let (a, b, same) = (profile.place(7), profile.place(0), profile.place(9));
        assert_eq!(a, profile.place(7));
        let stacks = [
            [f, a].to_vec(),
            [f, b, f].to_vec(),
            [f, same].to_vec(),
            [f].to_vec(),
        ];
        for (time, stack) in stacks.into_iter().enumerate() {
            let stack = profile.stack(stack);
            profile.record(time as u64, thread, stack, 1);
        }
        let mut asked = Vec::new();
        profile.put_in(|profile, place| {
            asked.push(place);
            let names: &[&str] = match place {
                0 => &[],
                _ => &["[inner]", "[outer]"],
            };
            names.iter().map(|name| profile.marker(name)).collect()
        });
        assert_eq!(asked, [7, 0, 9]);
        let label = |stack| {
            let mut frames = Vec::new();
            profile.frames_of(stack, &mut frames);
            let labels = frames.iter().map(|frame| profile.frame_label(*frame));
            labels.collect::<Vec<_>>().join(";")
        };
        let whole = "f (main.py);[outer];[inner]";
        let counts = profile.counts();
        let mut counts: Vec<_> = counts
            .iter()
            .map(|(_, stack, count)| (label(*stack), count.samples))
            .collect();
        counts.sort();
        let expected = [
            ("f (main.py)", 1),
            (whole, 2),
            ("f (main.py);f (main.py)", 1),
        ];
        assert_eq!(
            counts,
            expected.map(|(label, count)| (label.to_owned(), count))
        );
        let moments = profile.moments(thread);
        let order: Vec<_> = moments.iter().map(|moment| label(moment.stack)).collect();
        assert_eq!(
            order,
            [whole, "f (main.py);f (main.py)", whole, "f (main.py)"]
        );
    }

    #[test]
    fn what_finds_no_room_is_one_stack_that_says_so() {
        let mut profile = profile(Shape::default());
        let process = profile.add_process(Process::default());
        let thread = profile.add_thread(process, 1, String::new());
        let place = profile.place(1);
        let stack = profile.stack([place, place]);
        profile.record(0, thread, stack, 1);
        profile.put_in(|profile, _| vec![profile.marker("[deep]"); MAX_NODES].into());
        let stack = profile.counts()[0].1;
        assert_eq!(stack, StackId(FULL_STACK_NODE));
        assert_eq!(profile.total().samples, 1);
    }
}
