//! What a session remembers of what it has seen: each once, and the oldest is forgotten first, for a session may go on for
//! ever. Pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The youngest `MOST`, with what is known of each. Boxed, and only once there is one: most sessions have nothing to remember.
#[derive(Debug)]
pub(super) struct Youngest<V, const MOST: usize>(Option<Box<Known<V>>>);

#[derive(Debug)]
struct Known<V> {
    known: HashMap<Arc<str>, V>,
    order: VecDeque<Arc<str>>,
}

/// The youngest `MOST` ids.
pub(super) type YoungestIds<const MOST: usize> = Youngest<(), MOST>;

impl<V, const MOST: usize> Youngest<V, MOST> {
    pub(super) fn contains(&self, id: &str) -> bool {
        self.0.as_ref().is_some_and(|all| all.known.contains_key(id))
    }

    /// What is known of this one, which is `fresh` when it is new.
    pub(super) fn get_or_insert(&mut self, id: &Arc<str>, fresh: V) -> &mut V {
        let Known { known, order } = &mut **self.0.get_or_insert_default();
        if !known.contains_key(id) {
            if order.len() >= MOST
                && let Some(oldest) = order.pop_front()
            {
                known.remove(&oldest);
            }
            order.push_back(Arc::clone(id));
        }
        known.entry(Arc::clone(id)).or_insert(fresh)
    }
}

impl<const MOST: usize> YoungestIds<MOST> {
    /// Whether it is new.
    pub(super) fn insert(&mut self, id: &str) -> bool {
        let is_new = !self.contains(id);
        if is_new {
            self.get_or_insert(&id.into(), ());
        }
        is_new
    }
}

impl<V, const MOST: usize> Default for Youngest<V, MOST> {
    fn default() -> Self {
        Self(None)
    }
}

impl<V> Default for Known<V> {
    fn default() -> Self {
        Self { known: HashMap::new(), order: VecDeque::new() }
    }
}

impl<S: AsRef<str>, const MOST: usize> FromIterator<S> for YoungestIds<MOST> {
    /// Oldest first.
    fn from_iter<I: IntoIterator<Item = S>>(ids: I) -> Self {
        let mut youngest = Self::default();
        for id in ids {
            youngest.insert(id.as_ref());
        }
        youngest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_youngest_are_remembered() {
        let mut ids = YoungestIds::<3>::default();
        for id in ["a", "b", "c", "d"] {
            assert!(ids.insert(id));
        }
        assert!(!ids.insert("b"), "known, and not made younger");
        assert!(ids.insert("e"));
        assert!(!ids.contains("a") && !ids.contains("b") && ids.contains("c"));
        assert_eq!(ids.0.map(|all| (all.known.len(), all.order.len())), Some((3, 3)));
    }
}
