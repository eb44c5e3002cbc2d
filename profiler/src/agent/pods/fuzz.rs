//! Answers of container runtimes and of the Kubernetes API, for fuzzers; see [`crate::fuzz`].

use super::{Container, TEXT_MAX, TEXTS_MAX, cri, kubernetes, table::Table};

/// The same bytes as what CRI lists and as a pod of the API.
pub(crate) fn answers(bytes: &[u8]) {
    let mut containers = cri::listed(bytes);
    containers.extend(kubernetes::read(bytes));
    containers.iter().for_each(check);
    Table::default().learn(containers);
}

fn check(container: &Container) {
    let mut texts = vec![&container.id, &container.name, &container.image];
    if let Some(pod) = &container.pod {
        texts.extend([&pod.namespace, &pod.name, &pod.uid]);
        for map in [&pod.labels, &pod.annotations] {
            assert!(map.len() <= TEXTS_MAX);
            texts.extend(map.iter().flat_map(|(key, value)| [key, value]));
        }
    }
    assert!(texts.iter().all(|text| text.len() <= TEXT_MAX));
}

#[test]
fn the_inputs_are_answers() {
    macro_rules! input {
        ($name:literal) => {
            include_bytes!(concat!("../../../../tests/data/fuzz/pods/", $name)).as_slice()
        };
    }
    let [container] = cri::listed(input!("containers")).try_into().unwrap();
    assert_eq!(container.pod.unwrap().namespace, "shop");
    let [sandbox] = cri::listed(input!("sandboxes")).try_into().unwrap();
    assert_eq!(sandbox.pod.unwrap().labels["app"], "web");
    assert_eq!(kubernetes::read(input!("pod")).len(), 5);
}
