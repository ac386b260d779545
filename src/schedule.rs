//! Schedules: work that is submitted at its times, at most once for each.
//!
//! Invariants:
//! - a tick is named by its schedule and its instant, so that firing it twice submits the same work;
//! - the next tick is always later than the last one, even if the clock goes backwards.

mod cron;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::cron::Cron;
use crate::{
    block::Cid,
    error::{Code, Refusal},
    event::{
        Actor, Body, Event, PayloadRef, Role,
        work::{Rhythm, ScheduleCreated, ScheduleDeleted, ScheduleFired},
    },
    task::{Moment, SPAN_MAX_MS, name_allowed},
};

/// The largest number of characters of a schedule's id. With the instant of a tick it is still a valid name.
const ID_MAX: usize = 100;
/// The shortest interval between ticks.
const EVERY_MIN_MS: u64 = 100;
/// The largest number of missed ticks of a cron line that one firing skips. The next firing skips the rest.
const MISSED_MAX: u64 = 100_000;
/// The next tick of a cron line that has no more.
const NEVER_MS: u64 = i64::MAX as u64;

/// A schedule, folded from its events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    pub id: String,
    pub actor: Actor,
    pub facts: ScheduleCreated,
    /// The input of the work that it submits.
    pub input: Option<PayloadRef>,
    pub created: Cid,
    pub created_ms: u64,
    pub next_ms: u64,
    pub last_tick_ms: Option<u64>,
    /// The number of ticks that submitted work.
    pub fired: u64,
    /// The number of missed ticks that were passed over.
    pub missed: u64,
    /// The number of ticks that could submit nothing.
    pub skipped: u64,
    pub deleted: bool,
    pub last: Cid,
    pub last_seq: u64,
}

/// The ruling on the creation of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    New(ScheduleCreated),
    /// The same schedule exists already.
    Known,
}

impl Schedule {
    /// Returns the schedule that a `schedule.created` event begins.
    pub fn begun(event: &Event) -> Option<Self> {
        let Some(Body::ScheduleCreated(facts)) = event.body() else {
            return None;
        };
        let fields = event.fields();
        Some(Self {
            id: fields.subject.strip_prefix("schedule/")?.to_owned(),
            actor: fields.actor.clone(),
            input: fields.payload(Role::Input),
            created: event.cid(),
            created_ms: fields.at_ms(),
            next_ms: facts.next_ms,
            last_tick_ms: None,
            fired: 0,
            missed: 0,
            skipped: 0,
            deleted: false,
            last: event.cid(),
            last_seq: fields.seq,
            facts,
        })
    }

    /// Applies a later event of this schedule. One that creates it again resets it.
    pub fn apply(&mut self, event: &Event) {
        match event.body() {
            Some(Body::ScheduleCreated(_)) => {
                return if let Some(begun) = Self::begun(event) {
                    *self = begun;
                };
            }
            Some(Body::ScheduleFired(facts)) => {
                self.next_ms = facts.next_ms;
                self.last_tick_ms = Some(facts.at_ms);
                self.fired += u64::from(!facts.skipped);
                self.skipped += u64::from(facts.skipped);
                self.missed += facts.missed;
            }
            Some(Body::ScheduleDeleted(_)) => self.deleted = true,
            // Events of other entities do not change a schedule.
            _ => return,
        }
        self.last = event.cid();
        self.last_seq = event.fields().seq;
    }

    /// Returns the tick that is due. Of several missed ticks it is the first with `catch_up`, else the last, and then
    /// the others count as missed. Call it again until it returns `None`.
    pub fn fire(&self, moment: &Moment) -> Option<ScheduleFired> {
        if self.deleted || moment.now_ms < self.next_ms {
            return None;
        }
        let beat = Beat::read(&self.facts.rhythm).ok();
        let (at_ms, next_ms) = (self.next_ms, self.next_ms);
        let mut fired = ScheduleFired { at_ms, next_ms, missed: 0, skipped: false };
        if let (Rhythm::Every { ms }, false) = (&self.facts.rhythm, self.facts.catch_up) {
            fired.missed = (moment.now_ms - self.next_ms) / (*ms).max(1);
            fired.at_ms += fired.missed * ms;
        }
        loop {
            let next_ms = beat.as_ref().and_then(|beat| beat.next_ms(fired.at_ms));
            fired.next_ms = next_ms.unwrap_or(NEVER_MS);
            let over = fired.next_ms > moment.now_ms || fired.missed >= MISSED_MAX;
            if over || self.facts.catch_up {
                return Some(fired);
            }
            fired.at_ms = fired.next_ms;
            fired.missed += 1;
        }
    }

    /// Returns when [`Schedule::fire`] next returns a tick; `None` if the schedule is deleted.
    pub fn due_ms(&self) -> Option<u64> {
        (!self.deleted).then_some(self.next_ms)
    }

    /// Returns the event that deletes the schedule; `None` if it is deleted already.
    pub fn delete(&self) -> Option<Body> {
        (!self.deleted).then_some(Body::ScheduleDeleted(ScheduleDeleted {}))
    }

    /// Returns the id of the work that a tick submits: `<schedule_id>:2026-01-01T00:00:00.000Z`.
    pub fn tick_id(&self, at_ms: u64) -> String {
        let at = i64::try_from(at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let at = at.unwrap_or(Timestamp::MAX);
        format!("{}:{}", self.id, at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
    }
}

/// Returns the subject of a schedule's events.
pub fn subject(id: &str) -> String {
    format!("schedule/{id}")
}

/// Decides whether a schedule may be created, and sets its first tick. `earlier` is the schedule with that id, if there
/// is one.
pub fn create(
    earlier: Option<&Schedule>,
    id: &str,
    facts: ScheduleCreated,
    input: &PayloadRef,
    moment: &Moment,
) -> Result<Created, Refusal> {
    if let Some(earlier) = earlier.filter(|earlier| !earlier.deleted) {
        let same = ScheduleCreated { next_ms: earlier.facts.next_ms, ..facts } == earlier.facts
            && earlier.input.is_some_and(|first| first.cid == input.cid);
        return match same {
            true => Ok(Created::Known),
            false => {
                Err(Refusal::new(Code::AlreadyExists, format!("schedule {id} exists with other content"))
                    .hint("delete it first, or use a new schedule_id"))
            }
        };
    }
    let refused = |fault: String| Refusal::new(Code::InvalidArgument, fault);
    if !name_allowed(id) || id.len() > ID_MAX {
        return Err(refused(format!("schedule_id: 1 to {ID_MAX} characters of A-Z a-z 0-9 . _ : / -")));
    }
    let beat = Beat::read(&facts.rhythm).map_err(refused)?;
    let next_ms = beat.next_ms(moment.now_ms);
    let next_ms = next_ms.ok_or_else(|| refused("cron: no such day ever comes".to_owned()))?;
    Ok(Created::New(ScheduleCreated { next_ms, ..facts }))
}

/// A rhythm, parsed and checked.
enum Beat {
    Every { ms: u64 },
    Cron(Cron),
}

impl Beat {
    fn read(rhythm: &Rhythm) -> Result<Self, String> {
        match rhythm {
            Rhythm::Cron { line } => {
                Cron::read(line).map(Self::Cron).map_err(|fault| format!("cron: {fault}"))
            }
            Rhythm::Every { ms } if (EVERY_MIN_MS..=SPAN_MAX_MS).contains(ms) => Ok(Self::Every { ms: *ms }),
            Rhythm::Every { .. } => Err(format!("every_ms: from {EVERY_MIN_MS} to {SPAN_MAX_MS}")),
        }
    }

    /// Returns the first tick after a tick or after the creation; `None` if there is none.
    fn next_ms(&self, after_ms: u64) -> Option<u64> {
        match self {
            Self::Every { ms } => after_ms.checked_add(*ms),
            Self::Cron(cron) => cron.next_ms(after_ms),
        }
    }
}

#[cfg(test)]
mod tests;
