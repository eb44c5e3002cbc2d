//! Places of native code, whoever runs it: a byte of a file, or an address of one process where there
//! is no file. A place has a number as soon as it is seen, and its name when [`Background`] has found
//! it: nothing here waits. One that gets no name shows its module and where in it its function begins,
//! or itself is.

use std::{collections::BTreeMap, sync::Arc};

use rustc_hash::FxHashMap;

use crate::{
    cpython::{Mapping, VDSO},
    profile::{self, FULL_PLACES, FrameId, Function, Profile},
    unwind::Module,
};

use super::glue::{only_calls, repeats_python};
use super::native::{
    Kind, Name,
    background::{At, Background},
};

/// Most places that are told apart; all further ones are one.
const PLACES_MAX: usize = 1 << 17;

/// What makes two addresses one place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// A byte of a file, by its device, inode and offset.
    File(Arc<str>, u64, u64),
    /// A byte of the kernel's own library.
    Vdso(u64),
    /// An address of an incarnation.
    Made(u32, u64),
}

/// What is known of a place.
struct Place {
    /// The path of the module; none where there is no file.
    module: Arc<str>,
    /// Of that file, once it is known.
    build_id: Option<Arc<[u8]>>,
    /// Whether it is of the interpreter's own code.
    interpreter: bool,
    /// In the module; else the address, bytes.
    offset: u64,
    /// Where it has no name: how far into its function it is, bytes, as far as that is known.
    into: u64,
    name: Result<Box<Name>, Kind>,
}

/// Every place that was seen. Numbers stay what they are.
#[derive(Default)]
pub(super) struct Places {
    numbers: FxHashMap<Key, u32>,
    places: Vec<Place>,
    /// The process and its incarnation of those that are in no file.
    made: FxHashMap<u32, (u32, u32)>,
    /// How many were seen that have no number of their own.
    unnumbered: u64,
    /// Runs from the first question on; none when there can be no more threads.
    background: Option<Background>,
}

impl Places {
    /// The number of the place at address `inside` of incarnation `id`, the process `pid`, in
    /// `module`. Asks for its name when it is new.
    pub(super) fn place(
        &mut self,
        (id, pid): (u32, u32),
        module: Option<&Module>,
        inside: u64,
    ) -> u32 {
        let file = module.filter(|module| !module.path.is_empty());
        let offset = file.map_or(inside, |file| inside - file.start + file.offset);
        let key = match file {
            Some(file) if *file.path == *VDSO => Key::Vdso(inside - file.start),
            Some(file) => Key::File(file.device.clone(), file.inode, offset),
            None => Key::Made(id, inside),
        };
        if let Some(&number) = self.numbers.get(&key) {
            return number;
        }
        let number = self.places.len() as u32;
        if self.places.len() > PLACES_MAX {
            self.unnumbered += 1;
            return number - 1;
        }
        self.places.push(Place {
            module: file.map(|file| file.path.clone()).unwrap_or_default(),
            build_id: None,
            interpreter: file.is_some_and(|file| file.interpreter),
            offset,
            into: 0,
            name: Err(Kind::UNANSWERED),
        });
        if self.places.len() > PLACES_MAX {
            // This one stands for all that have no place of their own.
            self.unnumbered += 1;
            return number;
        }
        let at = match (&key, file) {
            (Key::Vdso(offset), _) => At::Vdso { offset: *offset },
            (Key::File(..), Some(file)) => At::File {
                pid,
                mapping: Arc::new(mapping(file)),
                offset,
            },
            _ => {
                self.made.insert(number, (pid, id));
                At::Made {
                    pid,
                    id,
                    address: inside,
                }
            }
        };
        self.numbers.insert(key, number);
        self.ask(number, at);
        number
    }

    fn ask(&mut self, number: u32, at: At) {
        if self.background.is_none() {
            self.background = Background::start().ok();
        }
        if let Some(background) = &mut self.background {
            background.ask(number, at);
        }
    }

    /// Takes in the names that were found by now; how many are still looked for.
    pub(super) fn listen(&mut self) -> usize {
        let Some(background) = &mut self.background else {
            return 0;
        };
        while let Some((number, found)) = background.answer() {
            let place = &mut self.places[number as usize];
            place.build_id = found.build_id;
            place.into = found.into;
            place.name = found.name.map(Box::new).map_err(|reason| {
                log::debug!("no name: {reason}");
                reason.kind()
            });
        }
        background.waiting()
    }

    /// Whether half of the numbers are given out.
    pub(super) fn is_half_full(&self) -> bool {
        self.places.len() > PLACES_MAX / 2
    }

    /// How many places were seen.
    pub(super) fn seen(&self) -> u64 {
        self.numbers.len() as u64 + self.unnumbered
    }

    /// How many of them have no name, and why.
    pub(super) fn nameless(&self) -> BTreeMap<Kind, u64> {
        let mut nameless = BTreeMap::from([(Kind::TOO_MANY, self.unnumbered)]);
        for place in self.places.iter().take(PLACES_MAX) {
            if let Err(kind) = place.name {
                *nameless.entry(kind).or_default() += 1;
            }
        }
        nameless
    }

    /// Asks again for the names of code that processes have made: they may tell of it later than it
    /// runs, CPython's `-X perf_jit` when it ends.
    pub(super) fn ask_again(&mut self) {
        let made = std::mem::take(&mut self.made);
        for (number, (pid, id)) in made {
            let place = &self.places[number as usize];
            let address = place.offset;
            if place.name.is_err() {
                self.ask(number, At::Made { pid, id, address });
            }
        }
    }

    /// The frames that stand for a place: the function after what is inlined into it, innermost first;
    /// with `folded` without those of the interpreter that only call, and those that repeat Python's.
    pub(super) fn frames(
        &self,
        profile: &mut Profile,
        number: u32,
        folded: bool,
    ) -> Box<[FrameId]> {
        let Some(place) = self.places.get(number as usize) else {
            return Box::default();
        };
        if number as usize == PLACES_MAX {
            return [profile.marker(FULL_PLACES)].into();
        }
        let Ok(name) = &place.name else {
            return [unknown(profile, place)].into();
        };
        let made = place.module.is_empty();
        if folded && made && repeats_python(&name.function) {
            return Box::default();
        }
        let module = profile.module(place.module());
        let mut frame = |function: &str, file: Option<&str>, line| {
            let file = file.unwrap_or_default();
            let function = profile.function(Function {
                name: function.to_owned(),
                file: file.to_owned(),
                short_file: file.rsplit('/').next().unwrap_or_default().to_owned(),
                first_line: 0,
                module: Some(module),
            });
            profile.frame(function, line)
        };
        let inlined = name.inlined.iter();
        let inlined = inlined.map(|name| (&name.function, &name.file, name.line));
        inlined
            .chain([(&name.function, &name.file, name.line)])
            .filter(|(function, ..)| !(folded && place.interpreter && only_calls(function)))
            .map(|(function, file, line)| frame(function, file.as_deref(), line))
            .collect()
    }
}

impl Place {
    fn module(&self) -> profile::Module {
        profile::Module {
            path: match &*self.module {
                // Code that the process made, and told of.
                "" => "[jit]".to_owned(),
                module => module.to_owned(),
            },
            build_id: self.build_id.as_deref().unwrap_or_default().to_vec(),
            kernel: false,
        }
    }
}

fn mapping(module: &Module) -> Mapping {
    Mapping {
        start: module.start,
        end: module.end,
        offset: module.offset,
        inode: module.inode,
        path: module.path.to_string(),
    }
}

/// Code without a name. Where it is in no file its address is another in each run.
fn unknown(profile: &mut Profile, place: &Place) -> FrameId {
    if place.module.is_empty() {
        return profile.marker("[unknown: native code in no file]");
    }
    let module = place.module();
    let function = place.offset.saturating_sub(place.into);
    let name = format!("[unknown in {}+{function:#x}]", module.name());
    let function = Function {
        name,
        module: Some(profile.module(module)),
        ..Function::default()
    };
    let function = profile.function(function);
    profile.frame(function, None)
}
