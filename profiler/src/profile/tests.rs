//! What a profile promises: interning, shapes, labels, counts, limits.

use std::time::SystemTime;

use super::*;

pub(super) fn profile(shape: Shape) -> Profile {
    let meta = Meta {
        started: SystemTime::UNIX_EPOCH,
        rate: 99,
        command: "pyebpf record".to_owned(),
        duration: Duration::ZERO,
    };
    Profile::new(meta, shape, true)
}

pub(super) fn function(name: &str) -> Function {
    Function {
        name: name.to_owned(),
        file: "/srv/app/main.py".to_owned(),
        short_file: "main.py".to_owned(),
        first_line: 10,
        ..Function::default()
    }
}

fn label(shape: Shape, line: Option<u32>) -> String {
    let mut profile = profile(shape);
    let id = profile.function(function("f"));
    let frame = profile.frame(id, line);
    profile.frame_label(frame)
}

#[test]
fn frames_read_as_the_shape_says() {
    let shape = |line| Shape {
        line,
        ..Shape::default()
    };
    assert_eq!(label(shape(LineShape::Current), Some(12)), "f (main.py:12)");
    assert_eq!(label(shape(LineShape::Current), None), "f (main.py)");
    assert_eq!(label(shape(LineShape::First), Some(12)), "f (main.py:10)");
    assert_eq!(label(shape(LineShape::None), Some(12)), "f (main.py)");
    let full = Shape {
        full_filenames: true,
        ..Shape::default()
    };
    assert_eq!(label(full, Some(12)), "f (/srv/app/main.py:12)");
}

#[test]
fn lines_of_a_function_fold_into_one_frame() {
    let mut profile = profile(Shape {
        line: LineShape::First,
        ..Shape::default()
    });
    let id = profile.function(function("f"));
    assert_eq!(profile.frame(id, Some(11)), profile.frame(id, Some(12)));
    assert_eq!(id, profile.function(function("f")));
}

#[test]
fn markers_are_bare_and_have_no_line() {
    let mut profile = profile(Shape::default());
    let marker = profile.marker("[truncated: depth]");
    assert_eq!(profile.frame_label(marker), "[truncated: depth]");
    let frame = profile.frame_of(marker);
    assert_eq!(profile.frame(frame.function, Some(3)), marker);
}

#[test]
fn text_of_targets_is_escaped_without_ambiguity() {
    assert_eq!(escape("a;b\nc\\d\u{1b}[31m"), r"a\x3bb\nc\\d\x1b[31m");
    assert_eq!(escape("#!/bin/sh # x"), r"\x23!/bin/sh # x");
    assert_eq!(
        escape("\u{85}\u{2028}\u{202e}\u{ffff}"),
        r"\x85\u2028\u202e\uffff"
    );
    assert_eq!(escape("größe 数 😀"), "größe 数 😀");
}

#[test]
fn threads_and_processes_are_named() {
    let mut profile = profile(Shape {
        threads: true,
        processes: true,
        ..Shape::default()
    });
    let process = profile.add_process(Process {
        pid: 7,
        command_line: "python -c 'a;b'".to_owned(),
        ..Process::default()
    });
    let thread = profile.add_thread(process, 8, "python".to_owned());
    assert_eq!(profile.thread_label(thread), "thread (8): python");
    profile.set_thread_name(thread, "worker\n1".to_owned());
    assert_eq!(
        profile.root_labels(thread, true),
        [
            r#"process 7:"python -c 'a\x3bb'""#,
            r"thread (8): worker\n1"
        ]
    );
    assert_eq!(
        profile.root_labels(thread, false),
        [r"thread (8): worker\n1"]
    );
    let nameless = profile.add_thread(process, 9, String::new());
    assert_eq!(profile.thread_label(nameless), "thread (9)");
}

#[test]
fn samples_are_counted_by_thread_and_stack_and_kept_in_time_order() {
    let mut profile = profile(Shape::default());
    let process = profile.add_process(Process::default());
    let threads = [8, 9].map(|tid| profile.add_thread(process, tid, String::new()));
    let id = profile.function(function("f"));
    let frames = [1, 2].map(|line| profile.frame(id, Some(line)));
    let stack = profile.stack(frames);
    assert!(profile.is_empty());
    assert_eq!(profile.processes_with_samples(), 0);
    profile.record(20, threads[0], stack, 5);
    profile.record(10, threads[0], stack, 6);
    profile.record(30, threads[1], stack, 7);
    assert_eq!(
        profile.total(),
        Count {
            samples: 3,
            time: 18
        }
    );
    assert_eq!(profile.processes_with_samples(), 1);
    assert_eq!(
        profile.counts(),
        [
            (
                threads[0],
                stack,
                Count {
                    samples: 2,
                    time: 11
                }
            ),
            (
                threads[1],
                stack,
                Count {
                    samples: 1,
                    time: 7
                }
            )
        ]
    );
    let moments = profile.moments(threads[0]);
    assert_eq!(
        moments.iter().map(|moment| moment.time).collect::<Vec<_>>(),
        [10, 20]
    );
    let mut path = Vec::new();
    profile.frames_of(stack, &mut path);
    assert_eq!(path, frames);
}

#[test]
fn samples_without_end_are_only_counted() {
    let mut profile = profile(Shape::default());
    let process = profile.add_process(Process::default());
    let thread = profile.add_thread(process, 8, String::new());
    let stack = profile.stack([]);
    assert_eq!(profile.moments_left * size_of::<Moment>(), 64 << 20);
    profile.limit_timeline(2);
    (0..5).for_each(|time| profile.record(time, thread, stack, 10));
    assert_eq!(profile.moments(thread).len(), 2);
    assert_eq!((profile.untimed(), profile.total().samples), (3, 5));
    profile.timeline = None;
    profile.record(5, thread, stack, 10);
    assert_eq!(profile.untimed(), 3);
}

#[test]
fn a_number_has_its_noun() {
    let shown = [0, 1, 2].map(|count| plural(count, "process", "processes"));
    assert_eq!(shown, ["0 processes", "1 process", "2 processes"]);
}

#[test]
fn own_time_is_the_leafs_hottest_first() {
    let mut profile = profile(Shape::default());
    let process = profile.add_process(Process::default());
    let thread = profile.add_thread(process, 8, String::new());
    let [caller, callee] = ["caller", "callee"].map(|name| profile.function(function(name)));
    let [lower, upper, other] =
        [(caller, 1), (callee, 2), (callee, 3)].map(|(id, line)| profile.frame(id, Some(line)));
    for (stack, times) in [
        (vec![lower], 2),
        (vec![lower, upper], 2),
        (vec![lower, other], 1),
    ] {
        let stack = profile.stack(stack);
        (0..times).for_each(|_| profile.record(0, thread, stack, 10));
    }
    let own = |samples| Count {
        samples,
        time: 10 * samples,
    };
    let shown = ["callee (main.py)", "caller (main.py)"].map(str::to_owned);
    let counts = [own(3), own(2)];
    assert!(
        profile
            .own_time()
            .into_iter()
            .eq(shown.into_iter().zip(counts))
    );
    // Another file that is shown by the same name, and another function of the same one.
    for elsewhere in ["/srv/other/main.py", "/srv/app/main.py"] {
        let other = profile.function(Function {
            file: elsewhere.to_owned(),
            first_line: 90,
            ..function("caller")
        });
        let frame = profile.frame(other, Some(91));
        let stack = profile.stack([frame]);
        profile.record(0, thread, stack, 10);
    }
    let [first, second] = &profile.own_time()[..] else {
        panic!("{:?}", profile.own_time());
    };
    assert_eq!(*first, ("caller (main.py)".to_owned(), own(4)));
    assert_eq!(*second, ("callee (main.py)".to_owned(), own(3)));
}

#[test]
fn an_empty_stack_says_so() {
    let mut profile = profile(Shape::default());
    let empty = profile.stack([]);
    let mut path = Vec::new();
    profile.frames_of(empty, &mut path);
    let labels: Vec<String> = path
        .iter()
        .map(|frame| profile.frame_label(*frame))
        .collect();
    assert_eq!(labels, [EMPTY_STACK]);
}

#[test]
fn names_and_stacks_without_end_become_markers() {
    let mut profile = profile(Shape::default());
    let long = "x".repeat(1 << 20);
    for number in 0..40 {
        profile.function(function(&format!("{long}{number}")));
    }
    let late = profile.function(function(&format!("{long}late")));
    assert_eq!(profile.function_of(late).name, FULL_FUNCTIONS);
    assert!(profile.functions.len() < 20);
    let marker = profile.marker("[truncated: depth]");
    assert_eq!(profile.frame_label(marker), "[truncated: depth]");

    profile.stacks.limit();
    let frames = [FrameId(0), FrameId(1), FrameId(2)];
    let full = profile.stack(frames);
    let mut path = Vec::new();
    profile.frames_of(full, &mut path);
    assert_eq!(profile.frame_label(path[0]), FULL_STACKS);
}

#[test]
fn lines_without_end_are_dropped() {
    let mut profile = profile(Shape::default());
    let id = profile.function(function("f"));
    let frames: Vec<FrameId> = (0..=MAX_FRAMES as u32)
        .map(|line| profile.frame(id, Some(line)))
        .collect();
    assert_eq!(profile.frame_of(frames[0]).line, Some(0));
    assert_eq!(
        profile.frame_of(frames[MAX_FRAMES]),
        Frame {
            function: id,
            line: None
        }
    );
    assert_eq!(profile.frame(id, Some(u32::MAX)), frames[MAX_FRAMES]);
}
