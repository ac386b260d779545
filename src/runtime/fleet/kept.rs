//! A few things by name, of which those that were used least recently make room.
//!
//! Invariant: at most `max` are kept.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What is kept, each under a name.
pub struct Kept<T> {
    max: usize,
    held: Mutex<Vec<Held<T>>>,
}

struct Held<T> {
    name: String,
    what: Arc<T>,
    used: Instant,
}

impl<T> Kept<T> {
    pub fn new(max: usize) -> Self {
        Self { max, held: Mutex::default() }
    }

    /// Returns what is kept under this name, or makes it.
    pub fn get_or<E>(&self, name: &str, make: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let mut held = self.held();
        if let Some(known) = held.iter_mut().find(|held| held.name == name) {
            known.used = Instant::now();
            return Ok(known.what.clone());
        }
        let what = Arc::new(make()?);
        if held.len() >= self.max {
            let oldest = held.iter().enumerate().min_by_key(|(_, held)| held.used).map(|(at, _)| at);
            oldest.map(|at| held.swap_remove(at));
        }
        held.push(Held { name: name.to_owned(), what: what.clone(), used: Instant::now() });
        Ok(what)
    }

    /// Lets go of what was not used for so long; returns the rest.
    pub fn sweep(&self, idle: Duration) -> Vec<Arc<T>> {
        let mut held = self.held();
        held.retain(|held| held.used.elapsed() < idle);
        held.iter().map(|held| held.what.clone()).collect()
    }

    /// Lets go of everything, and returns it.
    pub fn take(&self) -> Vec<Arc<T>> {
        self.held().drain(..).map(|held| held.what).collect()
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held<T>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_used_least_recently_makes_room() {
        let kept = Kept::<String>::new(2);
        let get = |name: &str| kept.get_or(name, || Ok::<_, ()>(name.to_owned())).expect("it can be made");
        let (a, _b) = (get("a"), get("b"));
        assert!(Arc::ptr_eq(&a, &get("a")));
        get("c");
        assert!(Arc::ptr_eq(&a, &get("a")), "b made room");
        assert!(kept.get_or("d", || Err(())).is_err());
        assert_eq!(kept.sweep(Duration::from_secs(60)).len(), 2);
        assert_eq!(kept.sweep(Duration::ZERO).len(), 0);
        get("e");
        assert_eq!(kept.take().len(), 1);
    }
}
