//! Exports all or part of the log in formats that other programs read.
//!
//! Invariants:
//! - the selection fixes what is exported; events that are written later are not in the export;
//! - events and blocks pass through one by one; only seqs, names and the hashes of a proof are held in memory.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use serde_json::Value;

use crate::{
    block::{Cid, decode_ipld, json::dag},
    event::{Body, Event, Kind, work::WorkflowSubmitted},
    query::{
        QueryError, View,
        list::Filter,
        lookup::{Found, corrupt},
        proof::Head,
        work,
    },
    words::words,
};

/// An export of ancestors holds at most this many events.
const ANCESTORS_MAX: usize = 1_000_000;
/// The subject of a run begins with this.
pub const RUN: &str = "workflow/";
/// This many seqs are looked up at once.
const BATCH: u64 = 1024;

/// Says what is exported.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    /// The events from `from` to `to`, both included; a side that is not set is open.
    Range { from: Option<u64>, to: Option<u64> },
    /// The events of one entity. For a run: all that is needed to decide it again, and the calls it made.
    Subject(String),
    /// An event and all its causal ancestors. For the CID of a payload: every event that holds it, and their ancestors.
    Ancestors(Cid),
}

words! {
    pub enum Format {
        Car = "car",
        JsonLines = "jsonl",
        ProvJson = "prov-json",
    }
}

impl Format {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Car => "application/vnd.ipld.car; version=1",
            Self::JsonLines => "application/x-ndjson",
            Self::ProvJson => "application/json",
        }
    }

    /// Returns the extension of a file in this format.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Car => "car",
            Self::JsonLines => "jsonl",
            Self::ProvJson => "prov.json",
        }
    }
}

/// Holds a scope after it was looked up in the log.
#[derive(Clone, Debug)]
pub struct Selected {
    pub(super) seqs: Seqs,
    /// Holds the first seq, as `to` holds the last one.
    pub from: u64,
    pub to: u64,
    pub count: u64,
    pub(super) head: Head,
    /// Names the entity if the export is the record of one.
    pub(super) subject: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) enum Seqs {
    /// All events that fit the filter. `gapless` says that their seqs have no gaps.
    Fitting {
        filter: Box<Filter>,
        gapless: bool,
    },
    These(Vec<u64>),
}

/// Says why an export broke off.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("the export cannot be written")]
    Io(#[from] io::Error),
}

impl View {
    /// Looks up the events of `scope` under the signed head. An archive has the log's key rotations in addition.
    /// Errors: `NotFound` if there is none.
    pub fn select(&self, scope: &Scope, format: Format, head: &Head) -> Result<Selected, QueryError> {
        let last = head.size.saturating_sub(1);
        let (seqs, what) = match scope {
            Scope::Range { from, to } => {
                let filter = Box::new(Filter {
                    from_seq: Some(from.unwrap_or(0)),
                    to_seq: Some(to.unwrap_or(last).min(last)),
                    ..Filter::default()
                });
                let gapless = true;
                (Seqs::Fitting { filter, gapless }, "no event of this range".to_owned())
            }
            Scope::Subject(subject) if subject.starts_with(RUN) => {
                let mut seqs = self.run_seqs(&subject[RUN.len()..])?;
                seqs.retain(|seq| *seq <= last);
                (Seqs::These(seqs), format!("subject {subject}"))
            }
            Scope::Subject(subject) => {
                let filter = Box::new(Filter {
                    subject: Some(subject.clone()),
                    to_seq: Some(last),
                    ..Filter::default()
                });
                let gapless = false;
                (Seqs::Fitting { filter, gapless }, format!("subject {subject}"))
            }
            Scope::Ancestors(cid) => {
                let starts = match self.find(cid) {
                    Ok(Found::Event(event)) => vec![event.fields().seq],
                    Ok(Found::Block { .. }) | Err(QueryError::Erased { .. }) => {
                        self.holders(cid, ANCESTORS_MAX)?
                    }
                    Err(err) => return Err(err),
                };
                (Seqs::These(self.ancestors(&starts, ANCESTORS_MAX)?), format!("an event of {cid}"))
            }
        };
        let seqs = match format {
            Format::Car => self.with_rotations(seqs, last)?,
            Format::JsonLines | Format::ProvJson => seqs,
        };
        let (from, to, count) = match &seqs {
            Seqs::These(seqs) => (seqs.first().copied(), seqs.last().copied(), seqs.len() as u64),
            Seqs::Fitting { filter, .. } => {
                let first = self.seqs(filter, 0, 1)?.first().copied();
                (first, self.last_seq(filter)?, self.count(filter)?)
            }
        };
        let (Some(from), Some(to)) = (from, to) else {
            return Err(QueryError::NotFound(what));
        };
        let subject = match scope {
            Scope::Subject(subject) => Some(subject.clone()),
            Scope::Range { .. } | Scope::Ancestors(_) => None,
        };
        Ok(Selected { seqs, from, to, count, head: head.clone(), subject })
    }

    /// Adds the events that rotated the log's keys up to `last`. A reader with only the genesis block needs them to get
    /// to the key that signed the head.
    fn with_rotations(&self, seqs: Seqs, last: u64) -> Result<Seqs, QueryError> {
        let rotations = self.rotations(last)?;
        if rotations.is_empty() {
            return Ok(seqs);
        }
        let mut all = match seqs {
            // A whole log has its rotations anyway, and so has a range that reaches over all of them.
            Seqs::Fitting { filter, gapless: true } if rotations.iter().all(|seq| within(&filter, *seq)) => {
                return Ok(Seqs::Fitting { filter, gapless: true });
            }
            Seqs::Fitting { filter, .. } => self.all_seqs(&filter, 0)?,
            Seqs::These(seqs) => seqs,
        };
        if !all.is_empty() {
            all.extend(rotations);
            all.sort_unstable();
            all.dedup();
        }
        Ok(Seqs::These(all))
    }

    /// Returns the seqs of the log's key rotations up to and including `last`.
    pub(super) fn rotations(&self, last: u64) -> Result<Vec<u64>, QueryError> {
        let filter = Filter { kind: Some(Kind::LogKeyRotated.as_str().to_owned()), ..Filter::default() };
        let mut seqs = self.all_seqs(&filter, 0)?;
        seqs.retain(|seq| *seq <= last);
        Ok(seqs)
    }

    /// Returns the seqs of a run's events, of its tasks' events and of the calls made for them. If the run was made
    /// from another run, adds the earlier events of that run and its tasks.
    fn run_seqs(&self, id: &str) -> Result<Vec<u64>, QueryError> {
        let mut seqs = BTreeSet::from_iter(work::events_of_run(&self.state, id)?);
        seqs.extend(work::calls_of_run(&self.state, id)?);
        let first = work::run_known(&self.state, id)?.map(|first| self.log.event_at(first)).transpose()?;
        if let Some(event) = first.flatten()
            && let Some(Body::WorkflowSubmitted(WorkflowSubmitted { origin: Some(origin), .. })) =
                event.body()
        {
            let before = work::events_of_run(&self.state, &origin.run)?;
            seqs.extend(before.into_iter().filter(|seq| *seq < event.fields().seq));
        }
        Ok(seqs.into_iter().collect())
    }

    /// Returns all seqs from `next` on that fit a filter.
    pub(super) fn all_seqs(&self, filter: &Filter, mut next: u64) -> Result<Vec<u64>, QueryError> {
        let mut all = Vec::new();
        loop {
            let seqs = self.seqs(filter, next, BATCH)?;
            let Some(last) = seqs.last() else { return Ok(all) };
            next = last + 1;
            all.extend(seqs);
        }
    }

    /// Writes the selected events to `to` in a format, and flushes it.
    pub fn export(&self, selected: &Selected, format: Format, to: &mut dyn Write) -> Result<(), ExportError> {
        match format {
            Format::Car => self.export_car(selected, to),
            Format::JsonLines => self.visit(selected, &mut |event| {
                writeln!(to, "{}", line(event)?)?;
                Ok(())
            }),
            Format::ProvJson => self.export_prov(selected, to),
        }?;
        Ok(to.flush()?)
    }

    /// Calls `visit` with every selected event, in order.
    pub(super) fn visit(
        &self,
        selected: &Selected,
        visit: &mut dyn FnMut(&Event) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let mut one = |seq: u64| -> Result<(), ExportError> {
            let event = self.log.event_at(seq).map_err(QueryError::from)?;
            visit(&event.ok_or_else(|| corrupt("an event is missing"))?)
        };
        match &selected.seqs {
            Seqs::These(seqs) => seqs.iter().try_for_each(|seq| one(*seq)),
            Seqs::Fitting { filter, .. } => {
                let mut next = selected.from;
                loop {
                    let seqs = self.seqs(filter, next, BATCH)?;
                    let Some(last) = seqs.last() else {
                        return Ok(());
                    };
                    next = last + 1;
                    seqs.into_iter().try_for_each(&mut one)?;
                }
            }
        }
    }
}

/// Returns whether a seq is in the range of a filter.
fn within(filter: &Filter, seq: u64) -> bool {
    filter.from_seq.is_none_or(|from| from <= seq) && filter.to_seq.is_none_or(|to| seq <= to)
}

/// Returns an event as DAG-JSON with its CID added as `cid`.
fn line(event: &Event) -> Result<Value, ExportError> {
    let ipld = decode_ipld(event.bytes()).map_err(|_| corrupt("an event"))?;
    let mut line = dag(&ipld);
    line["cid"] = event.cid().to_string().into();
    Ok(line)
}
