//! Whose a process is: its container, and what it is labelled with beside what that says. Looked at once,
//! when it is met: it may be gone the next moment.

use std::{fs::File, io::Read as _, sync::Arc};

use super::{
    labels::{Labels, Namer},
    pods::{Known, Pods},
    selection::Selection,
    status,
};
use crate::target::Incarnation;

/// Most bytes of a process's environment that are looked through.
const ENVIRONMENT_MAX: u64 = 1 << 18;

/// Processes whose samples are in one profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Group {
    /// The id of their container; empty for the host's processes.
    pub container: Arc<str>,
    /// The ids of those that this one is in, if it is in any.
    pub around: Vec<String>,
    /// What they have been labelled with whatever their container says.
    pub own: Arc<Labels>,
    /// What is called the service where nothing else says it.
    pub command: Arc<str>,
}

impl Group {
    /// What is known of their container.
    pub fn known(&self, pods: &Pods) -> Known {
        match self.container.is_empty() {
            true => Known::Never("it is in no container".into()),
            false => pods.of_nested(&self.container, self.around.iter().map(String::as_str)),
        }
    }
}

/// What is known of one process.
#[derive(Debug)]
pub struct Owner {
    pub group: Arc<Group>,
    /// What is known of its container; `Never` of a process that is in none.
    pub known: Known,
    pub process: Arc<status::Process>,
}

impl Owner {
    /// Whose `process` is, as far as that is known.
    pub fn of(process: &Incarnation, namer: &Namer, selection: &Selection, pods: &Pods) -> Owner {
        let about = &*process.about;
        let own = namer.of_process(process.pid, about, || environment(process.pid));
        let group = Group {
            container: about.container.as_str().into(),
            around: about.around.clone(),
            own: Arc::new(own),
            // A container has one profile, whatever runs in it.
            command: match about.container.is_empty() {
                true => Arc::default(),
                false => super::labels::program(&about.command_line).into(),
            },
        };
        let mut owner = Owner {
            group: Arc::new(group),
            known: match about.container.is_empty() {
                true => Known::Never("it is in no container".into()),
                false => Known::NotYet,
            },
            process: Arc::new(status::Process {
                pid: process.pid,
                command: about.command_line.clone(),
                python: process.interpreter.release(),
                ..status::Process::default()
            }),
        };
        owner.settle(namer, selection, pods, true);
        owner
    }

    /// Asks again for what is not known yet of its container.
    pub fn ask(&mut self, namer: &Namer, selection: &Selection, pods: &Pods) {
        self.settle(namer, selection, pods, false);
    }

    fn settle(&mut self, namer: &Namer, selection: &Selection, pods: &Pods, first: bool) {
        // What nobody could tell may be known by now.
        let in_container = !self.group.container.is_empty();
        if in_container && self.known.container().is_none() {
            let known = self.group.known(pods);
            if known == self.known && !first {
                return;
            }
            self.known = known;
        } else if !first {
            return;
        }
        let container = self.known.container();
        // What is not known yet may be profiled: whose it is is asked again before that goes anywhere.
        let included = selection.has_command(&self.process.command)
            && (matches!(self.known, Known::NotYet) || selection.has_container(container));
        let labels = Arc::new(namer.of_group(&self.group, container));
        let process = Arc::make_mut(&mut self.process);
        process.labels = labels;
        process.excluded = !included;
    }
}

/// The environment with which a process began, `NAME=VALUE` each; empty when it can't be read.
fn environment(pid: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/environ")) {
        // What can't be read is as if it were not there.
        let _ = file.take(ENVIRONMENT_MAX).read_to_end(&mut bytes);
    }
    bytes
}
