//! Names for native frames of one process: the module that an address lies in, and what a
//! [`NativeNames`] says of it. Addresses that have no name show their module and place in it.

use std::sync::Arc;

use profiler_ebpf::native::{address, newer};
use rustc_hash::FxHashMap;

use crate::{
    profile::{FrameId, Function, Profile},
    unwind::{Module, Modules},
};

use super::stitch::Native;

/// Most addresses of a process whose frames are remembered; then all are forgotten.
const FRAMES_MAX: usize = 1 << 14;

/// Who knows the names of native code.
pub trait NativeNames {
    /// The function at this offset in the module's file.
    fn name(&mut self, module: &Module, offset: u64) -> Option<String>;
}

/// Knows none.
pub struct NoNames;

impl NativeNames for NoNames {
    fn name(&mut self, _module: &Module, _offset: u64) -> Option<String> {
        None
    }
}

/// What is known of the native code of one process.
#[derive(Default)]
pub(super) struct Natives {
    modules: Arc<Modules>,
    /// By the address of an instruction.
    frames: FxHashMap<u64, (FrameId, bool)>,
}

impl Natives {
    /// The process runs code from these now.
    pub(super) fn set(&mut self, modules: &Arc<Modules>) {
        if !Arc::ptr_eq(&self.modules, modules) {
            self.modules = modules.clone();
            self.frames.clear();
        }
    }

    /// The frames of a stack, as they are shown, and for their places.
    pub(super) fn name(
        &mut self,
        profile: &mut Profile,
        names: &mut dyn NativeNames,
        stack: &[u64],
    ) -> Vec<(FrameId, Native)> {
        let mut runs = true;
        let mut named = Vec::with_capacity(stack.len());
        for &frame in stack {
            // A caller's address is the one behind its call.
            let inside = address(frame).wrapping_sub(u64::from(!runs));
            runs = false;
            let (id, interpreter) = self.frame(profile, names, inside);
            let native = Native {
                newer: newer(frame),
                interpreter,
            };
            named.push((id, native));
        }
        named
    }

    fn frame(
        &mut self,
        profile: &mut Profile,
        names: &mut dyn NativeNames,
        inside: u64,
    ) -> (FrameId, bool) {
        if let Some(&known) = self.frames.get(&inside) {
            return known;
        }
        let found = self.modules.find(inside);
        let (name, path, short) = match found {
            Some(module) => {
                let offset = inside - module.start + module.offset;
                match names.name(module, offset) {
                    Some(name) => (name, module.path.clone(), module.name().to_owned()),
                    None => unknown(module.name(), offset),
                }
            }
            None => unknown("[anon]", inside),
        };
        let function = profile.function(Function {
            name,
            file: path,
            short_file: short,
            first_line: 0,
        });
        let shown = (
            profile.frame(function, None),
            found.is_some_and(|module| module.interpreter),
        );
        if self.frames.len() >= FRAMES_MAX {
            self.frames.clear();
        }
        self.frames.insert(inside, shown);
        shown
    }
}

fn unknown(module: &str, offset: u64) -> (String, String, String) {
    let name = format!("[unknown in {module}+{offset:#x}]");
    (name, String::new(), String::new())
}
