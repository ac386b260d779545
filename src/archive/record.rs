//! Runs on record: in the log, or in an archive that was imported beside it.
//!
//! Invariant: the log comes first; archives are asked only for what the log has never heard of.

use crate::{
    archive::{
        evidence::Evidence,
        kept::{Archive, DIRECTORY},
    },
    block::Cid,
    event::Event,
    query::{
        QueryError, View,
        lookup::corrupt,
        proof::Head,
        source::{Recorded, submitted},
    },
    workflow::{self, run::Run},
};

/// All that a run is decided from.
pub struct RunRecord<'a> {
    /// As its submission left it, told what it takes over; with its plan and inputs.
    pub run: Run,
    /// What followed, in order, as far as was asked for: the run's own events and those of its tasks.
    pub events: Vec<Event>,
    pub contents: Recorded<'a>,
    /// The archive it was found in; none where it stands in the log.
    pub archive: Option<Kept>,
}

/// An archive that a record was found in.
#[derive(Clone, Debug)]
pub struct Kept {
    pub root: Cid,
    /// What shows that its events are those that its log's key signed.
    pub evidence: Evidence,
}

/// The record of a run up to and with `as_of`, from the log or else from the archives beside it; none where neither
/// has it, or it was not known then.
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
    let kept = Some(Kept { root: archive.root(), evidence: archive.evidence().clone() });
    Ok(Some(RunRecord { run, events, contents: Recorded::new(archive), archive: kept }))
}

impl RunRecord<'_> {
    /// What shows that the run's events are those that its log's key signed; `head` is that of our own log.
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
