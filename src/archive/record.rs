//! Records of runs, found in the log or in an archive that was imported beside it.
//!
//! Invariant: archives are asked only for a run of which the log has no event.

use crate::{
    archive::{
        evidence::Evidence,
        kept::{Archive, DIRECTORY},
    },
    event::Event,
    query::{
        QueryError, View,
        lookup::corrupt,
        proof::Head,
        source::{Recorded, submitted},
    },
    workflow::{self, run::Run},
};

/// Holds all that a run is decided from.
pub struct RunRecord<'a> {
    /// The run after its submission, with its plan and inputs, and with what it takes over from another run.
    pub run: Run,
    /// The later events of the run and of its tasks, in order, up to the seq that was asked for.
    pub events: Vec<Event>,
    pub contents: Recorded<'a>,
    /// The archive in which the record was found; none if it was found in the log.
    pub archive: Option<FoundArchive>,
}

/// Names an archive in which a record was found.
#[derive(Clone, Debug)]
pub struct FoundArchive {
    /// Says whether its events are shown to be those that the log's key signed.
    pub evidence: Evidence,
}

/// Returns the record of a run up to and including the seq `as_of`, from the log or else from the archives beside it.
/// Returns none if neither has the run, or if it was submitted after `as_of`.
pub fn run_record<'a>(
    view: &'a View,
    workflow_id: &str,
    as_of: Option<u64>,
) -> Result<Option<RunRecord<'a>>, QueryError> {
    if let Some((run, events)) = submitted(&view, workflow_id, as_of)? {
        let contents = Recorded::new(view);
        return Ok(Some(RunRecord { run, events, contents, archive: None }));
    }
    let subject = workflow::subject(workflow_id);
    if !view.load(&subject, None)?.what.is_empty() {
        return Ok(None);
    }
    let Some(archive) = Archive::of_subject(&view.directory().join(DIRECTORY), &subject)? else {
        return Ok(None);
    };
    let Some((run, events)) = submitted(&archive, workflow_id, as_of)? else { return Ok(None) };
    let kept = Some(FoundArchive { evidence: archive.evidence().clone() });
    Ok(Some(RunRecord { run, events, contents: Recorded::new(archive), archive: kept }))
}

impl RunRecord<'_> {
    /// Returns whether the run's events are shown to be those that their log's key signed. `head` is the head of our
    /// own log.
    pub fn evidence(&self, view: &View, head: &Head) -> Result<Evidence, QueryError> {
        if let Some(kept) = &self.archive {
            return Ok(kept.evidence.clone());
        }
        let first =
            view.log.event_at(self.run.seq)?.ok_or_else(|| corrupt("a run without its submission"))?;
        let later = self.events.iter().filter(|event| event.fields().seq != self.run.seq);
        let events: Vec<Event> = std::iter::once(&first).chain(later).cloned().collect();
        view.evidence(&events, head)
    }
}
