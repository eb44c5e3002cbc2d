//! Native frames of one process: the module that an address lies in, and so its place.

use std::sync::Arc;

use profiler_ebpf::native::{address, is_guessed, newer};
use rustc_hash::FxHashMap;

use crate::{
    cpython::Interpreter,
    profile::{FrameId, Profile},
    unwind::{Module, Modules},
};

use super::{places::Places, stitch::Native};

/// Most addresses of a process whose places are remembered; then all are forgotten.
const ADDRESSES_MAX: usize = 1 << 14;

/// What is known of the native code of one process.
#[derive(Default)]
pub(super) struct Natives {
    modules: Arc<Modules>,
    /// By the address of an instruction: its place's number.
    places: FxHashMap<u64, u32>,
}

impl Natives {
    /// The process runs code from these now.
    pub(super) fn set(&mut self, modules: &Arc<Modules>) {
        if !Arc::ptr_eq(&self.modules, modules) {
            self.modules = modules.clone();
            self.places.clear();
        }
    }

    /// Places have other numbers now.
    pub(super) fn forget_places(&mut self) {
        self.places.clear();
    }

    /// The frames of a stack of incarnation `id`, the process `pid` with this interpreter, newest first,
    /// each with what tells where it stands among those of Python. Their names come later.
    pub(super) fn frames(
        &mut self,
        profile: &mut Profile,
        places: &mut Places,
        id: u32,
        (pid, interpreter): (u32, &Interpreter),
        stack: &[u64],
    ) -> Vec<(FrameId, Native)> {
        let frames = stack.iter().enumerate().map(|(index, &frame)| {
            // A caller's address is the one behind its call.
            let inside = address(frame).wrapping_sub((index > 0).into());
            let module = self.modules.find(inside);
            if self.places.len() >= ADDRESSES_MAX {
                self.places.clear();
            }
            let place = *self
                .places
                .entry(inside)
                .or_insert_with(|| places.place((id, pid), module, inside));
            let native = Native {
                newer: newer(frame),
                interpreter: module.is_some_and(|module| module.interpreter),
                starter: module.is_some_and(begins_threads),
                run: interpreter
                    .eval_loop
                    .iter()
                    .any(|part| part.contains(&inside)),
                greenlet: module.is_some_and(is_greenlet),
                guessed: is_guessed(frame),
            };
            (profile.place(place), native)
        });
        frames.collect()
    }
}

/// Whether a module is what programs and threads begin in: the C library, and a `python` that has the
/// interpreter in a library.
fn begins_threads(module: &Module) -> bool {
    let name = module.name();
    ["libc.", "libc-", "libpthread", "ld-", "python"]
        .iter()
        .any(|start| name.starts_with(start))
}

/// Whether a module is greenlet's, by the name of its C extension: `greenlet` before version 1.0.
fn is_greenlet(module: &Module) -> bool {
    let name = module.name();
    name.starts_with("_greenlet.") || name.starts_with("greenlet.")
}
