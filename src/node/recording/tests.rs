//! Counts at a ledger that stops, and at one that refuses.

use std::ops::ControlFlow;

use super::counted;
use crate::{
    event::{Actor, Body, EVENT_MAX, Event, keeping::Reason},
    follow::tests::owner::Owner,
    log::{Reader, sqlite::SqliteReader},
    metrics::{
        Metrics,
        access::{What, unknown},
    },
};

fn client(id: &str) -> Actor {
    Actor { id: id.to_owned(), role: "client".to_owned(), proof: None }
}

/// The counts on record, sorted.
fn recorded(owner: &Owner) -> Vec<(String, &'static str, u64)> {
    let reader = SqliteReader::open(&owner.home.log_path()).expect("a log");
    let mut found = Vec::new();
    let read = reader.events(0, &mut |row| {
        let event = Event::open(row.bytes.to_vec()).expect("an event");
        let count = match event.body() {
            Some(Body::AccessRead(facts)) => Some(("read", facts.reads)),
            Some(Body::AccessRefused(facts)) => Some(("refused", facts.refusals)),
            _ => None,
        };
        found.extend(count.map(|(what, times)| (event.fields().actor.id.clone(), what, times)));
        ControlFlow::Continue(())
    });
    read.expect("the log can be walked");
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopped_ledger_does_not_take_is_recorded_by_the_next() {
    let owner = Owner::new(1);
    let (ledger, metrics) = (owner.ledger.clone(), Metrics::new());
    metrics.access.add(&client("ann"), What::Read, 3);
    counted(&ledger, &metrics, true).await.expect("the ledger runs");
    metrics.access.add(&client("ann"), What::Read, 4);
    metrics.access.add(&unknown(), What::Refused(Reason::Invalid), 2);
    ledger.close().await;
    let dir = owner.stop();
    for _ in 0..2 {
        counted(&ledger, &metrics, true).await.expect_err("it has stopped");
    }
    metrics.access.add(&client("ben"), What::Read, 1);
    let owner = Owner::reopen(dir, 1);
    for _ in 0..2 {
        counted(&owner.ledger, &metrics, true).await.expect("the ledger runs");
        let told = [("ann", "read", 3), ("ann", "read", 4), ("ben", "read", 1), ("unknown", "refused", 2)];
        assert_eq!(recorded(&owner), told.map(|(id, what, times)| (id.to_owned(), what, times)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_ledger_refuses_to_name_is_counted_with_the_others() {
    let (owner, metrics) = (Owner::new(1), Metrics::new());
    metrics.access.add(&client(&"n".repeat(EVENT_MAX)), What::Read, 3);
    metrics.access.add(&client("ann"), What::Read, 1);
    for _ in 0..2 {
        counted(&owner.ledger, &metrics, true).await.expect("the ledger runs");
        assert_eq!(recorded(&owner), [("ann".to_owned(), "read", 1), ("others".to_owned(), "read", 3)]);
    }
}
