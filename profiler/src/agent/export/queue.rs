//! Profiles that wait for one place in memory, bounded by their bytes: beyond it the oldest goes, and is
//! counted. One side puts them in and never waits; the other takes them out.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{
    item::Item,
    state::{Reason, Shared},
};

#[derive(Debug)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    /// Wakes the side that takes them out.
    pub(super) changed: Notify,
    shared: Shared,
    /// Most bytes.
    most: u64,
}

#[derive(Debug)]
struct Inner {
    items: BTreeMap<u64, Item>,
    bytes: u64,
    /// Why there is no room when there is none.
    full: Reason,
}

impl Queue {
    pub(super) fn new(shared: Shared, most: u64) -> Queue {
        Queue {
            inner: Mutex::new(Inner {
                items: BTreeMap::new(),
                bytes: 0,
                full: Reason::MemoryFull,
            }),
            changed: Notify::new(),
            shared,
            most,
        }
    }

    /// A profile that is new to this place.
    pub(super) fn push(&self, item: Item) {
        self.shared.wait(1, item.size);
        self.put_back(item);
        self.changed.notify_one();
    }

    /// One that was taken out, or waits already.
    pub(super) fn put_back(&self, item: Item) {
        let mut inner = self.lock();
        inner.bytes += item.size;
        inner.items.insert(item.number, item);
        while inner.bytes > self.most
            && let Some((_, oldest)) = inner.items.pop_first()
        {
            inner.bytes -= oldest.size;
            self.shared.lose(inner.full, oldest.size);
        }
    }

    /// The oldest.
    pub(super) fn pop(&self) -> Option<Item> {
        let mut inner = self.lock();
        let (_, item) = inner.items.pop_first()?;
        inner.bytes -= item.size;
        Some(item)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// What is said of those that there is no room for, from now on.
    pub(super) fn set_full(&self, reason: Reason) {
        self.lock().full = reason;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
