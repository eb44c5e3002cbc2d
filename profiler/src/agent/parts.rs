//! Where the agent's samples go: into a profile for each container and interval, and into those that
//! somebody has asked for. A profile that is over waits a moment for what is not known yet: whose it is,
//! and names of native code.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustc_hash::FxHashMap;

use super::{
    labels::{Labels, Namer, Portion},
    owner::{Group, Owner},
    pods::{Known, Pods},
    selection::Selection,
    status,
    watch::{Refused, Request, WATCHES_MAX, Whose},
};
use crate::{
    profile::{Meta, Part, Profile, Shape},
    recorder::{Seen, Sink},
    symbolize::Symbols,
    target::{Incarnation, Targets},
};

/// Most profiles of one interval; the samples of what comes later are in one more.
const GROUPS_MAX: usize = 2048;
/// For how long a profile that is over waits for what is not known yet.
const PATIENCE: Duration = Duration::from_secs(10);
/// What labels the profile of those that found no place.
const OTHERS: &str = "other containers";

/// All of them.
pub struct Parts {
    pub namer: Namer,
    pub selection: Selection,
    pub pods: Pods,
    /// Of a profile that begins now.
    meta: Meta,
    /// When the interval began.
    began: Instant,
    /// By incarnation.
    owners: FxHashMap<u32, Owner>,
    current: FxHashMap<Arc<Group>, Part>,
    over: Vec<Over>,
    watches: Vec<Watch>,
    /// How many profiles were made.
    pub made: u64,
    /// How many samples were left out on purpose.
    pub excluded: u64,
}

/// A profile whose interval is over.
struct Over {
    group: Arc<Group>,
    part: Part,
    samples: u64,
    since: Instant,
}

/// A profile that somebody waits for.
struct Watch {
    request: Request,
    began: Instant,
    part: Part,
}

impl Sink for Parts {
    fn take(&mut self, book: &mut Profile, process: &Incarnation, seen: Seen) {
        let owner = self
            .owners
            .entry(seen.incarnation)
            .or_insert_with(|| Owner::of(process, &self.namer, &self.selection, &self.pods));
        let counts = Arc::make_mut(&mut owner.process);
        counts.samples += 1;
        counts.complete += u64::from(seen.complete);
        let sample = (seen.thread, seen.stack);
        for watch in &mut self.watches {
            if watch.request.whose.is(owner) {
                watch.part.record(book, seen.time, sample, seen.weight);
            }
        }
        if owner.process.excluded {
            self.excluded += 1;
            return;
        }
        let mut group = &owner.group;
        let others;
        if self.current.len() >= GROUPS_MAX && !self.current.contains_key(group) {
            let own = Labels::from([("service".to_owned(), OTHERS.to_owned())]);
            others = Arc::new(Group {
                own: Arc::new(own),
                ..Group::default()
            });
            group = &others;
        }
        let meta = &self.meta;
        let part = self
            .current
            .entry(group.clone())
            .or_insert_with(|| Part::new(meta.clone(), Shape::default(), false, false));
        part.record(book, seen.time, sample, seen.weight);
    }
}

impl Parts {
    /// None yet. `rate` is in samples per second and CPU.
    pub fn new((namer, selection, pods): (Namer, Selection, Pods), rate: u32) -> Parts {
        Parts {
            namer,
            selection,
            pods,
            meta: meta(rate),
            began: Instant::now(),
            owners: FxHashMap::default(),
            current: FxHashMap::default(),
            over: Vec::new(),
            watches: Vec::new(),
            made: 0,
            excluded: 0,
        }
    }

    /// Looks at processes that have begun, asks again whose the others are, and forgets those that are
    /// gone.
    pub fn follow(&mut self, targets: &Targets) {
        self.owners.retain(|&id, _| targets.get(id).is_some());
        for (id, process) in targets.each_running() {
            self.owners
                .entry(id)
                .or_insert_with(|| Owner::of(process, &self.namer, &self.selection, &self.pods))
                .ask(&self.namer, &self.selection, &self.pods);
        }
    }

    /// What is known of each process that runs.
    pub fn processes(&self, targets: &Targets) -> Vec<Arc<status::Process>> {
        let running = targets.each_running();
        let owners = running.filter_map(|(id, _)| self.owners.get(&id));
        owners.map(|owner| owner.process.clone()).collect()
    }

    /// The interval is over; the next one has samples at `rate`.
    pub fn cut(&mut self, rate: u32) {
        let since = Instant::now();
        let lasted = since - mem::replace(&mut self.began, since);
        self.meta = meta(rate);
        for (group, mut part) in self.current.drain() {
            part.profile_mut().set_duration(lasted);
            self.over.push(Over {
                group,
                samples: part.profile_mut().total().samples,
                part,
                since,
            });
        }
    }

    /// Whether profiles wait for something.
    pub fn has_waiting(&self) -> bool {
        !self.over.is_empty()
    }

    /// The profiles that have all that there will be; with `now` whatever they lack.
    pub fn finished(&mut self, symbols: &mut Symbols, now: bool) -> Vec<Arc<Portion>> {
        if self.over.is_empty() {
            return Vec::new();
        }
        let named = symbols.listen() == 0;
        let mut finished = Vec::new();
        for mut over in mem::take(&mut self.over) {
            let known = over.group.known(&self.pods);
            let asked = !matches!(known, Known::NotYet);
            if !(now || over.since.elapsed() >= PATIENCE || named && asked) {
                self.over.push(over);
                continue;
            }
            let container = known.container();
            if !self.selection.has_container(container) {
                self.excluded += over.samples;
                continue;
            }
            symbols.put_names_in(over.part.profile_mut());
            self.made += 1;
            finished.push(Arc::new(Portion {
                labels: Arc::new(self.namer.of_group(&over.group, container)),
                profile: over.part.into_profile(),
            }));
        }
        finished
    }

    /// Somebody asks for a profile.
    pub fn watch(&mut self, request: Request) {
        let refused = if self.watches.len() >= WATCHES_MAX {
            Some(Refused::TooMany)
        } else if !self.owners.values().any(|owner| request.whose.is(owner)) {
            Some(Refused::Nobody(request.whose.to_string()))
        } else {
            None
        };
        if let Some(refused) = refused {
            // Who has gone away does not want to know.
            let _ = request.answer.send(Err(refused));
            return;
        }
        let meta = meta(self.meta.rate);
        let part = Part::new(meta, request.shape, request.timeline, true);
        self.watches.push(Watch {
            request,
            began: Instant::now(),
            part,
        });
    }

    /// Answers those whose time is up, and forgets those who wait no more.
    pub fn answer(&mut self, book: &Profile, symbols: &mut Symbols) {
        for mut watch in mem::take(&mut self.watches) {
            if watch.request.answer.is_closed() {
                continue;
            }
            let lasted = watch.began.elapsed();
            if lasted < watch.request.duration {
                self.watches.push(watch);
                continue;
            }
            symbols.listen();
            watch.part.name_threads(book);
            let profile = watch.part.profile_mut();
            symbols.put_names_in(profile);
            profile.set_duration(lasted);
            let _ = watch.request.answer.send(Ok(watch.part.into_profile()));
        }
    }

    /// The book is about to begin anew: what was taken from it gets the names that are known by now.
    pub fn forget_ids(&mut self, book: &Profile, symbols: &Symbols) {
        for watch in &mut self.watches {
            watch.part.name_threads(book);
            symbols.put_names_in(watch.part.profile_mut());
            watch.part.forget_ids();
        }
        let over = self.over.iter_mut().map(|over| &mut over.part);
        for part in over.chain(self.current.values_mut()) {
            symbols.put_names_in(part.profile_mut());
            part.forget_ids();
        }
    }
}

impl Whose {
    fn is(&self, owner: &Owner) -> bool {
        let process = &owner.process;
        let label = |name| process.labels.get(name).map_or("", String::as_str);
        !process.excluded
            && match self {
                Whose::Everyone => true,
                Whose::Pid(pid) => process.pid == *pid,
                Whose::Pod(name) => match name.split_once('/') {
                    Some((namespace, pod)) => {
                        label("namespace") == namespace && label("pod") == pod
                    }
                    None => label("pod") == name,
                },
                Whose::Container(name) => {
                    label("container") == name || owner.group.container.starts_with(name.as_str())
                }
            }
    }
}

fn meta(rate: u32) -> Meta {
    Meta {
        started: SystemTime::now(),
        rate,
        command: "pyebpf daemon".to_owned(),
        duration: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests;
