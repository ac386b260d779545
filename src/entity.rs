//! Entities: what has a life in the log, each folded from its events, one after another.
//!
//! Invariants:
//! - the same fold is used live, at a start, for the past and for the tables;
//! - an entity is begun once; what comes before its beginning changes nothing.

use std::{borrow::Borrow, sync::Arc};

use serde_json::Value;

use crate::{
    call::{self, Call},
    event::Event,
    peer::{self, Peer},
    schedule::{self, Schedule},
    task::{self, Task},
    worker::{self, Worker},
    workflow::{self, plan::Plan, run::Run},
};

/// What has a life in the log.
pub trait Entity: Sized {
    /// What its beginning needs beside the event.
    type Given;

    /// Returns the subject of the events of the entity with this id.
    fn subject(id: &str) -> String;

    /// Returns the entity that an event begins; `None` if it begins none.
    fn begun(event: &Event, given: &Self::Given) -> Option<Self>;

    /// Folds a later event; one of another entity changes nothing.
    fn apply(&mut self, event: &Event);
}

/// Folds an event into what there is of an entity.
pub fn follow<E: Entity>(entity: &mut Option<E>, event: &Event, given: &E::Given) {
    match entity {
        Some(entity) => entity.apply(event),
        None => *entity = E::begun(event, given),
    }
}

/// Returns what events come to, in their order; `None` if none of them begins an entity.
pub fn folded<E: Entity>(
    events: impl IntoIterator<Item = impl Borrow<Event>>,
    given: &E::Given,
) -> Option<E> {
    let mut entity = None;
    events.into_iter().for_each(|event| follow(&mut entity, event.borrow(), given));
    entity
}

/// As [`folded`], of events that are read on the way; the first that cannot be read ends it.
pub fn try_folded<E: Entity, F>(
    events: impl IntoIterator<Item = Result<Event, F>>,
    given: &E::Given,
) -> Result<Option<E>, F> {
    let mut entity = None;
    events.into_iter().try_for_each(|event| {
        follow(&mut entity, &event?, given);
        Ok(())
    })?;
    Ok(entity)
}

/// Says of types that they are entities and begin with an event alone.
macro_rules! entities {
    ($($entity:ident in $room:ident),* $(,)?) => {$(
        impl Entity for $entity {
            type Given = ();

            fn subject(id: &str) -> String {
                $room::subject(id)
            }

            fn begun(event: &Event, (): &()) -> Option<Self> {
                Self::begun(event)
            }

            fn apply(&mut self, event: &Event) {
                self.apply(event);
            }
        }
    )*};
}

entities! {
    Call in call,
    Peer in peer,
    Schedule in schedule,
    Task in task,
    Worker in worker,
}

impl Entity for Run {
    /// Its plan and its inputs.
    type Given = (Arc<Plan>, Arc<Value>);

    fn subject(id: &str) -> String {
        workflow::subject(id)
    }

    fn begun(event: &Event, (plan, inputs): &Self::Given) -> Option<Self> {
        Self::begun(event, plan.clone(), inputs.clone())
    }

    fn apply(&mut self, event: &Event) {
        self.apply(event);
    }
}
