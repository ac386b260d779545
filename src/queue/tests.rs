//! The rules of the queue, against a list that is searched from end to end.
//!
//! Histories are random; a failing one names its seed.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::*;
use crate::task::chance::Chance;

/// A task as the model keeps it.
#[derive(Clone, Debug)]
struct Row {
    seq: u64,
    order: i64,
    ready_ms: u64,
    class: Class,
    concurrency: Option<String>,
    rate: Option<String>,
}

impl Row {
    fn new(seq: u64, order: i64) -> Self {
        Self { seq, order, ready_ms: 0, class: Class::new("mail", []), concurrency: None, rate: None }
    }

    fn typed(self, task_type: &str, requires: &[&str]) -> Self {
        let requires = requires.iter().map(|word| (*word).to_owned());
        Self { class: Class::new(task_type, requires), ..self }
    }

    fn keyed(self, key: &str) -> Self {
        Self { concurrency: Some(key.to_owned()), ..self }
    }

    fn rated(self, key: &str) -> Self {
        Self { rate: Some(key.to_owned()), ..self }
    }

    fn at(self, ready_ms: u64) -> Self {
        Self { ready_ms, ..self }
    }

    fn waiting(&self) -> Waiting<'_> {
        Waiting {
            seq: self.seq,
            order: self.order,
            ready_ms: self.ready_ms,
            class: &self.class,
            concurrency_key: self.concurrency.as_deref(),
            rate_key: self.rate.as_deref(),
        }
    }
}

fn words(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn rates() -> Rates {
    let rate = Rate { interval_ms: 100, burst: 2 };
    Rates { default: None, keys: [("api".to_owned(), rate)].into() }
}

fn queue(rows: &[Row]) -> Queue {
    let mut queue = Queue::new(rates());
    rows.iter().for_each(|row| queue.put(row.waiting(), 0));
    queue
}

/// What a worker that can do `capabilities` gets at each of these times.
fn check(rows: &[Row], capabilities: &[&str], times: &[u64], expected: &[Option<u64>]) {
    let mut queue = queue(rows);
    let taken: Vec<_> =
        times.iter().map(|ms| queue.take(&words(capabilities), *ms).map(|taken| taken.seq)).collect();
    assert_eq!(taken, expected);
}

#[test]
fn the_first_of_all_that_a_worker_can_do_is_taken() {
    let rows = [
        Row::new(1, 30),
        Row::new(2, 10).typed("sms", &[]),
        Row::new(3, 10).typed("mail", &["gpu"]),
        Row::new(4, 20),
        Row::new(5, 20),
    ];
    check(&rows, &["mail"], &[0; 4], &[Some(4), Some(5), Some(1), None]);
    check(&rows, &["mail", "gpu", "sms"], &[0; 6], &[Some(2), Some(3), Some(4), Some(5), Some(1), None]);
    check(&rows, &["gpu"], &[0], &[None]);
}

#[test]
fn what_is_for_later_waits_for_its_time_and_then_takes_its_place() {
    let rows = [Row::new(1, 50).at(50), Row::new(2, 60)];
    check(&rows, &["mail"], &[49, 49, 50], &[Some(2), None, Some(1)]);
    check(&rows, &["mail"], &[50, 50], &[Some(1), Some(2)]);
    assert_eq!(queue(&rows).next_ms(), Some(50));
}

#[test]
fn a_concurrency_key_lets_one_run_at_a_time_in_order() {
    let rows = [Row::new(1, 20).keyed("k"), Row::new(2, 10).keyed("k").typed("sms", &[]), Row::new(3, 30)];
    let mut queue = queue(&rows);
    let both = words(&["mail", "sms"]);
    let seq = |taken: Option<Taken>| taken.map(|taken| taken.seq);
    assert_eq!(seq(queue.take(&both, 0)), Some(2));
    assert_eq!(seq(queue.take(&both, 0)), Some(3), "the key is taken, other work goes on");
    assert_eq!(seq(queue.take(&both, 0)), None);
    queue.freed("k");
    assert_eq!(seq(queue.take(&both, 0)), Some(1));
}

#[test]
fn a_line_whose_class_nobody_takes_does_not_hold_up_another_of_its_key() {
    let rows = [Row::new(1, 10).keyed("k").typed("sms", &[]), Row::new(2, 20).keyed("k")];
    check(&rows, &["mail"], &[0, 0], &[Some(2), None]);
}

#[test]
fn a_rate_key_lets_a_burst_through_and_then_one_an_interval() {
    let rows: Vec<_> = (1..=5).map(|seq| Row::new(seq, 0).rated("api")).collect();
    check(
        &rows,
        &["mail"],
        &[0, 0, 0, 99, 100, 100, 350, 350],
        &[Some(1), Some(2), None, None, Some(3), None, Some(4), Some(5)],
    );
    let unbounded: Vec<_> = (1..=3).map(|seq| Row::new(seq, 0).rated("other")).collect();
    check(&unbounded, &["mail"], &[0; 3], &[Some(1), Some(2), Some(3)]);
}

#[test]
fn a_rate_that_was_recorded_holds_after_a_restart() {
    let rows = [Row::new(1, 0).rated("api"), Row::new(2, 0).rated("api")];
    let mut before = queue(&rows);
    before.take(&words(&["mail"]), 0);
    let taken = before.take(&words(&["mail"]), 0).expect("the burst is two");
    assert_eq!(taken.rate_until_ms, Some(100));
    let mut after = queue(&[Row::new(3, 0).rated("api")]);
    after.charged("api", 100, 0);
    assert_eq!(after.take(&words(&["mail"]), 99), None);
    assert_eq!(after.next_ms(), Some(100));
    assert!(after.take(&words(&["mail"]), 100).is_some());
}

#[test]
fn a_paused_queue_gives_nothing_and_loses_nothing() {
    let mut queue = queue(&[Row::new(1, 0)]);
    queue.pause();
    assert_eq!(queue.take(&words(&["mail"]), 0), None);
    queue.resume();
    assert!(queue.take(&words(&["mail"]), 0).is_some());
}

/// The queue as a list: every answer is a search of all of it.
#[derive(Default)]
struct Model {
    waiting: Vec<Row>,
    /// Rows whose time has been seen to come.
    ready: HashSet<u64>,
    taken_keys: HashSet<String>,
    whole_ms: HashMap<String, u64>,
    closed_until: HashMap<String, u64>,
}

impl Model {
    fn wake(&mut self, now_ms: u64) {
        let ready = self.waiting.iter().filter(|row| row.ready_ms <= now_ms);
        self.ready.extend(ready.map(|row| row.seq));
        self.closed_until.retain(|_, until_ms| *until_ms > now_ms);
        self.whole_ms.retain(|_, whole_ms| *whole_ms > now_ms);
    }

    fn take(&mut self, capabilities: &BTreeSet<String>, now_ms: u64) -> Option<Row> {
        self.wake(now_ms);
        let open = |row: &&Row| {
            self.ready.contains(&row.seq)
                && capabilities.contains(&row.class.task_type)
                && row.class.suits(capabilities)
                && row.concurrency.as_ref().is_none_or(|key| !self.taken_keys.contains(key))
                && row.rate.as_ref().is_none_or(|key| !self.closed_until.contains_key(key))
        };
        let row = self.waiting.iter().filter(open).min_by_key(|row| (row.order, row.seq)).cloned()?;
        self.waiting.retain(|other| other.seq != row.seq);
        self.taken_keys.extend(row.concurrency.clone());
        if let Some((key, rate)) = row.rate.as_ref().and_then(|key| Some((key, rates().of(key)?))) {
            let whole_ms = self.whole_ms.entry(key.clone()).or_default();
            *whole_ms = (*whole_ms).max(now_ms) + rate.interval_ms;
            let open_ms = whole_ms.saturating_sub(rate.interval_ms * (rate.burst - 1));
            if open_ms > now_ms {
                self.closed_until.insert(key.clone(), open_ms);
            }
        }
        Some(row)
    }

    fn position(&self, row: &Row) -> u64 {
        let before = |other: &&Row| {
            self.ready.contains(&other.seq)
                && other.class == row.class
                && (other.order, other.seq) < (row.order, row.seq)
        };
        self.waiting.iter().filter(before).count() as u64
    }
}

fn random_row(seq: u64, now_ms: u64, chance: &mut Chance) -> Row {
    let task_type = ["mail", "sms", "fax"][chance.below(3) as usize];
    let requires: &[&str] = if chance.one_in(4) { &["gpu"] } else { &[] };
    let mut row = Row::new(seq, chance.below(50) as i64).typed(task_type, requires);
    if chance.one_in(3) {
        row = row.keyed(["a", "b", "c"][chance.below(3) as usize]);
    }
    if chance.one_in(3) {
        row = row.rated(["api", "other"][chance.below(2) as usize]);
    }
    if chance.one_in(5) {
        row = row.at(now_ms + chance.below(300));
    }
    row
}

#[test]
fn any_history_gives_what_a_search_of_all_tasks_gives() {
    for seed in 0..300 {
        let mut chance = Chance::seeded(seed);
        let (mut queue, mut model) = (Queue::new(rates()), Model::default());
        let mut running: Vec<Row> = Vec::new();
        let (mut now_ms, mut next_seq) = (1000, 0);
        for turn in 0..400 {
            let said = format!("seed {seed}, turn {turn}");
            now_ms = if chance.one_in(9) { now_ms - chance.below(40) } else { now_ms + chance.below(30) };
            queue.wake(now_ms);
            model.wake(now_ms);
            match chance.below(8) {
                0..=2 => {
                    let row = random_row(next_seq, now_ms, &mut chance);
                    next_seq += 1;
                    queue.put(row.waiting(), now_ms);
                    model.waiting.push(row);
                    model.wake(now_ms);
                }
                3 if !model.waiting.is_empty() => {
                    let at = chance.below(model.waiting.len() as u64) as usize;
                    let row = model.waiting.remove(at);
                    assert_eq!(queue.position(&row.waiting()), model.position(&row), "{said}");
                    assert!(queue.remove(&row.waiting()), "{said}");
                    assert!(!queue.remove(&row.waiting()), "{said}: it is gone");
                }
                4 if !running.is_empty() => {
                    let row = running.swap_remove(chance.below(running.len() as u64) as usize);
                    if let Some(key) = &row.concurrency {
                        model.taken_keys.remove(key);
                        queue.freed(key);
                    }
                    if chance.one_in(3) {
                        model.ready.remove(&row.seq);
                        queue.put(row.waiting(), now_ms);
                        model.waiting.push(row);
                        model.wake(now_ms);
                    }
                }
                _ => {
                    let all = ["mail", "sms", "fax", "gpu", "x", "y"];
                    let words = all.iter().filter(|_| !chance.one_in(3)).map(|word| (*word).to_owned());
                    let capabilities: BTreeSet<String> = words.collect();
                    let row = model.take(&capabilities, now_ms);
                    let taken = queue.take(&capabilities, now_ms).map(|taken| taken.seq);
                    assert_eq!(taken, row.as_ref().map(|row| row.seq), "{said}");
                    running.extend(row);
                }
            }
            assert_eq!(queue.len(), model.waiting.len(), "{said}");
        }
        for row in model.waiting.drain(..) {
            assert!(queue.remove(&row.waiting()), "seed {seed}: nothing is lost");
        }
        running.iter().filter_map(|row| row.concurrency.as_deref()).for_each(|key| queue.freed(key));
        queue.wake(u64::MAX);
        assert_eq!(queue.next_ms(), None, "seed {seed}");
        assert!(queue.is_empty() && queue.index.is_empty() && queue.by_type.is_empty(), "seed {seed}");
        assert!(queue.keyed.is_empty() && queue.gates.is_empty(), "seed {seed}: {queue:?}");
    }
}

#[test]
fn a_sorted_set_is_a_sorted_set() {
    for seed in 0..20 {
        let mut chance = Chance::seeded(seed);
        let (mut sorted, mut model) = (Sorted::<u64>::default(), BTreeSet::new());
        for turn in 0..20_000 {
            // Grows first, then shrinks to nothing.
            let entry = chance.below(5000);
            let adds = chance.below(20_000) > turn;
            let (found, expected) = match adds {
                true => (sorted.insert(entry), model.insert(entry)),
                false => (sorted.remove(&entry), model.remove(&entry)),
            };
            assert_eq!(found, expected, "seed {seed}, turn {turn}");
            assert_eq!((sorted.first(), sorted.len()), (model.first().copied(), model.len()));
            if turn % 64 == 0 {
                assert_eq!(sorted.rank(&entry), model.range(..entry).count(), "seed {seed}, turn {turn}");
            }
        }
    }
}
