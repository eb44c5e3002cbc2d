//! Python and native frames of one stack, interleaved: each native frame says how many Python frames
//! are newer than it. Takes numbers and gives positions; it names nothing.

use profiler_ebpf::NativeEnd;

/// A native frame, for its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Native {
    /// How many Python frames are newer, or [`NEWER_UNTOLD`].
    pub(super) newer: u16,
    /// Whether it is of the interpreter's own code.
    pub(super) interpreter: bool,
    /// Whether it is of what begins programs and threads.
    pub(super) starter: bool,
    /// Whether it is a run of the interpreter's loop for one Python frame alone.
    pub(super) run: bool,
    /// Whether it is of greenlet, which gives parts of a thread's native stack to others.
    pub(super) greenlet: bool,
    /// Whether the frame before it may have been called by another.
    pub(super) guessed: bool,
}

/// What stands at one place of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The Python frame of this index.
    Python(usize),
    /// The native frame of this index.
    Native(usize),
    /// The next frame may not be what has called the one before.
    Guessed,
    /// Native frames that are not known.
    Missing,
    /// What stands before it, as far as it is native, has its place among Python's frames.
    Unordered,
}

/// Gives `place` what is to be shown, newest first. The interpreter's own frames are not, unless
/// Python's newest frame has called them: they say only how Python frames came to call each other.
/// Nor is what has begun the thread; or a greenlet, and what is older than that: it is of others, and
/// may be no more.
///
/// Frames that are not `told` their places stand below Python's, but for those that Python's newest
/// frame has called: the ones before the interpreter's first. False where there are such.
pub(super) fn stitch(
    python: usize,
    native: &[Native],
    end: NativeEnd,
    told: bool,
    mut place: impl FnMut(Place),
) -> bool {
    if !told {
        return apart(python, native, place);
    }
    let mut placed = 0;
    let mut whole = matches!(end, NativeEnd::NotAsked | NativeEnd::Complete);
    for (index, frame) in native.iter().enumerate() {
        if frame.guessed {
            place(Place::Guessed);
        }
        let newer = usize::from(frame.newer).min(python);
        while placed < newer {
            place(Place::Python(placed));
            placed += 1;
        }
        let all = placed > 0 && placed == python;
        if all && frame.greenlet {
            whole = true;
            break;
        }
        let folded = placed > 0 && (frame.interpreter || frame.starter && all);
        if !folded {
            place(Place::Native(index));
        }
    }
    if !whole {
        place(Place::Missing);
    }
    for index in placed..python {
        place(Place::Python(index));
    }
    true
}

/// Both stacks, one below the other.
fn apart(python: usize, native: &[Native], mut place: impl FnMut(Place)) -> bool {
    if native.iter().any(|frame| frame.guessed) {
        place(Place::Guessed);
    }
    let called = native.iter().take_while(|frame| !frame.interpreter).count();
    let called = if python > 0 { called } else { native.len() };
    (0..called).for_each(|index| place(Place::Native(index)));
    (0..python).for_each(|index| place(Place::Python(index)));
    let older = native.iter().enumerate().skip(called);
    let mut older = older
        .filter(|(_, frame)| !frame.interpreter && !frame.starter)
        .peekable();
    let decided = older.peek().is_none();
    older.for_each(|(index, _)| place(Place::Native(index)));
    if !decided {
        place(Place::Unordered);
    }
    decided
}

/// Why native frames are missing, to a person.
pub fn why_missing(end: NativeEnd) -> Option<&'static str> {
    Some(match end {
        NativeEnd::NotAsked | NativeEnd::Complete => return None,
        NativeEnd::TooDeep => "more than 128",
        NativeEnd::NotLoaded => "the process was met just now",
        NativeEnd::NoMapping => "an address in no file",
        NativeEnd::NoRule => "code without unwind information",
        NativeEnd::Unsupported => "unwind information of an unknown kind",
        NativeEnd::UnreadableStack => "the stack was not in memory",
        NativeEnd::BadStack => "the stack makes no sense",
        NativeEnd::NoRegisters => "no registers",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `p0 p1`: Python frames; `n0`: native frames, `?`: some are missing. Of the native frames each is
    /// given by how many Python frames are newer, `i` for one of the interpreter, `s` for one that
    /// begins a thread, `g` for greenlet's, `u` for a guess, `U` for one of the interpreter. Without numbers places are not told.
    fn check(python: usize, native: &[(u16, char)], end: NativeEnd, expected: &str) {
        let native: Vec<Native> = native
            .iter()
            .map(|&(newer, kind)| Native {
                newer,
                interpreter: kind == 'i' || kind == 'U',
                starter: kind == 's',
                greenlet: kind == 'g',
                guessed: kind == 'u' || kind == 'U',
                run: false,
            })
            .collect();
        let mut seen = Vec::new();
        let told = native.iter().all(|frame| frame.newer != u16::MAX);
        stitch(python, &native, end, told, |place| {
            seen.push(match place {
                Place::Python(index) => format!("p{index}"),
                Place::Native(index) => format!("n{index}"),
                Place::Guessed => "~".to_owned(),
                Place::Missing => "?".to_owned(),
                Place::Unordered => "!".to_owned(),
            });
        });
        assert_eq!(seen.join(" "), expected);
    }

    #[test]
    fn frames_are_interleaved_and_the_interpreter_is_folded() {
        let whole = NativeEnd::Complete;
        // C called by Python's newest frame; one loop that runs two Python frames; C that calls back.
        let native = [
            (0, 'c'),
            (0, 'i'),
            (2, 'i'),
            (2, 'i'),
            (2, 'c'),
            (2, 'i'),
            (3, 'i'),
            (4, 'i'),
            (4, 'c'),
            (4, 'i'),
            (4, 's'),
        ];
        check(4, &native, whole, "n0 n1 p0 p1 n4 p2 p3 n8");
        check(1, &[(0, 's'), (1, 's')], whole, "n0 p0");
        check(2, &[], NativeEnd::NotAsked, "p0 p1");
        check(0, &[(0, 'i'), (0, 'c')], whole, "n0 n1");
    }

    #[test]
    fn what_is_missing_has_its_place() {
        let end = NativeEnd::NoRule;
        check(3, &[(0, 'c'), (1, 'i'), (1, 'c')], end, "n0 p0 n2 ? p1 p2");
        check(1, &[], end, "? p0");
        // More than there are: a stack that was torn.
        check(1, &[(0, 'c'), (9, 'c')], NativeEnd::Complete, "n0 p0 n1");
    }

    #[test]
    fn a_guess_stands_between_a_frame_and_its_caller() {
        let whole = NativeEnd::Complete;
        check(
            2,
            &[(0, 'c'), (1, 'U'), (1, 'u'), (2, 'i')],
            whole,
            "n0 ~ p0 ~ n2 p1",
        );
        let untold = u16::MAX;
        check(1, &[(untold, 'u'), (untold, 'i')], whole, "~ n0 p0");
    }

    #[test]
    fn frames_whose_places_are_not_told_stand_below() {
        let untold = u16::MAX;
        let native = [
            (untold, 'c'),
            (untold, 'i'),
            (untold, 'c'),
            (untold, 'i'),
            (untold, 's'),
        ];
        check(2, &native, NativeEnd::Complete, "n0 p0 p1 n2 !");
        check(2, &native[1..2], NativeEnd::Complete, "p0 p1");
        check(0, &native[..3], NativeEnd::Complete, "n0 n1 n2");
    }

    #[test]
    fn what_is_older_than_a_greenlet_is_not_shown() {
        let whole = NativeEnd::Complete;
        let native = [(0, 'g'), (1, 'i'), (2, 'c'), (2, 'g'), (2, 'c'), (2, 'g')];
        check(2, &native, whole, "n0 p0 p1 n2");
        check(2, &native[..4], NativeEnd::NoRule, "n0 p0 p1 n2");
    }
}
