//! Workers in the state: a row each, as the folded worker says.
//!
//! Invariants:
//! - a row is written at each event of its worker; what its tasks come to is counted beside it;
//! - a worker that never registered has no row.

use rusqlite::params;

use super::WORKERS_SHOWN;
use crate::{
    entity,
    event::Event,
    state::{StateError, fold::Folder},
    worker::{Presence, Worker},
};

impl Folder {
    pub(super) fn worker_turned(&mut self, event: &Event, id: u64) -> Result<(), StateError> {
        let mut worker: Option<Worker> = match self.entities.workers.take(id) {
            Some(worker) => Some(worker),
            None => entity::try_folded(self.events_before(id, event.fields().seq)?, &())?,
        };
        entity::follow(&mut worker, event, &());
        let Some(worker) = worker else { return Ok(()) };
        let name = self.word(&worker.id)?;
        let shown = worker.presence.status();
        let until_ms = match worker.presence {
            Presence::Draining { until_ms } => Some(until_ms),
            Presence::Registered | Presence::Lost | Presence::Unregistered => None,
        };
        self.insert(
            "INSERT INTO worker (id, name, status, capabilities, max_concurrent, registered_ms, until_ms, seq)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (id) DO UPDATE SET status = ?3, capabilities = ?4, max_concurrent = ?5,
             registered_ms = ?6, until_ms = ?7, seq = ?8",
            params![
                id,
                name,
                WORKERS_SHOWN.iter().position(|known| *known == shown),
                serde_json::Value::from(worker.facts.capabilities.clone()).to_string(),
                worker.facts.max_concurrent,
                worker.registered_ms,
                until_ms,
                worker.last_seq,
            ],
        )?;
        self.entities.workers.put(id, worker);
        Ok(())
    }
}
