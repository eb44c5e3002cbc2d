//! Native frames that do not tell their place among Python's, as those up to 3.10: there each Python
//! frame has one run of the interpreter's loop to itself, so runs are counted. Where the count is not
//! Python's the places are not known.

use profiler_ebpf::{NativeEnd, native::NEWER_UNTOLD};

use super::stitch::Native;

/// Gives each native frame the number of newer Python frames, of `python`; false where that can't be
/// told.
///
/// The newest run has no Python frame in its first and last instructions: then there is one run more.
/// Of a stack that was cut this can't be seen; there it is taken to have one, which is wrong for about
/// one in a hundred that are cut.
pub(super) fn count(python: usize, native: &mut [Native], end: NativeEnd) -> bool {
    if native.iter().all(|frame| frame.newer != NEWER_UNTOLD) {
        return true;
    }
    let runs = native.iter().filter(|frame| frame.run).count();
    let newest_runs = native.first().is_some_and(|frame| frame.run);
    let without = match runs.checked_sub(python) {
        Some(0) => 0,
        // What is older is of others.
        Some(_) if is_of_greenlet(python, native) => 0,
        Some(1) if newest_runs => 1,
        None if end != NativeEnd::Complete && runs > 0 => 0,
        _ => return false,
    };
    let mut seen = 0_usize;
    for frame in native {
        seen += usize::from(frame.run);
        frame.newer = seen.saturating_sub(without) as u16;
    }
    true
}

/// Whether greenlet has begun the stack of these Python frames.
fn is_of_greenlet(python: usize, native: &[Native]) -> bool {
    let mut runs = 0;
    let mut older = native.iter().skip_while(|frame| {
        runs += usize::from(frame.run);
        runs < python
    });
    older.next();
    older
        .take_while(|frame| !frame.run)
        .any(|frame| frame.greenlet)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers for frames of these kinds: `r` a run of the loop, `c` other code, `g` greenlet's.
    fn check(python: usize, kinds: &str, end: NativeEnd, expected: Option<&[u16]>) {
        let frames = kinds.chars().map(|kind| Native {
            newer: NEWER_UNTOLD,
            run: kind == 'r',
            greenlet: kind == 'g',
            ..Native::default()
        });
        let mut frames: Vec<Native> = frames.collect();
        let told = count(python, &mut frames, end);
        let newer: Vec<u16> = frames.iter().map(|frame| frame.newer).collect();
        assert_eq!(told.then_some(&*newer), expected, "{kinds}");
    }

    #[test]
    fn each_run_of_the_loop_has_a_frame() {
        let whole = NativeEnd::Complete;
        check(2, "crccrc", whole, Some(&[0, 1, 1, 1, 2, 2]));
        check(1, "rcrc", whole, Some(&[0, 0, 1, 1]));
        check(0, "c", whole, Some(&[0]));
    }

    #[test]
    fn where_the_count_differs_nothing_is_told() {
        let whole = NativeEnd::Complete;
        check(1, "crcrc", whole, None);
        check(3, "rcrc", whole, None);
        check(1, "rrr", whole, None);
        check(2, "cc", NativeEnd::NoRule, None);
    }

    #[test]
    fn of_a_stack_that_was_cut_the_newest_are_counted() {
        check(9, "crcr", NativeEnd::TooDeep, Some(&[0, 1, 1, 2]));
        check(1, "rcr", NativeEnd::TooDeep, Some(&[0, 0, 1]));
    }

    #[test]
    fn what_is_older_than_a_greenlet_is_not_counted() {
        let whole = NativeEnd::Complete;
        check(1, "rcgcr", whole, Some(&[1, 1, 1, 1, 2]));
        check(2, "rcrcgcrr", whole, Some(&[1, 1, 2, 2, 2, 2, 3, 4]));
        check(2, "rgrcrr", whole, None);
    }
}
