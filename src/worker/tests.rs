//! The rules of workers as data: given what happened to one, when it calls, then what it may.
//!
//! What workers do to tasks is driven by `simulation`.

pub(crate) mod simulation;

use super::*;
use crate::{
    block::Codec,
    event::{
        Fact, Position,
        work::{TaskCancelled, TaskClaimed, TaskFailed, TaskLeaseExpired, TaskSucceeded},
    },
};

const LIMITS: Limits = Limits { lease_ms: 100, ageing_ms: 1000, queue_max: 10, attempts_max: 3 };

fn cid(text: &str) -> Cid {
    Cid::of(Codec::DagCbor, text.as_bytes())
}

fn actor(id: &str, role: &str) -> Actor {
    Actor { id: id.into(), role: role.into(), proof: None }
}

fn ada() -> Actor {
    actor("ada", "client")
}

fn moment(now_ms: u64) -> Moment {
    Moment { now_ms, limits: LIMITS }
}

fn facts(capabilities: &[&str], max_concurrent: u64) -> WorkerRegistered {
    let capabilities = capabilities.iter().map(|word| (*word).to_owned()).collect();
    WorkerRegistered { capabilities, max_concurrent, cpu_milli: None, memory_mb: None }
}

fn event(body: Body, now_ms: u64) -> Event {
    let fact = Fact {
        cause: None,
        refs: Vec::new(),
        actor: ada(),
        subject: subject("w1"),
        tool: None,
        payloads: Vec::new(),
        body,
    };
    let place =
        Position { log: cid("genesis"), seq: 1 + now_ms, prev: Some(cid("before")), ts: now_ms * 1000 };
    Event::seal(fact, place).expect("a small fact")
}

/// A worker for two tasks at once, registered at 0, after `bodies`: its own or its tasks'.
fn worker(bodies: &[Body]) -> Worker {
    let begun = event(Body::WorkerRegistered(facts(&["mail"], 2)), 0);
    let mut worker = Worker::begun(&begun).expect("it begins a worker");
    for body in bodies {
        worker.apply(&event(body.clone(), 10));
        worker.apply_task(body);
    }
    worker
}

fn claimed() -> Body {
    Body::TaskClaimed(TaskClaimed {
        worker: "w1".into(),
        runner: None,
        attempt: 1,
        fence: 1,
        lease_until_ms: 100,
        effective: 50,
        rate_until_ms: None,
    })
}

fn succeeded() -> Body {
    Body::TaskSucceeded(TaskSucceeded { fence: 1, attempt: 1, reused: false })
}

fn failed() -> Body {
    let (code, retry_at_ms) = ("internal".into(), Some(50));
    Body::TaskFailed(TaskFailed { fence: 1, attempt: 1, code, retryable: true, retry_at_ms })
}

fn expired() -> Body {
    Body::TaskLeaseExpired(TaskLeaseExpired { worker: "w1".into(), fence: 1, attempt: 1, unheard: false })
}

fn cancelled(running: bool) -> Body {
    Body::TaskCancelled(TaskCancelled { running })
}

fn draining(until_ms: u64) -> Body {
    Body::WorkerDraining(WorkerDraining { until_ms })
}

fn lost() -> Body {
    Body::WorkerLost(WorkerLost { last_heard_ms: 0 })
}

fn left(abandoned: u64) -> Body {
    Body::WorkerUnregistered(WorkerUnregistered { abandoned })
}

#[test]
fn what_happened_tells_its_status_and_what_it_may_take() {
    let table: &[(&[Body], Status, u64)] = &[
        (&[], Status::Idle, 2),
        (&[claimed()], Status::Active, 1),
        (&[claimed(), claimed()], Status::Busy, 0),
        (&[claimed(), succeeded()], Status::Idle, 2),
        (&[claimed(), claimed(), failed()], Status::Active, 1),
        (&[claimed(), expired()], Status::Idle, 2),
        (&[claimed(), cancelled(true)], Status::Idle, 2),
        (&[claimed(), cancelled(false)], Status::Active, 1),
        (&[claimed(), draining(500)], Status::Draining, 0),
        (&[claimed(), lost()], Status::Offline, 1),
        (&[left(0)], Status::Offline, 0),
        (&[left(0), Body::WorkerRegistered(facts(&["sms"], 3))], Status::Idle, 3),
    ];
    for (bodies, status, may_take) in table {
        let worker = worker(bodies);
        assert_eq!((worker.status(), worker.may_take(10)), (*status, *may_take), "{bodies:?}");
    }
    let worker = worker(&[claimed(), succeeded(), claimed(), failed()]);
    assert_eq!((worker.running, worker.completed, worker.failed), (0, 1, 1));
}

#[test]
fn registering_again_is_known_new_or_another_actors() {
    type Row<'a> = (&'a [Body], &'a Actor, &'a WorkerRegistered, Result<&'a str, Code>);
    let same = facts(&["mail"], 2);
    let doubled = facts(&["mail", "mail"], 2);
    let other = facts(&["mail", "sms"], 2);
    let eve = actor("eve", "client");
    let denied = Err(Code::PermissionDenied);
    let table: &[Row<'_>] = &[
        (&[], &ada(), &same, Ok("known")),
        (&[], &ada(), &doubled, Ok("known")),
        (&[], &ada(), &other, Ok("new")),
        (&[], &eve, &same, denied),
        (&[lost()], &ada(), &same, Ok("new")),
        (&[lost()], &eve, &same, denied),
        (&[draining(500)], &ada(), &same, Ok("new")),
        (&[left(0)], &eve, &same, Ok("new")),
    ];
    for (bodies, actor, facts, expected) in table {
        let told = register(Some(&worker(bodies)), "w1", actor, (*facts).clone());
        let told = told.map(|registered| match registered {
            Registered::New(_) => "new",
            Registered::Known => "known",
        });
        assert_eq!(told.map_err(|refusal| refusal.code), *expected, "{bodies:?} {actor:?} {facts:?}");
    }
}

#[test]
fn what_cannot_be_a_worker_is_refused_with_its_fault() {
    let client = ada();
    let system = actor("cairn", "system");
    let many: Vec<String> = (0..=CAPABILITIES_MAX).map(|number| format!("c{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let table = [
        ("w#1", &client, facts(&["mail"], 1), "worker_id:"),
        ("node/r1", &client, facts(&["mail"], 1), "worker_id:"),
        ("w1", &system, facts(&["mail"], 1), "worker_id:"),
        ("w1", &client, facts(&[], 1), "capabilities:"),
        ("w1", &client, facts(&many, 1), "capabilities:"),
        ("w1", &client, facts(&["a b"], 1), "capabilities:"),
        ("w1", &client, facts(&["mail"], 0), "max_concurrent_tasks:"),
        ("w1", &client, facts(&["mail"], 1001), "max_concurrent_tasks:"),
    ];
    for (id, actor, facts, fault) in table {
        let refusal = register(None, id, actor, facts).expect_err(fault);
        assert_eq!(refusal.code, Code::InvalidArgument);
        assert!(refusal.message.starts_with(fault), "{}", refusal.message);
    }
}

#[test]
fn a_call_is_admitted_from_who_registered_the_worker() {
    type Row<'a> = (&'a [Body], &'a Actor, Result<Option<Body>, Code>);
    let eve = actor("eve", "client");
    let back = Some(Body::WorkerRegistered(facts(&["mail"], 2)));
    let table: &[Row<'_>] = &[
        (&[], &ada(), Ok(None)),
        (&[], &eve, Err(Code::PermissionDenied)),
        (&[draining(500)], &ada(), Ok(None)),
        (&[lost()], &ada(), Ok(back)),
        (&[left(0)], &ada(), Err(Code::FailedPrecondition)),
    ];
    for (bodies, actor, expected) in table {
        let told = worker(bodies).called_by(actor).map_err(|refusal| refusal.code);
        assert_eq!(told, *expected, "{bodies:?} {actor:?}");
    }
}

#[test]
fn a_worker_leaves_when_its_work_is_done_or_its_time_is_over() {
    let drain = |worker: &Worker| worker.drain(&ada(), 500, &moment(10)).expect("it is ada's");
    assert_eq!(drain(&worker(&[])), [left(0)]);
    assert_eq!(drain(&worker(&[claimed()])), [draining(510)]);
    assert_eq!(drain(&worker(&[left(0)])), []);
    let busy = worker(&[claimed(), draining(510)]);
    assert_eq!((busy.drained(&moment(509)), busy.drained(&moment(510))), (None, Some(left(1))));
    assert_eq!(worker(&[claimed(), draining(510), succeeded()]).drained(&moment(20)), Some(left(0)));
    assert_eq!(worker(&[]).drained(&moment(9999)), None);
    let operator = actor("root", "operator");
    assert_eq!(worker(&[claimed()]).unregister(&operator), Ok(vec![left(1)]));
    let refusal = worker(&[]).unregister(&actor("eve", "client")).expect_err("it is ada's");
    assert_eq!(refusal.code, Code::PermissionDenied);
}

#[test]
fn silence_is_a_loss_after_some_leases() {
    let mut worker = worker(&[]);
    let silent_ms = SILENT_LEASES_MAX * LIMITS.lease_ms;
    assert_eq!(worker.lost(&moment(silent_ms - 1)), None);
    assert_eq!(worker.lost(&moment(silent_ms)), Some(lost()));
    assert_eq!(worker.due_ms(&LIMITS), Some(silent_ms));
    worker.heard(50);
    worker.heard(20);
    assert_eq!(worker.lost(&moment(silent_ms)), None, "it was heard of since, whatever the clock says");
    worker.apply(&event(lost(), silent_ms + 50));
    assert_eq!((worker.lost(&moment(u64::MAX)), worker.due_ms(&LIMITS)), (None, None));
}
