//! Schedules: creating, deleting and firing them.
//!
//! Invariants:
//! - a tick of a schedule is one commit with what it makes.

use crate::{
    block::{
        encode,
        payload::{Payload, SealedPayload},
    },
    error::{Code, Refusal},
    event::{
        Body, Role,
        work::{ScheduleCreated, ScheduleFired},
    },
    ledger::{
        commit::{By, Fault, Stop, payload_ref},
        holding::{agenda::Due, crew::Timetable},
        work::{CreateSchedule, DeleteSchedule, Made, NewRun, SubmitTask, Worked},
        world::World,
    },
    schedule::{self, Created, Schedule},
};

/// Schedules that are not deleted.
const SCHEDULES_MAX: usize = 1000;
/// The media type of what a schedule makes.
const DAG_CBOR: &str = "application/vnd.ipld.dag-cbor";

impl CreateSchedule {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { schedule: id, rhythm, catch_up, makes } = self;
        let what = sealed(&makes, world)?;
        let what_ref = payload_ref(&what, Role::Input);
        let kind = match &*makes {
            Made::Task { .. } => "task",
            Made::Workflow { .. } => "workflow",
        };
        let facts = ScheduleCreated { rhythm, makes: kind.to_owned(), catch_up, next_ms: 0 };
        // One whose content was erased is created anew, with its content.
        let known = world.holding.crew.schedules.get(&id).filter(|known| known.makes.is_some());
        let known = known.map(|timetable| &timetable.schedule);
        let facts = match schedule::create(known, &id, facts, &what_ref, &world.moment())? {
            Created::Known => {
                let next_ms = known.map(|known| known.next_ms);
                return Ok(Worked::Schedule { schedule: id, next_ms, replayed: true });
            }
            Created::New(facts) => facts,
        };
        if world.holding.crew.schedules.len() >= SCHEDULES_MAX {
            let refusal = format!("there are {SCHEDULES_MAX} schedules already");
            let refusal = Refusal::new(Code::ResourceExhausted, refusal);
            return Err(refusal.hint("delete those that are not needed").into());
        }
        world.commit.store(Some(what));
        let body = Body::ScheduleCreated(facts);
        let event = world.commit.seal(by.fact(schedule::subject(&id), body, by.noted(vec![what_ref])))?;
        let schedule = Schedule::begun(event).ok_or(Fault::Broken { what: "a schedule cannot be read" })?;
        let next_ms = schedule.next_ms;
        world.holding.agenda.put(next_ms, Due::Schedule(id.clone()));
        world.holding.crew.schedules.insert(id.clone(), Timetable { schedule, makes: Some(*makes) });
        Ok(Worked::Schedule { schedule: id, next_ms: Some(next_ms), replayed: false })
    }
}

/// Seals what a schedule makes as a payload. Refuses what is over the bound.
fn sealed(makes: &Made, world: &World) -> Result<SealedPayload, Stop> {
    Payload::seal(&world.salt, DAG_CBOR, &encode(makes)).map_err(|_| {
        let refusal = "what the schedule makes is over the bound of a payload";
        Refusal::new(Code::ResourceExhausted, refusal).into()
    })
}

impl DeleteSchedule {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let id = self.schedule;
        let Some(timetable) = world.holding.crew.schedules.get(&id) else {
            let refusal = Refusal::new(Code::NotFound, format!("no schedule `{id}`"));
            return Err(refusal.hint("schedule_list names those there are").into());
        };
        if let Some(body) = timetable.schedule.delete() {
            world.commit.seal(by.fact(schedule::subject(&id), body, by.noted(Vec::new())))?;
        }
        world.holding.crew.schedules.remove(&id);
        Ok(Worked::Schedule { schedule: id, next_ms: None, replayed: false })
    }
}

impl World {
    /// Fires one tick of a schedule. Ticks that were missed come one at a time, each due like anything else.
    pub(super) fn schedule_due(&mut self, id: &str, by: &By) -> Result<(), Stop> {
        let Some(timetable) = self.holding.crew.schedules.get(id) else { return Ok(()) };
        // It is looked at again when its content is recorded again.
        let Some(makes) = timetable.makes.clone() else { return Ok(()) };
        if let Some(facts) = timetable.schedule.fire(&self.moment()) {
            let tick = timetable.schedule.tick_id(facts.at_ms);
            // What it makes is asked for by who made the schedule.
            let actor = timetable.schedule.actor.clone();
            let refused = self.tick_refused(&tick, &makes)?;
            if let Some(refusal) = &refused {
                tracing::warn!(tick, reason = refusal.message, "a schedule's tick makes nothing");
            }
            let body = Body::ScheduleFired(ScheduleFired { skipped: refused.is_some(), ..facts });
            let event = self.commit.seal(by.fact(schedule::subject(id), body, Vec::new()))?;
            let fired = event.cid();
            if let Some(timetable) = self.holding.crew.schedules.get_mut(id) {
                timetable.schedule.apply(event);
            }
            if refused.is_none() {
                self.make(&tick, makes, &By { cause: Some(fired), ..By::new(actor) })?;
            }
        }
        let due = self.holding.crew.schedules.get(id).and_then(|timetable| timetable.schedule.due_ms());
        if let Some(due) = due {
            self.holding.agenda.put(due, Due::Schedule(id.to_owned()));
        }
        Ok(())
    }

    /// Returns why the task or run of a tick may not be submitted, as far as that can be known before.
    fn tick_refused(&mut self, id: &str, makes: &Made) -> Result<Option<Refusal>, Stop> {
        match makes {
            Made::Task { facts, input, .. } => {
                let input_ref = payload_ref(&self.payload(input)?, Role::Input);
                match self.new_task(id, facts.clone(), &input_ref) {
                    Ok(_) => Ok(None),
                    Err(stop) => stop.refusal().map(Some),
                }
            }
            Made::Workflow { .. } => Ok(self.runs_full()),
        }
    }

    /// Submits what a schedule makes at a tick.
    fn make(&mut self, id: &str, makes: Made, by: &By) -> Result<(), Stop> {
        let made = match makes {
            Made::Task { facts, tool, input } => {
                let input = self.payload(&input)?;
                SubmitTask { id: id.to_owned(), facts, tool, input, metadata: None }.rule(self, by)
            }
            Made::Workflow { plan, inputs, priority, tags, max_parallel, deadline_ms } => {
                let new = NewRun {
                    id: id.to_owned(),
                    inputs: self.payload(&inputs)?,
                    plan,
                    priority,
                    tags,
                    dependencies: Vec::new(),
                    max_parallel,
                    deadline_ms,
                    peer: None,
                };
                self.submit_run(new, by)
            }
        };
        if let Err(stop) = made {
            let reason = stop.refusal()?.message;
            tracing::warn!(id, reason, "a schedule's tick could not be submitted");
        }
        Ok(())
    }
}
