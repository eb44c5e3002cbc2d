//! Each way to the thread state on its own, and what each does when it leads astray: recordings in
//! which only that way is left, or in which it is made up.

use profiler_ebpf::{MAX_THREADS_WALKED, Outcome, Target};
use pyebpf::cpython::Build;

use super::BUILDS;
use super::recording::{Recording, outcome, walk};

/// Where nothing was recorded: there what a route needs is made up.
const SPARE: u64 = 0x7000_0000;

/// The recording of a build with none of the routes.
fn without_routes(build: Build) -> (Recording, Target) {
    let recording = Recording::load(build);
    let target = Target {
        interpreters: 0,
        current: 0,
        tss_key: 0,
        tls_offset: 0,
        tls_module: 0,
        ..recording.target
    };
    (recording, target)
}

/// Whether walking the thread that holds the GIL gives its stack.
fn finds(recording: &Recording, target: &Target) -> bool {
    let walk = walk(recording, target, recording.main().control_block);
    let found = outcome(&walk) == Outcome::Complete;
    if found {
        assert_eq!(recording.named(&walk), recording.main().frames);
    }
    found
}

#[test]
fn each_route_that_a_version_has_is_enough() {
    for build in BUILDS {
        let (recording, none) = without_routes(build);
        let all = recording.target;
        assert!(!finds(&recording, &none));
        let current = Target {
            current: all.current,
            ..none
        };
        assert_eq!(finds(&recording, &current), build.minor <= 11, "{build}");
        let key = Target {
            tss_key: all.tss_key,
            ..none
        };
        let has_key = build.major == 3 && build.minor <= 14;
        assert_eq!(finds(&recording, &key), has_key, "{build}");
        let (tls_offset, tls_module) = (all.tls_offset, all.tls_module);
        let local = Target {
            tls_offset,
            tls_module,
            ..none
        };
        assert_eq!(finds(&recording, &local), build.minor >= 15, "{build}");
        let list = Target {
            interpreters: all.interpreters,
            ..none
        };
        assert!(finds(&recording, &list), "{build}");
    }
}

#[test]
fn a_pthread_key_of_the_second_level_is_followed() {
    for build in BUILDS {
        let (mut recording, target) = without_routes(build);
        let control_block = recording.main().control_block;
        let state = recording.thread_state(control_block);
        let target = Target {
            tss_key: SPARE,
            ..target
        };
        for key in [32_u32, 33, 63, 64, 1000, 1023] {
            recording.memory.write_half(SPARE, key);
            let block = SPARE + 0x10000;
            let blocks = control_block + 0x510 + 8 * u64::from(key / 32);
            let slot = block + 16 * u64::from(key % 32) + 8;
            recording.memory.write_word(blocks, block);
            recording.memory.write_word(slot, state);
            assert!(finds(&recording, &target), "{build} key {key}");
            recording.memory.write_word(slot, 0);
            assert!(!finds(&recording, &target), "{build} key {key}");
            recording.memory.write_word(blocks, 0);
            assert!(!finds(&recording, &target), "{build} key {key}");
        }
        // glibc has 1024 keys: what would lie where the next one's block is, is something else.
        for key in [1024, u32::MAX] {
            recording.memory.write_half(SPARE, key);
            let blocks = control_block.wrapping_add(0x510 + 8 * u64::from(key / 32));
            let block = SPARE + 0x10000;
            recording.memory.write_word(blocks, block);
            recording
                .memory
                .write_word(block + 16 * u64::from(key % 32) + 8, state);
            assert!(!finds(&recording, &target), "{build} key {key}");
        }
    }
}

#[test]
fn thread_local_storage_is_found_at_an_offset_or_by_the_module() {
    for build in BUILDS {
        let (mut recording, none) = without_routes(build);
        let control_block = recording.main().control_block;
        let state = recording.thread_state(control_block);
        let fixed = Target {
            tls_offset: -0x4028,
            ..none
        };
        assert!(!finds(&recording, &fixed));
        recording.memory.write_word(control_block - 0x4028, state);
        assert!(finds(&recording, &fixed), "{build}");

        let (vector, block) = (SPARE + 0x1000, SPARE + 0x2000);
        let module = Target {
            tls_module: 5,
            tls_offset: 0x48,
            ..none
        };
        recording.memory.write_word(control_block + 8, vector);
        recording.memory.write_word(block + 0x48, state);
        recording.memory.write_word(vector + 16 * 5, block);
        assert!(finds(&recording, &module), "{build}");
        // The thread never touched it: -1, and -1 + 0x48 must not be read.
        recording.memory.write_word(vector + 16 * 5, u64::MAX);
        recording.memory.write_word(0x47, state);
        assert!(!finds(&recording, &module), "{build}");
    }
}

#[test]
fn a_route_that_leads_to_another_thread_is_not_followed() {
    for build in BUILDS {
        let (mut recording, none) = without_routes(build);
        let other = recording.thread_state(recording.threads[1].control_block);
        recording.memory.write_word(SPARE, other);
        let wrong = Target {
            current: SPARE,
            ..none
        };
        assert!(!finds(&recording, &wrong), "{build}");
        // The next route is tried.
        let interpreters = recording.target.interpreters;
        assert!(
            finds(
                &recording,
                &Target {
                    interpreters,
                    ..wrong
                }
            ),
            "{build}"
        );
    }
}

impl Recording {
    /// Puts `count` threads of no interest before those of the list.
    fn crowd(&mut self, count: u32) {
        let link = self.memory.word(self.target.interpreters);
        let mut link = link + u64::from(self.layout.interpreter_threads);
        let first = self.memory.word(link);
        for index in 0..u64::from(count) {
            let state = SPARE + 0x1000 * index;
            self.memory.write_word(link, state);
            self.memory
                .write_word(state + u64::from(self.layout.thread_id), index);
            link = state + u64::from(self.layout.thread_next);
        }
        self.memory.write_word(link, first);
    }
}

#[test]
fn the_list_of_threads_is_walked_to_its_limit_and_no_further() {
    for build in BUILDS {
        let (recording, none) = without_routes(build);
        let interpreters = recording.target.interpreters;
        let list = Target {
            interpreters,
            ..none
        };
        // The newest thread is the first of the list, the main one the second.
        for (before, reached) in [(0, true), (2, true), (3, false), (100, false)] {
            let mut recording = recording.clone();
            let crowd = if before == 0 {
                0
            } else {
                MAX_THREADS_WALKED - 4 + before
            };
            recording.crowd(crowd);
            assert_eq!(finds(&recording, &list), reached, "{build}: {crowd} before");
            if !reached {
                let walk = walk(&recording, &list, recording.main().control_block);
                assert_eq!(outcome(&walk), Outcome::NoThreadState);
            }
        }
    }
}

#[test]
fn threads_of_a_second_interpreter_are_found() {
    for build in BUILDS {
        let (mut recording, none) = without_routes(build);
        let list = Target {
            interpreters: SPARE,
            ..none
        };
        let second = recording.memory.word(recording.target.interpreters);
        let (first, state) = (SPARE + 0x10000, SPARE + 0x20000);
        let layout = recording.layout;
        let memory = &mut recording.memory;
        memory.write_word(SPARE, first);
        memory.write_word(first + u64::from(layout.interpreter_threads), state);
        memory.write_word(state + u64::from(layout.thread_id), 7);
        memory.write_word(state + u64::from(layout.thread_next), 0);
        memory.write_word(first + u64::from(layout.interpreter_next), second);
        assert!(finds(&recording, &list), "{build}");
    }
}

#[test]
fn a_list_that_bites_its_tail_ends() {
    for build in BUILDS {
        let (mut recording, none) = without_routes(build);
        let interpreters = recording.target.interpreters;
        let list = Target {
            interpreters,
            ..none
        };
        let newest = recording.thread_state(recording.threads[1].control_block);
        let next = newest + u64::from(recording.layout.thread_next);
        recording.memory.write_word(next, newest);
        assert!(!finds(&recording, &list), "{build}");
        // An interpreter without threads that is its own successor.
        let interpreter = recording.memory.word(interpreters);
        let threads = interpreter + u64::from(recording.layout.interpreter_threads);
        recording.memory.write_word(threads, 0);
        let successor = interpreter + u64::from(recording.layout.interpreter_next);
        recording.memory.write_word(successor, interpreter);
        assert!(!finds(&recording, &list), "{build}");
    }
}
