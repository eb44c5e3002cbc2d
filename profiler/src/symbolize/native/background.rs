//! Names off the path of samples: a thread that has [`Natives`], is asked without waiting and answers
//! when it has read what it must, file by file. A file that makes a parser panic costs what was known
//! of files, and nothing else.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustc_hash::FxHashMap;

use crate::cpython::Mapping;

use super::jit_dump::JitDump;
use super::perf_map::PerfMap;
use super::{ModuleId, Name, Natives, Reason};

/// Of how many processes what they tell of code that they made is kept.
const MADE_MAX: usize = 64;

/// Where an instruction is.
#[derive(Clone, Debug)]
pub enum At {
    /// In a file that process `pid` has mapped, by its offset in the file, bytes.
    File {
        pid: u32,
        mapping: Arc<Mapping>,
        offset: u64,
    },
    /// In the vDSO, by its distance from where that begins.
    Vdso { offset: u64 },
    /// At an address of process `pid`, which the caller knows by `id`, in no file.
    Made { pid: u32, id: u32, address: u64 },
}

/// A question: the number that its answer will have, and where.
type Question = (u32, At);
/// The number that the question had, and what was found.
pub type Answer = (u32, Found);

/// What was found out about a place.
#[derive(Clone, Debug)]
pub struct Found {
    pub name: Result<Name, Reason>,
    /// Where there is none: how far into its function the place is, bytes, as far as that is known.
    pub into: u64,
    /// The `NT_GNU_BUILD_ID` of its file.
    pub build_id: Option<Arc<[u8]>>,
}

impl From<Result<Name, Reason>> for Found {
    /// What is known where no file is.
    fn from(name: Result<Name, Reason>) -> Found {
        Found {
            name,
            into: 0,
            build_id: None,
        }
    }
}

/// The thread, which ends when this is dropped and it has answered what it was reading for.
pub struct Background {
    questions: Sender<Question>,
    answers: Receiver<Answer>,
    waiting: usize,
}

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start() -> io::Result<Background> {
        let (questions, asked) = channel();
        let (answer, answers) = channel();
        thread::Builder::new()
            .name("pyebpf-symbols".to_owned())
            .spawn(move || answer_all(&asked, &answer))?;
        Ok(Background {
            questions,
            answers,
            waiting: 0,
        })
    }

    /// Asks for a name.
    pub fn ask(&mut self, number: u32, at: At) {
        let asked = self.questions.send((number, at)).is_ok();
        self.waiting += usize::from(asked);
    }

    /// An answer, if there is one by now.
    pub fn answer(&mut self) -> Option<Answer> {
        let answer = self.answers.try_recv().ok()?;
        self.waiting -= 1;
        Some(answer)
    }

    /// How many questions have no answer yet.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

fn answer_all(asked: &Receiver<Question>, answers: &Sender<Answer>) {
    let mut names = Names::default();
    while let Ok(first) = asked.recv() {
        let mut waiting = vec![names.open(first)];
        // Files are there as long as a process that has them: those of new questions are opened before
        // the next is read, which may take seconds. Each is read once then, even when not all fit into
        // memory together.
        loop {
            let before = waiting.len();
            waiting.extend(asked.try_iter().map(|question| names.open(question)));
            if waiting.len() > before {
                waiting.sort_by_key(Waiting::order);
            }
            let Some(Waiting { number, at, module }) = waiting.pop() else {
                break;
            };
            let found = catch_unwind(AssertUnwindSafe(|| names.find(&at, module)));
            let found = found.unwrap_or_else(|_| {
                names = Names::default();
                let again = std::mem::take(&mut waiting).into_iter();
                waiting = again.map(|it| names.open((it.number, it.at))).collect();
                Err(Reason::Damaged("what it has for debuggers")).into()
            });
            if answers.send((number, found)).is_err() {
                return;
            }
        }
    }
}

/// A question whose file is open, or could not be opened.
struct Waiting {
    number: u32,
    at: At,
    /// Where it is about a file.
    module: Option<Result<ModuleId, Reason>>,
}

impl Waiting {
    /// Which comes last is answered first: code in no file, since that is quick, then file by file.
    fn order(&self) -> u64 {
        match &self.module {
            None => u64::MAX,
            Some(Ok(module)) => u64::from(u32::MAX - module.index()),
            Some(Err(_)) => 0,
        }
    }
}

/// What the thread knows.
#[derive(Default)]
struct Names {
    natives: Natives,
    /// By the caller's id of the process.
    made: FxHashMap<u32, (PerfMap, JitDump)>,
}

impl Names {
    /// Opens the file of a question.
    fn open(&mut self, (number, at): Question) -> Waiting {
        let module = match &at {
            At::File { pid, mapping, .. } => Some(self.natives.module(*pid, mapping)),
            At::Vdso { .. } => Some(self.natives.vdso()),
            At::Made { .. } => None,
        };
        Waiting { number, at, module }
    }

    fn find(&mut self, at: &At, module: Option<Result<ModuleId, Reason>>) -> Found {
        let natives = &mut self.natives;
        let offset = match at {
            At::File { offset, .. } | At::Vdso { offset } => *offset,
            At::Made { pid, id, address } => return self.made(*pid, *id, *address).into(),
        };
        let module = match module.unwrap_or(Err(Reason::NoSymbol)) {
            Ok(module) => module,
            Err(reason) => return Err(reason).into(),
        };
        let address = natives.address(module, offset);
        let into = address.clone().ok();
        let into = into.and_then(|address| natives.into_function(module, address));
        Found {
            name: address.and_then(|address| natives.name(module, address)),
            into: into.unwrap_or_default(),
            build_id: natives.build_id(module),
        }
    }

    /// The name of code that a process has made, if it told.
    fn made(&mut self, pid: u32, id: u32, address: u64) -> Result<Name, Reason> {
        if self.made.len() >= MADE_MAX && !self.made.contains_key(&id) {
            self.made.clear();
        }
        let (map, dump) = self.made.entry(id).or_default();
        if map.find(address).or_else(|| dump.find(address)).is_none() {
            // Few programs write both.
            dump.update(pid).or(map.update(pid))?;
        }
        let found = map.find(address).or_else(|| dump.find(address));
        let (function, offset) = found.ok_or(Reason::NoSymbol)?;
        Ok(Name {
            function: function.to_owned(),
            offset,
            file: None,
            line: None,
            inlined: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::super::tests::mapping_of;
    use super::*;
    use crate::cpython::mapped_files;

    #[test]
    fn questions_are_answered_by_their_numbers() {
        let mut background = Background::start().expect("a thread can be started");
        assert!(background.answer().is_none(), "nothing was asked");
        let address = libc::qsort as *const () as u64;
        let mapping = Arc::new(mapping_of(address));
        let offset = address - mapping.start + mapping.offset;
        let pid = std::process::id();
        for (number, offset) in [(7, offset), (8, u64::MAX)] {
            let mapping = Arc::clone(&mapping);
            background.ask(
                number,
                At::File {
                    pid,
                    mapping,
                    offset,
                },
            );
        }
        background.ask(
            9,
            At::Made {
                pid,
                id: 0,
                address,
            },
        );
        assert_eq!(background.waiting(), 3);
        let mut answers = FxHashMap::default();
        let far = Instant::now() + Duration::from_secs(60);
        while background.waiting() > 0 && Instant::now() < far {
            match background.answer() {
                Some((number, found)) => drop(answers.insert(number, found)),
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
        let found = |number| answers.get(&number).expect("it is answered").clone();
        let name = |number| found(number).name;
        let build_id = found(7).build_id;
        assert!(
            build_id.is_some_and(|id| id.len() >= 4),
            "a distribution's has one"
        );
        assert_eq!(found(8).build_id, found(7).build_id);
        assert_eq!(found(9).build_id, None);
        assert_eq!(name(7).map(|name| name.function), Ok("qsort".to_owned()));
        assert_eq!(name(8), Err(Reason::NoSymbol));
        assert!(
            matches!(name(9), Err(Reason::Unreadable(_))),
            "it made no code"
        );
    }

    #[test]
    fn what_was_asked_for_while_its_process_was_there_is_named_when_it_is_gone() {
        let qsort = libc::qsort as *const () as u64;
        let ours = mapping_of(qsort);
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("there is a cat");
        let pid = child.id();
        let libc = || {
            let parts = mapped_files(pid).unwrap_or_default().into_iter();
            let mut parts = parts.map(|part| part.mapping);
            parts.find(|part| part.inode == ours.inode && part.offset == ours.offset)
        };
        let mapping = std::iter::repeat_with(libc)
            .find_map(|found| {
                found.or_else(|| {
                    thread::sleep(Duration::from_millis(1));
                    None
                })
            })
            .expect("it maps what we do");
        let at = At::File {
            pid,
            mapping: Arc::new(mapping),
            offset: qsort - ours.start + ours.offset,
        };
        let mut names = Names::default();
        let waiting = names.open((1, at));
        drop(child.stdin.take());
        child.wait().expect("it ends with its input");
        let found = names.find(&waiting.at, waiting.module);
        let name = found.name.map(|name| name.function);
        assert_eq!(name, Ok("qsort".to_owned()));
    }
}
