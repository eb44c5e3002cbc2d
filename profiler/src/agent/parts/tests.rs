use tokio::sync::oneshot;

use super::*;
use crate::{
    agent::{labels, selection},
    profile::{Function, Process, StackId, ThreadId},
};

const CONTAINER: &str = "c0ffee";

/// Everything that a sample goes through, of two processes: 1 of the host, 2 of a container that
/// nobody knows.
struct Bench {
    parts: Parts,
    book: Profile,
    symbols: Symbols,
    thread: ThreadId,
    stack: StackId,
}

impl Bench {
    fn new(select: selection::Settings) -> Bench {
        let namer = Namer::new(&labels::Settings::default(), "n").unwrap();
        let parts = Parts::new((namer, Selection::new(select).unwrap(), Pods::nobody()), 19);
        let mut book = Profile::new(meta(19), Shape::default(), false);
        let process = book.add_process(Process::default());
        let thread = book.add_thread(process, 8, String::new());
        let function = book.function(Function {
            name: "work".to_owned(),
            file: "main.py".to_owned(),
            short_file: "main.py".to_owned(),
            ..Function::default()
        });
        let frame = book.frame(function, Some(3));
        let stack = book.stack([frame]);
        Bench {
            parts,
            book,
            symbols: Symbols::default(),
            thread,
            stack,
        }
    }

    fn sample(&mut self, id: u32, complete: bool) {
        let container = if id == 2 { CONTAINER } else { "" };
        let process = Incarnation::of_test(id, "python main.py", container);
        let seen = Seen {
            incarnation: id,
            thread: self.thread,
            stack: self.stack,
            time: 1,
            weight: 10,
            complete,
        };
        self.parts.take(&mut self.book, &process, seen);
    }

    fn cut(&mut self) -> Vec<Arc<Portion>> {
        self.parts.cut(19);
        let mut portions = self.parts.finished(&mut self.symbols, false);
        portions.sort_by_key(|portion| portion.labels.get("container_id").cloned());
        portions
    }

    fn ask(&mut self, whose: Whose) -> oneshot::Receiver<Result<Profile, Refused>> {
        let (answer, answered) = oneshot::channel();
        self.parts.watch(Request {
            whose,
            duration: Duration::ZERO,
            shape: Shape::default(),
            timeline: false,
            answer,
        });
        answered
    }
}

#[test]
fn each_container_has_a_profile_of_its_own_in_each_interval() {
    let mut bench = Bench::new(selection::Settings::default());
    for id in [1, 2, 2] {
        bench.sample(id, true);
    }
    let portions = bench.cut();
    let service = |portion: &Portion| portion.labels["service"].clone();
    let samples = |portion: &Portion| portion.profile.total().samples;
    assert_eq!(portions.len(), 2);
    assert_eq!(
        (service(&portions[0]), samples(&portions[0])),
        ("main.py".to_owned(), 1)
    );
    assert_eq!(portions[0].labels["host_process"], "true");
    assert_eq!(samples(&portions[1]), 2);
    assert_eq!(portions[1].labels["container_id"], CONTAINER);
    assert_eq!(portions[1].labels["service"], "main.py");
    // The next interval begins with nothing.
    bench.sample(1, true);
    let next = bench.cut();
    assert_eq!((next.len(), samples(&next[0])), (1, 1));
    assert_eq!(bench.parts.made, 3);
    assert!(!bench.parts.has_waiting());
}

#[test]
fn what_is_excluded_is_in_no_profile_and_is_counted() {
    let mut bench = Bench::new(selection::Settings {
        not_commands: vec!["*main.py".to_owned()],
        ..selection::Settings::default()
    });
    bench.sample(1, true);
    let mut asked = bench.ask(Whose::Pid(1));
    assert_eq!(
        asked.try_recv().unwrap().unwrap_err(),
        Refused::Nobody("process 1".to_owned())
    );
    assert_eq!(
        (bench.cut().len(), bench.parts.excluded, bench.parts.made),
        (0, 1, 0)
    );
}

#[test]
fn who_asks_gets_the_samples_from_then_on_of_whom_is_meant() {
    let mut bench = Bench::new(selection::Settings::default());
    bench.sample(1, true);
    bench.sample(2, false);
    let mut asked = bench.ask(Whose::Container("c0f".to_owned()));
    let mut nobody = bench.ask(Whose::Pod("shop/web".to_owned()));
    assert!(matches!(nobody.try_recv(), Ok(Err(Refused::Nobody(_)))));
    bench.sample(1, true);
    bench.sample(2, true);
    bench.parts.answer(&bench.book, &mut bench.symbols);
    let profile = asked.try_recv().unwrap().unwrap();
    assert_eq!(profile.total().samples, 1);
    // It is in the interval's profile as well.
    let samples: Vec<u64> = bench
        .cut()
        .iter()
        .map(|portion| portion.profile.total().samples)
        .collect();
    assert_eq!(samples, [2, 2]);
}

#[test]
fn no_more_profiles_are_taken_at_once_than_there_is_room_for() {
    let mut bench = Bench::new(selection::Settings::default());
    bench.sample(1, true);
    let mut waiting: Vec<_> = (0..=WATCHES_MAX)
        .map(|_| bench.ask(Whose::Everyone))
        .collect();
    let mut last = waiting.pop().unwrap();
    assert_eq!(last.try_recv().unwrap().unwrap_err(), Refused::TooMany);
    // Those who have gone away make room.
    drop(waiting);
    bench.parts.answer(&bench.book, &mut bench.symbols);
    assert!(bench.ask(Whose::Everyone).try_recv().is_err());
}
