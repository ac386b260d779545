//! Keys: lines within the line of a class, each of which lets its first task stand in the next one.
//!
//! Invariants:
//! - a task with a concurrency key waits in its key's line; the first stands in the line of its rate key, or in its
//!   class where it has none, while the key is free;
//! - what waits in the line of a rate key stands in its class, by its first, while the key is open;
//! - a key is forgotten when nothing waits for it, nothing runs under it and its rate is whole again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{ClassLine, Place, Rate, Rates, Sorted, Waiting};

/// The keys of one task, of which the rates are bounded.
#[derive(Debug)]
pub(super) struct Keys {
    concurrency: Option<Arc<str>>,
    rate: Option<Arc<str>>,
}

/// All keys that something waits for or runs under.
#[derive(Debug, Default)]
pub(super) struct Gates {
    rates: Rates,
    concurrency: HashMap<Arc<str>, Concurrency>,
    rated: HashMap<Arc<str>, Rated>,
    /// When each rate key opens, or is whole again: one entry a key.
    clocks: BTreeSet<(u64, Arc<str>)>,
}

/// One running task at a time. A key has few lines: one for each class and rate key it is used with.
#[derive(Debug, Default)]
struct Concurrency {
    taken: bool,
    lines: Vec<(u32, Option<Arc<str>>, Line)>,
}

/// The generic cell rate algorithm (ITU-T I.371): one number tells how much of the rate is used.
#[derive(Debug)]
struct Rated {
    rate: Rate,
    /// The theoretical arrival time: when the whole burst is allowed again. 0 once that was seen to have come.
    whole_ms: u64,
    closed: bool,
    /// By class.
    lines: Vec<(u32, Line)>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: Sorted<Place>,
    /// Its first, where that stands in the next line.
    standing: Option<Place>,
}

impl Line {
    /// What stood in the next line and what does from now on, where these differ.
    fn settle(&mut self, open: bool) -> Option<Step> {
        let now = self.waiting.first().filter(|_| open);
        let was = std::mem::replace(&mut self.standing, now);
        (was != now).then_some(Step { was, now })
    }
}

/// A change of the one place that a line has in the next.
#[derive(Clone, Copy, Debug)]
struct Step {
    was: Option<Place>,
    now: Option<Place>,
}

impl Step {
    fn take(self, line: &mut Sorted<Place>) {
        if let Some(was) = self.was {
            line.remove(&was);
        }
        if let Some(now) = self.now {
            line.insert(now);
        }
    }
}

impl Rated {
    fn tolerance_ms(&self) -> u64 {
        self.rate.interval_ms.saturating_mul(self.rate.burst.saturating_sub(1))
    }

    /// When it next allows one.
    fn open_ms(&self) -> u64 {
        self.whole_ms.saturating_sub(self.tolerance_ms())
    }

    /// The next time that matters: it opens, or it is whole.
    fn clock_ms(&self) -> u64 {
        if self.closed { self.open_ms() } else { self.whole_ms }
    }
}

impl Gates {
    pub(super) fn new(rates: Rates) -> Self {
        Self { rates, ..Self::default() }
    }

    /// The keys that a task has to pass; none where nothing holds it up.
    pub(super) fn keys(&mut self, task: &Waiting<'_>) -> Option<Keys> {
        let concurrency = task.concurrency_key.map(|key| match self.concurrency.get_key_value(key) {
            Some((key, _)) => Arc::clone(key),
            None => key.into(),
        });
        let rate = task.rate_key.and_then(|key| Some((key, self.rates.of(key)?)));
        let rate = rate.map(|(key, _)| match self.rated.get_key_value(key) {
            Some((key, _)) => Arc::clone(key),
            None => key.into(),
        });
        (concurrency.is_some() || rate.is_some()).then_some(Keys { concurrency, rate })
    }

    /// A task waits for its keys.
    pub(super) fn join(&mut self, classes: &mut [ClassLine], class: u32, keys: &Keys, place: Place) {
        match &keys.concurrency {
            Some(key) => {
                let gate = self.concurrency.entry(Arc::clone(key)).or_default();
                gate.line(class, keys.rate.as_ref()).waiting.insert(place);
                self.settle_concurrency(classes, key);
            }
            None => self.step(classes, class, keys.rate.as_ref(), Step { was: None, now: Some(place) }),
        }
    }

    /// A task waits no more: it was taken, or went away.
    pub(super) fn leave(&mut self, classes: &mut [ClassLine], class: u32, keys: &Keys, place: Place) {
        match &keys.concurrency {
            Some(key) => {
                if let Some(gate) = self.concurrency.get_mut(key) {
                    gate.line(class, keys.rate.as_ref()).waiting.remove(&place);
                }
                self.settle_concurrency(classes, key);
            }
            None => self.step(classes, class, keys.rate.as_ref(), Step { was: Some(place), now: None }),
        }
        if let Some(key) = &keys.rate {
            self.settle_rate(classes, key);
        }
    }

    /// Takes the concurrency key and charges the rate key of a task that starts; when the latter next allows one.
    pub(super) fn pass(&mut self, keys: &Keys, now_ms: u64) -> Option<u64> {
        if let Some(gate) = keys.concurrency.as_ref().and_then(|key| self.concurrency.get_mut(key)) {
            gate.taken = true;
        }
        let key = keys.rate.as_ref()?;
        let rated = self.rated.get(key)?;
        let whole_ms = rated.whole_ms.max(now_ms).saturating_add(rated.rate.interval_ms);
        self.charge(key, whole_ms, now_ms)
    }

    pub(super) fn hold(&mut self, classes: &mut [ClassLine], key: &str) {
        let key: Arc<str> = key.into();
        self.concurrency.entry(Arc::clone(&key)).or_default().taken = true;
        self.settle_concurrency(classes, &key);
    }

    pub(super) fn free(&mut self, classes: &mut [ClassLine], key: &str) {
        let Some((key, _)) = self.concurrency.get_key_value(key) else {
            return;
        };
        let key = Arc::clone(key);
        if let Some(gate) = self.concurrency.get_mut(&key) {
            gate.taken = false;
        }
        self.settle_concurrency(classes, &key);
    }

    pub(super) fn charged(&mut self, classes: &mut [ClassLine], key: &str, open_ms: u64, now_ms: u64) {
        let Some(rate) = self.rates.of(key) else {
            return;
        };
        let key: Arc<str> = key.into();
        let rated = self.rated.entry(Arc::clone(&key)).or_insert_with(|| Rated::new(rate));
        let whole_ms = open_ms.saturating_add(rated.tolerance_ms()).max(rated.whole_ms);
        self.charge(&key, whole_ms, now_ms);
        self.settle_rate(classes, &key);
    }

    pub(super) fn wake(&mut self, classes: &mut [ClassLine], now_ms: u64) {
        while let Some((at_ms, key)) = self.clocks.first().filter(|(at_ms, _)| *at_ms <= now_ms).cloned() {
            self.clocks.remove(&(at_ms, Arc::clone(&key)));
            if let Some(rated) = self.rated.get_mut(&key) {
                rated.closed = false;
                match rated.whole_ms > now_ms {
                    true => {
                        self.clocks.insert((rated.whole_ms, Arc::clone(&key)));
                    }
                    false => rated.whole_ms = 0,
                }
            }
            self.settle_rate(classes, &key);
        }
    }

    /// Whether no key is remembered.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.concurrency.is_empty() && self.rated.is_empty() && self.clocks.is_empty()
    }

    pub(super) fn next_ms(&self) -> Option<u64> {
        self.clocks.first().map(|(at_ms, _)| *at_ms)
    }

    /// Sets how much of a rate is used, and the clock of its key; when it next allows one.
    fn charge(&mut self, key: &Arc<str>, whole_ms: u64, now_ms: u64) -> Option<u64> {
        let rated = self.rated.get_mut(key)?;
        self.clocks.remove(&(rated.clock_ms(), Arc::clone(key)));
        rated.whole_ms = whole_ms;
        rated.closed = rated.open_ms() > now_ms;
        self.clocks.insert((rated.clock_ms(), Arc::clone(key)));
        Some(rated.open_ms())
    }

    /// Lets the first of each line of a concurrency key stand where it should.
    fn settle_concurrency(&mut self, classes: &mut [ClassLine], key: &Arc<str>) {
        let Some(gate) = self.concurrency.get_mut(key) else {
            return;
        };
        let open = !gate.taken;
        let steps: Vec<_> = gate
            .lines
            .iter_mut()
            .filter_map(|(class, rate, line)| Some((*class, rate.clone(), line.settle(open)?)))
            .collect();
        gate.lines.retain(|(_, _, line)| !line.waiting.is_empty());
        if gate.lines.is_empty() && !gate.taken {
            self.concurrency.remove(key);
        }
        for (class, rate, step) in steps {
            self.step(classes, class, rate.as_ref(), step);
        }
    }

    /// Changes what stands in the line of a rate key, or in that of a class.
    fn step(&mut self, classes: &mut [ClassLine], class: u32, rate: Option<&Arc<str>>, step: Step) {
        let Some(key) = rate else {
            return step.take(&mut classes[class as usize].heads);
        };
        if let Some(rate) = self.rates.of(key) {
            let rated = self.rated.entry(Arc::clone(key)).or_insert_with(|| Rated::new(rate));
            step.take(&mut rated.line(class).waiting);
            self.settle_rate(classes, key);
        }
    }

    fn settle_rate(&mut self, classes: &mut [ClassLine], key: &Arc<str>) {
        let Some(rated) = self.rated.get_mut(key) else {
            return;
        };
        let open = !rated.closed;
        for (class, line) in &mut rated.lines {
            if let Some(step) = line.settle(open) {
                step.take(&mut classes[*class as usize].heads);
            }
        }
        rated.lines.retain(|(_, line)| !line.waiting.is_empty());
        let clocked = self.clocks.contains(&(rated.clock_ms(), Arc::clone(key)));
        if rated.lines.is_empty() && !clocked {
            self.rated.remove(key);
        }
    }
}

impl Concurrency {
    fn line(&mut self, class: u32, rate: Option<&Arc<str>>) -> &mut Line {
        let at = self.lines.iter().position(|(c, r, _)| *c == class && r.as_ref() == rate);
        let at = at.unwrap_or_else(|| {
            // Most keys have one line, and there may be a million of them.
            self.lines.reserve_exact(1);
            self.lines.push((class, rate.cloned(), Line::default()));
            self.lines.len() - 1
        });
        &mut self.lines[at].2
    }
}

impl Rated {
    fn new(rate: Rate) -> Self {
        Self { rate, whole_ms: 0, closed: false, lines: Vec::new() }
    }

    fn line(&mut self, class: u32) -> &mut Line {
        let at = self.lines.iter().position(|(other, _)| *other == class);
        let at = at.unwrap_or_else(|| {
            self.lines.push((class, Line::default()));
            self.lines.len() - 1
        });
        &mut self.lines[at].1
    }
}
