//! Exports: part of the log, or all of it, as other people's programs read it.
//!
//! Invariants:
//! - what is exported was fixed when it was selected; what is written meanwhile is not in it;
//! - memory does not grow with the export: events and blocks pass through one by one.

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
};

/// Ancestors in one export.
const ANCESTORS_MAX: usize = 1_000_000;
/// What the subject of a run begins with.
pub const RUN: &str = "workflow/";
/// Seqs looked up at once.
const BATCH: u64 = 1024;

/// What is exported.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    /// The events from `from` to `to`, both included; all of them where neither is set.
    Range { from: Option<u64>, to: Option<u64> },
    /// Everything about one entity; of a run, all that it takes to decide it again, and the calls it made.
    Subject(String),
    /// An event and all its causal ancestors, or those of every event that holds a payload.
    Ancestors(Cid),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Car,
    JsonLines,
    ProvJson,
}

impl Format {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "car" => Some(Self::Car),
            "jsonl" => Some(Self::JsonLines),
            "prov-json" => Some(Self::ProvJson),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Car => "car",
            Self::JsonLines => "jsonl",
            Self::ProvJson => "prov-json",
        }
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Self::Car => "application/vnd.ipld.car; version=1",
            Self::JsonLines => "application/x-ndjson",
            Self::ProvJson => "application/json",
        }
    }

    /// What a file of it ends with.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Car => "car",
            Self::JsonLines => "jsonl",
            Self::ProvJson => "prov.json",
        }
    }
}

/// A scope, found in the log.
#[derive(Clone, Debug)]
pub struct Selected {
    pub(super) seqs: Seqs,
    /// The first and the last seq.
    pub from: u64,
    pub to: u64,
    pub count: u64,
    pub(super) head: Head,
    /// The entity it is the record of.
    pub(super) subject: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) enum Seqs {
    /// All that fit; whether they follow each other without gaps.
    Fitting {
        filter: Box<Filter>,
        gapless: bool,
    },
    These(Vec<u64>),
}

/// Why an export broke off.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("the export cannot be written")]
    Io(#[from] io::Error),
}

impl View {
    /// Finds the events of `scope` under the signed head.
    pub fn select(&self, scope: &Scope, head: &Head) -> Result<Selected, QueryError> {
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
        let seqs = self.with_rotations(seqs, last)?;
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

    /// The same with the changes of keys before them: who has only the genesis block follows these to the key of the head.
    fn with_rotations(&self, seqs: Seqs, last: u64) -> Result<Seqs, QueryError> {
        let rotations = self.rotations(last)?;
        if rotations.is_empty() {
            return Ok(seqs);
        }
        let mut all = match seqs {
            // A whole log has them; of a part, only its own events are asked for.
            Seqs::Fitting { gapless: true, .. } => return Ok(seqs),
            Seqs::Fitting { filter, gapless: false } => self.all_seqs(&filter, 0)?,
            Seqs::These(seqs) => seqs,
        };
        if !all.is_empty() {
            all.extend(rotations);
            all.sort_unstable();
            all.dedup();
        }
        Ok(Seqs::These(all))
    }

    /// Where the log's keys changed, up to and with `last`.
    pub(super) fn rotations(&self, last: u64) -> Result<Vec<u64>, QueryError> {
        let filter = Filter { kind: Some(Kind::LogKeyRotated.as_str().to_owned()), ..Filter::default() };
        let mut seqs = self.all_seqs(&filter, 0)?;
        seqs.retain(|seq| *seq <= last);
        Ok(seqs)
    }

    /// The seqs of a run's events, those of its tasks and of the calls made for them; where it was made from another run,
    /// also what that run and its tasks had come to by then.
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

    /// All seqs that fit a filter, from `next` on.
    pub(super) fn all_seqs(&self, filter: &Filter, mut next: u64) -> Result<Vec<u64>, QueryError> {
        let mut all = Vec::new();
        loop {
            let seqs = self.seqs(filter, next, BATCH)?;
            let Some(last) = seqs.last() else { return Ok(all) };
            next = last + 1;
            all.extend(seqs);
        }
    }

    /// Writes what was selected.
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

    /// Gives every selected event to `visit`, in order.
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

/// An event in DAG-JSON with its own name added.
fn line(event: &Event) -> Result<Value, ExportError> {
    let ipld = decode_ipld(event.bytes()).map_err(|_| corrupt("an event"))?;
    let mut line = dag(&ipld);
    line["cid"] = event.cid().to_string().into();
    Ok(line)
}
