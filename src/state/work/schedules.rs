//! Schedules in the state: a row each, as the folded schedule says.
//!
//! Invariants:
//! - a row is written at each event of its schedule;
//! - a schedule that is not in memory is taken from its row: of its ticks there may be millions.

use rusqlite::{OptionalExtension, params};

use crate::{
    entity,
    event::{Event, work::Rhythm},
    schedule::Schedule,
    state::{StateError, fold::Folder},
};

impl Folder {
    pub(super) fn schedule_turned(&mut self, event: &Event, id: u64) -> Result<(), StateError> {
        let seq = event.fields().seq;
        let known = match self.entities.schedules.take(id) {
            Some(known) => Some(known),
            None => self.schedule(id)?,
        };
        let (created, mut schedule) = known.unzip();
        entity::follow(&mut schedule, event, &());
        let Some(schedule) = schedule else { return Ok(()) };
        let created = created.filter(|_| schedule.created != event.cid()).unwrap_or(seq);
        let name = self.word(&schedule.id)?;
        let (cron, every_ms) = match &schedule.facts.rhythm {
            Rhythm::Cron { line } => (Some(line), None),
            Rhythm::Every { ms } => (None, Some(ms)),
        };
        self.insert(
            "INSERT INTO schedule (id, name, created, cron, every_ms, makes, next_ms, last_ms, fired, missed, skipped,
             deleted) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
             ON CONFLICT (id) DO UPDATE SET created = ?3, cron = ?4, every_ms = ?5, makes = ?6, next_ms = ?7,
             last_ms = ?8, fired = ?9, missed = ?10, skipped = ?11, deleted = ?12",
            params![
                id,
                name,
                created,
                cron,
                every_ms,
                schedule.facts.makes,
                schedule.next_ms,
                schedule.last_tick_ms,
                schedule.fired,
                schedule.missed,
                schedule.skipped,
                schedule.deleted,
            ],
        )?;
        self.entities.schedules.put(id, (created, schedule));
        Ok(())
    }

    /// The schedule of a row, with the seq of the event that created it; which event was its last, no row tells.
    fn schedule(&self, id: u64) -> Result<Option<(u64, Schedule)>, StateError> {
        let sql =
            "SELECT created, next_ms, last_ms, fired, missed, skipped, deleted FROM schedule WHERE id = ?1";
        let mut find = self.state.prepare_cached(sql)?;
        let created = find.query_row([id], |row| row.get(0)).optional()?;
        let Some(created) = created else { return Ok(None) };
        let Some(begun) = self.log.event_at(created)?.as_ref().and_then(Schedule::begun) else {
            return Err(StateError::Broken { what: "a schedule's row has no beginning in the log" });
        };
        let schedule = find.query_row([id], |row| {
            Ok(Schedule {
                next_ms: row.get(1)?,
                last_tick_ms: row.get(2)?,
                fired: row.get(3)?,
                missed: row.get(4)?,
                skipped: row.get(5)?,
                deleted: row.get(6)?,
                ..begun
            })
        })?;
        Ok(Some((created, schedule)))
    }
}
