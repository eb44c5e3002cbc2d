//! Names off the path of samples: a thread that has [`Natives`], is asked without waiting and answers
//! when it has read what it must. A file that makes a parser panic costs what was known of files,
//! and nothing else.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Instant;

use crate::cpython::Mapping;

use super::{Name, Natives, Reason};

/// Most questions that wait; a stack has some tens of frames, each of which is asked for once.
const WAITING_MAX: usize = 1 << 16;

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
}

/// The answer to one question.
#[derive(Debug)]
pub struct Answer {
    /// What [`Background::ask`] was given.
    pub ticket: u64,
    pub name: Result<Name, Reason>,
}

/// The thread, which ends when this is dropped and it has answered.
pub struct Background {
    questions: SyncSender<(u64, At)>,
    answers: Receiver<Answer>,
    waiting: usize,
}

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start() -> io::Result<Background> {
        let (questions, asked) = sync_channel(WAITING_MAX);
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

    /// Asks for a name; false when too many questions wait, and this one is not taken.
    #[must_use]
    pub fn ask(&mut self, ticket: u64, at: At) -> bool {
        let asked = self.questions.try_send((ticket, at)).is_ok();
        self.waiting += usize::from(asked);
        asked
    }

    /// An answer, if there is one by now.
    pub fn answer(&mut self) -> Option<Answer> {
        let answer = self.answers.try_recv().ok()?;
        self.waiting -= 1;
        Some(answer)
    }

    /// The next answer, waiting for it until `deadline`; none when all questions are answered.
    pub fn wait(&mut self, deadline: Instant) -> Option<Answer> {
        if self.waiting == 0 {
            return None;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = self.answers.recv_timeout(left).ok()?;
        self.waiting -= 1;
        Some(answer)
    }

    /// How many questions have no answer yet.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

fn answer_all(asked: &Receiver<(u64, At)>, answers: &Sender<Answer>) {
    let mut natives = Natives::default();
    for (ticket, at) in asked {
        let named = catch_unwind(AssertUnwindSafe(|| name(&mut natives, &at)));
        let name = named.unwrap_or_else(|_| {
            natives = Natives::default();
            Err(Reason::Damaged("what it has for debuggers"))
        });
        if answers.send(Answer { ticket, name }).is_err() {
            return;
        }
    }
}

fn name(natives: &mut Natives, at: &At) -> Result<Name, Reason> {
    let (module, offset) = match at {
        At::File {
            pid,
            mapping,
            offset,
        } => (natives.module(*pid, mapping)?, *offset),
        At::Vdso { offset } => (natives.vdso()?, *offset),
    };
    let address = natives.address(module, offset)?;
    natives.name(module, address)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::mapping_of;
    use super::*;

    #[test]
    fn questions_are_answered_by_their_tickets() {
        let mut background = Background::start().expect("a thread can be started");
        let far = Instant::now() + Duration::from_secs(60);
        assert!(background.wait(far).is_none(), "nothing was asked");
        let address = libc::qsort as *const () as u64;
        let mapping = Arc::new(mapping_of(address));
        let offset = address - mapping.start + mapping.offset;
        let pid = std::process::id();
        for (ticket, offset) in [(7, offset), (8, u64::MAX)] {
            let mapping = Arc::clone(&mapping);
            assert!(background.ask(
                ticket,
                At::File {
                    pid,
                    mapping,
                    offset
                }
            ));
        }
        assert_eq!(background.waiting(), 2);
        let first = background.wait(far).expect("it is answered");
        let name = first.name.expect("qsort is a function");
        assert_eq!((first.ticket, name.function.as_str()), (7, "qsort"));
        let second = background.wait(far).expect("it is answered");
        assert_eq!((second.ticket, second.name), (8, Err(Reason::NoSymbol)));
        assert!(background.answer().is_none() && background.wait(far).is_none());
    }
}
