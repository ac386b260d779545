//! What the events of a task say, and what they are drawn from and caused by.
//!
//! A fold of the sealed events is the task, live or later.

use super::*;

#[test]
fn an_ending_is_caused_by_its_claim_and_names_the_call() {
    let story = Story::told(facts(), &[(1001, Claim), (1002, Renew(5)), (1003, Complete)]);
    let [_, claim, renewal, ending] = &story.events[..] else { panic!("four events") };
    assert_eq!((claim.fields().cause, &claim.fields().refs), (Some(cid("call")), &vec![]));
    assert_eq!(renewal.fields().cause, Some(cid("call")));
    assert_eq!((ending.fields().cause, &ending.fields().refs), (Some(claim.cid()), &vec![cid("call")]));
    let lapses = [(1001, Claim), (1101, Lapse), (1102, Claim), (1202, Lapse), (1203, Claim), (1303, Lapse)];
    let story = Story::told(facts(), &lapses);
    let [.., expired, dead] = &story.events[..] else { panic!("it died") };
    assert_eq!(dead.fields().cause, Some(expired.cid()));
}

#[test]
fn the_fold_is_what_the_events_say() {
    let story = Story::told(facts(), &[(1001, Claim), (1050, Renew(40)), (1060, Complete)]);
    let task = &story.task;
    assert_eq!((task.submitted_ms, task.started_ms, task.ended_ms), (1000, Some(1001), Some(1060)));
    assert_eq!((task.progress, task.output), (100, Some(pay("output", Role::Output))));
    assert_eq!((task.seq, task.last_seq, task.last), (1, 4, story.events[3].cid()));
    let bytes = crate::block::encode(task);
    assert_eq!(crate::block::decode::<Task>(&bytes).expect("it was encoded"), *task);
    let mut other = task.clone();
    let body = Body::LogOpened(crate::event::body::LogOpened {
        genesis: cid("g"),
        software: "x".into(),
        salt: None,
    });
    other.apply(&sealed(task.fact(body, actor(), None, Vec::new(), Vec::new()), 9, 2000));
    assert_eq!(other, *task, "events of other entities change nothing");
}

#[test]
fn jitter_is_drawn_from_the_claim_and_stays_within_its_bounds() {
    let policy = RetryPolicy { backoff_ms: 1000, max_backoff_ms: 3000, jitter: true, ..retries(9) };
    let jittery = TaskSubmitted { retry: policy, ..facts() };
    let mut pauses = std::collections::BTreeSet::new();
    for now_ms in 2000..2200 {
        let story = Story::told(jittery.clone(), &[(now_ms, Claim)]);
        let told = story.ask(Fail, now_ms).expect("w1 has it");
        assert_eq!(story.ask(Fail, now_ms).as_ref(), Ok(&told), "the same claim gives the same pause");
        let [Body::TaskFailed(TaskFailed { retry_at_ms: Some(retry_at_ms), .. })] = told[..] else {
            panic!("{told:?}")
        };
        assert!((500..=1000).contains(&(retry_at_ms - now_ms)));
        pauses.insert(retry_at_ms - now_ms);
    }
    assert!(pauses.len() > 100, "{} different pauses of 200", pauses.len());
}
