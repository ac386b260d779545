//! Tests of the rules of schedules as data: a rhythm, the times at which it is asked, and the ticks that are fired.
//!
//! Cron lines are checked against their meaning in UTC.

use super::*;
use crate::{
    block::Codec,
    event::{Fact, Position},
    task::Limits,
};

fn cid(text: &str) -> Cid {
    Cid::of(Codec::DagCbor, text.as_bytes())
}

fn ms(text: &str) -> u64 {
    let moment: Timestamp = text.parse().expect("a moment of the test's");
    moment.as_millisecond().try_into().expect("after 1970")
}

fn moment(now_ms: u64) -> Moment {
    Moment { now_ms, limits: Limits { lease_ms: 30_000, ageing_ms: 60_000, queue_max: 10, attempts_max: 3 } }
}

fn input(text: &str) -> PayloadRef {
    PayloadRef { cid: cid(text), len: 1, role: Role::Input }
}

fn facts(rhythm: Rhythm, catch_up: bool) -> ScheduleCreated {
    ScheduleCreated { rhythm, makes: "task".into(), catch_up, next_ms: 0 }
}

fn every(ms: u64) -> Rhythm {
    Rhythm::Every { ms }
}

fn cron(line: &str) -> Rhythm {
    Rhythm::Cron { line: line.into() }
}

fn event(body: Body, now_ms: u64) -> Event {
    let fact = Fact {
        cause: None,
        refs: Vec::new(),
        actor: Actor { id: "ada".into(), role: "client".into(), proof: None },
        subject: subject("nightly"),
        tool: None,
        payloads: vec![input("job")],
        body,
    };
    let place = Position { log: cid("genesis"), seq: now_ms, prev: Some(cid("before")), ts: now_ms * 1000 };
    Event::seal(fact, place).expect("a small fact")
}

fn created(facts: ScheduleCreated, now_ms: u64) -> Schedule {
    let created = create(None, "nightly", facts, &input("job"), &moment(now_ms));
    let Ok(Created::New(facts)) = created else { panic!("{created:?}") };
    Schedule::begun(&event(Body::ScheduleCreated(facts), now_ms)).expect("it begins a schedule")
}

/// Fires at each of `times`. Returns the ticks, each with the number of those missed before it.
fn check(rhythm: Rhythm, catch_up: bool, times: &[u64], expected: &[(u64, u64)]) {
    let mut schedule = created(facts(rhythm, catch_up), 1000);
    let mut ticks = Vec::new();
    for now_ms in times {
        while let Some(fired) = schedule.fire(&moment(*now_ms)) {
            ticks.push((fired.at_ms, fired.missed));
            schedule.apply(&event(Body::ScheduleFired(fired), *now_ms));
        }
    }
    assert_eq!(ticks, expected);
}

#[test]
fn each_tick_fires_once() {
    let looks = [1000, 1099, 1100, 1100, 1150, 1200, 1150, 1200, 1300];
    check(every(100), false, &looks, &[(1100, 0), (1200, 0), (1300, 0)]);
}

#[test]
fn missed_ticks_are_made_up_for_or_counted() {
    check(every(100), true, &[1350], &[(1100, 0), (1200, 0), (1300, 0)]);
    check(every(100), false, &[1350, 1400], &[(1300, 2), (1400, 0)]);
    let hour = 3_600_000;
    check(cron("0 * * * *"), true, &[2 * hour], &[(hour, 0), (2 * hour, 0)]);
    check(cron("0 * * * *"), false, &[3 * hour + 1], &[(3 * hour, 2)]);
}

#[test]
fn a_long_sleep_is_passed_over_in_bounded_steps() {
    let year = ms("1971-01-01T00:00:00Z") / 60_000;
    let first = MISSED_MAX + 1;
    let mut expected = vec![(first * 60_000, MISSED_MAX)];
    while expected.len() < 5 {
        expected.push((expected.len() as u64 * first * 60_000 + first * 60_000, MISSED_MAX));
    }
    expected.push((year * 60_000, year - 5 * first - 1));
    check(cron("* * * * *"), false, &[year * 60_000], &expected);
}

#[test]
fn the_next_tick_is_what_the_line_says() {
    let table = [
        ("*/15 * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:15:00Z"),
        ("*/15 * * * *", "2026-01-01T00:14:59.999Z", "2026-01-01T00:15:00Z"),
        ("30 2 * * *", "2026-01-01T02:30:00Z", "2026-01-02T02:30:00Z"),
        ("0 9-17/4 * * MON-FRI", "2026-01-02T17:00:00Z", "2026-01-05T09:00:00Z"),
        ("5,10 0 1 jan,jul *", "2026-01-01T00:10:00Z", "2026-07-01T00:05:00Z"),
        ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("0 0 29 2 *", "2096-03-01T00:00:00Z", "2104-02-29T00:00:00Z"),
        ("0 0 31 * *", "2026-01-31T00:00:00Z", "2026-03-31T00:00:00Z"),
        ("0 0 13 * fri", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
        ("0 0 13 * fri", "2026-01-09T00:00:00Z", "2026-01-13T00:00:00Z"),
        ("0 0 */2 * fri", "2026-01-01T00:00:00Z", "2026-01-09T00:00:00Z"),
        ("0 0 * * 7", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
        ("59 23 31 12 *", "2026-12-31T23:59:00Z", "2027-12-31T23:59:00Z"),
        ("10/20 5 * * *", "2026-01-01T05:11:00Z", "2026-01-01T05:30:00Z"),
        ("@hourly", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
        ("@weekly", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
        ("@Monthly", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"),
    ];
    for (line, after, next) in table {
        assert_eq!(created(facts(cron(line), false), ms(after)).next_ms, ms(next), "{line} after {after}");
    }
}

#[test]
fn what_cannot_be_a_schedule_is_refused_with_its_fault() {
    let table = [
        ("nightly", cron("* * * *"), "cron: 4 fields"),
        ("nightly", cron(""), "cron: 0 fields"),
        ("nightly", cron("60 * * * *"), "cron: minute: `60`"),
        ("nightly", cron("* 24 * * *"), "cron: hour: `24`"),
        ("nightly", cron("* * 0 * *"), "cron: day: `0`"),
        ("nightly", cron("* * * 13 *"), "cron: month: `13`"),
        ("nightly", cron("* * * * 8"), "cron: day of week: `8`"),
        ("nightly", cron("* * * mon *"), "cron: month: `mon`"),
        ("nightly", cron("9-5 * * * *"), "cron: minute: `9-5` runs backwards"),
        ("nightly", cron("*/0 * * * *"), "cron: minute: a step"),
        ("nightly", cron("-1 * * * *"), "cron: minute: ``"),
        ("nightly", cron("1,,2 * * * *"), "cron: minute: ``"),
        ("nightly", cron("0 0 30 2 *"), "cron: no such day"),
        ("nightly", cron(&"*".repeat(300)), "cron: over 256"),
        ("nightly", every(99), "every_ms:"),
        ("nightly", every(u64::MAX), "every_ms:"),
        ("night#ly", every(100), "schedule_id:"),
        (&"n".repeat(101), every(100), "schedule_id:"),
    ];
    for (id, rhythm, fault) in table {
        let refusal = create(None, id, facts(rhythm.clone(), false), &input("job"), &moment(0));
        let refusal = refusal.expect_err(&format!("{rhythm:?} is refused"));
        assert_eq!(refusal.code, Code::InvalidArgument);
        assert!(refusal.message.starts_with(fault), "{rhythm:?}: {}", refusal.message);
    }
}

#[test]
fn creating_again_is_known_or_other_until_it_is_deleted() {
    let mut schedule = created(facts(every(100), false), 1000);
    let again = |schedule: &Schedule, ms, text| {
        create(Some(schedule), "nightly", facts(every(ms), false), &input(text), &moment(5000))
            .map_err(|refusal| refusal.code)
    };
    assert_eq!(again(&schedule, 100, "job"), Ok(Created::Known));
    assert_eq!(again(&schedule, 200, "job"), Err(Code::AlreadyExists));
    assert_eq!(again(&schedule, 100, "other"), Err(Code::AlreadyExists));
    let deleted = schedule.delete().expect("it was there");
    schedule.apply(&event(deleted, 2000));
    assert_eq!((schedule.delete(), schedule.due_ms(), schedule.fire(&moment(9000))), (None, None, None));
    assert!(matches!(again(&schedule, 200, "job"), Ok(Created::New(_))));
}

#[test]
fn a_tick_is_named_by_its_instant() {
    let schedule = created(facts(every(100), false), 1000);
    assert_eq!(schedule.tick_id(ms("2026-01-01T00:00:00.100Z")), "nightly:2026-01-01T00:00:00.100Z");
    assert!(name_allowed(&schedule.tick_id(u64::MAX)));
}
