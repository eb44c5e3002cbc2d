use super::*;
use crate::agent::pods::Pod;

fn container(id: impl ToString) -> Container {
    Container {
        id: id.to_string(),
        name: "web".to_owned(),
        ..Container::default()
    }
}

fn table() -> Table {
    let mut table = Table::default();
    table.asks("the runtime".to_owned(), Duration::from_secs(15));
    table
}

fn never(table: &mut Table, id: &str, now: Instant) -> Option<String> {
    match table.of(id, now).0 {
        Known::Never(reason) => Some(reason.to_string()),
        _ => None,
    }
}

#[test]
fn an_id_is_asked_for_once_and_is_known_when_it_is_learnt() {
    let (mut table, now) = (table(), Instant::now());
    assert_eq!(table.of("a", now), (Known::NotYet, true));
    assert_eq!(table.of("a", now), (Known::NotYet, false));
    assert_eq!(table.due(), Some(now));
    table.learn(vec![container("a")]);
    assert_eq!(table.of("a", now).0, Known::Is(Arc::new(container("a"))));
    assert_eq!(table.due(), None);
}

#[test]
fn who_does_not_know_an_id_is_asked_again_ever_less_and_then_no_more() {
    let (mut table, start) = (table(), Instant::now());
    table.of("a", start);
    let mut asked = Vec::new();
    while let Some(due) = table.due() {
        asked.push((due - start).as_secs());
        table.answered(due);
    }
    assert_eq!(asked, [0, 1, 3, 7]);
    // For however long it stays unknown.
    for _ in 0..100 {
        table.answered(start);
    }
    let later = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(never(&mut table, "a", later(14)), None);
    let reason = never(&mut table, "a", later(15)).unwrap();
    assert_eq!(reason, "the runtime does not know it");
    // Whatever it has said before.
    table.learn(vec![container("a")]);
    assert_eq!(never(&mut table, "a", later(16)), None);
}

#[test]
fn without_an_answer_an_id_is_waited_for_longer() {
    let (mut table, start) = (table(), Instant::now());
    table.of("a", start);
    assert_eq!(never(&mut table, "a", start + UNANSWERED / 2), None);
    let reason = never(&mut table, "a", start + UNANSWERED).unwrap();
    assert_eq!(reason, "the runtime gave no answer for 120 s");
    // An answer to what was asked before says nothing of it.
    table.answered(start - Duration::from_secs(1));
    let reason = never(&mut table, "a", start + UNANSWERED).unwrap();
    assert_eq!(reason, "the runtime gave no answer for 120 s");
}

#[test]
fn where_nobody_can_be_asked_it_is_said_why() {
    let (mut table, now) = (table(), Instant::now());
    table.of("a", now);
    table.asks_nobody("no socket");
    assert_eq!(never(&mut table, "a", now).as_deref(), Some("no socket"));
    assert_eq!(table.due(), None);
    table.asks("the runtime".to_owned(), Duration::ZERO);
    assert_eq!(table.of("a", now), (Known::NotYet, true));
}

#[test]
fn what_was_not_used_for_longest_is_forgotten_first() {
    let (mut table, now) = (table(), Instant::now());
    table.learn((0..KNOWN_MAX).map(container).collect());
    assert_eq!(table.len(), KNOWN_MAX);
    assert!(matches!(table.of("0", now).0, Known::Is(_)));
    table.learn(vec![container("new")]);
    assert_eq!(table.len(), KNOWN_MAX + 1 - (KNOWN_MAX + 1) / 4);
    for (id, is_known) in [("0", true), ("1", false), ("4000", true), ("new", true)] {
        assert_eq!(table.get(id).is_some(), is_known, "{id}");
    }
}

#[test]
fn large_containers_are_few() {
    let mut table = table();
    let texts = |number: usize| (0..number).map(|key| (key.to_string(), "x".repeat(9000)));
    for id in 0..100 {
        let pod = Pod {
            labels: texts(100).collect(),
            annotations: texts(100).collect(),
            ..Pod::default()
        };
        let pod = Some(pod);
        table.learn(vec![Container {
            pod,
            ..container(id)
        }]);
        assert!(table.bytes <= BYTES_MAX);
    }
    assert!(table.len() < 20 && table.get("99").is_some());
    let sum: usize = table.known.values().map(|entry| entry.size).sum();
    assert_eq!(table.bytes, sum);
    // The same ones again, and one that has changed.
    let again = table.get("99").unwrap().clone();
    table.learn(vec![again, container("98")]);
    let sum: usize = table.known.values().map(|entry| entry.size).sum();
    assert_eq!(table.bytes, sum);
}

#[test]
fn ids_that_somebody_made_up_are_bounded_and_displace_no_container() {
    let (mut table, now) = (table(), Instant::now());
    table.learn(vec![container("real")]);
    for id in 0..10 * ASKED_MAX {
        table.of(&id.to_string(), now);
        assert!(table.asked.len() <= ASKED_MAX);
    }
    assert!(table.get("real").is_some());
    assert!(never(&mut table, &"a".repeat(ID_MAX + 1), now).is_some());
}
