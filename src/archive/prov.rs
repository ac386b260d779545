//! Exports as PROV-JSON (W3C member submission of 2013): calls are activities, payloads and contracts are entities.
//!
//! Invariant: the id of an activity or entity is `ipld:<cid>`, so it can be checked against the log.

use std::{collections::HashSet, io::Write};

use serde_json::{Value, json};

use crate::{
    archive::export::{ExportError, Selected},
    block::Cid,
    event::{Event, Role},
    query::{self, QueryError, View},
};

/// Declares the prefixes of ids and attributes.
const PREFIXES: &str = r#"{"ipld": "ipld://", "cairn": "urn:cairn:prov:"}"#;

/// Lists the kinds of PROV statements that are made. Each has its own part of the document.
#[derive(Clone, Copy)]
enum Part {
    Activity,
    Entity,
    Agent,
    Used,
    WasGeneratedBy,
    WasInformedBy,
    WasAssociatedWith,
}

impl Part {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Activity, "activity"),
        (Self::Entity, "entity"),
        (Self::Agent, "agent"),
        (Self::Used, "used"),
        (Self::WasGeneratedBy, "wasGeneratedBy"),
        (Self::WasInformedBy, "wasInformedBy"),
        (Self::WasAssociatedWith, "wasAssociatedWith"),
    ];
}

impl View {
    /// Writes the document. The events are read once for each part, because the document groups statements by kind.
    pub(super) fn export_prov(&self, selected: &Selected, to: &mut dyn Write) -> Result<(), ExportError> {
        write!(to, "{{\"prefix\": {PREFIXES}")?;
        for (part, name) in Part::ALL {
            write!(to, ",\n\"{name}\": {{")?;
            let mut between = "\n";
            let mut said = HashSet::new();
            self.visit(selected, &mut |event| {
                for (id, statement) in self.statements(part, event)? {
                    if said.insert(id.clone()) {
                        write!(to, "{between}{}: {statement}", Value::String(id))?;
                        between = ",\n";
                    }
                }
                Ok(())
            })?;
            write!(to, "}}")?;
        }
        writeln!(to, "}}")?;
        Ok(())
    }

    /// Returns the statements that one event adds to a part of the document, by their ids.
    fn statements(&self, part: Part, event: &Event) -> Result<Vec<(String, Value)>, QueryError> {
        let fields = event.fields();
        let seq = fields.seq;
        let started = fields.kind == "call.started";
        let Some(activity) = self.activity(event)? else {
            return Ok(Vec::new());
        };
        let payloads = fields.pay.iter().enumerate();
        Ok(match part {
            Part::Activity if started => {
                let mut about = json!({
                    "prov:startTime": time(fields.ts),
                    "cairn:seq": seq,
                    "cairn:subject": fields.subject,
                });
                if let Some(ended) = self.ended(seq)? {
                    about["prov:endTime"] = time(ended).into();
                }
                vec![(activity, about)]
            }
            Part::Entity => {
                let payload = |pay: &crate::event::PayloadRef| {
                    let about = json!({"prov:type": "cairn:payload", "cairn:bytes": pay.len});
                    (id(&pay.cid), about)
                };
                let contract = fields.tool.map(|cid| (id(&cid), json!({"prov:type": "cairn:contract"})));
                fields.pay.iter().map(payload).chain(contract).collect()
            }
            Part::Agent if started => {
                let about = json!({"cairn:id": fields.actor.id, "cairn:role": fields.actor.role});
                vec![(agent(event), about)]
            }
            Part::Used => payloads
                .filter(|(_, pay)| pay.role == Role::Input)
                .map(|(n, pay)| (format!("_:u{seq}.{n}"), id(&pay.cid)))
                .chain(fields.tool.filter(|_| started).map(|tool| (format!("_:u{seq}.tool"), id(&tool))))
                .map(|(name, entity)| (name, json!({"prov:activity": activity, "prov:entity": entity})))
                .collect(),
            Part::WasGeneratedBy => payloads
                .filter(|(_, pay)| pay.role != Role::Input)
                .map(|(n, pay)| {
                    let made = json!({
                        "prov:entity": id(&pay.cid),
                        "prov:activity": activity,
                        "prov:time": time(fields.ts),
                    });
                    (format!("_:g{seq}.{n}"), made)
                })
                .collect(),
            Part::WasInformedBy if started => self.informants(event, &activity)?,
            Part::WasAssociatedWith if started => {
                let statement = json!({"prov:activity": activity, "prov:agent": agent(event)});
                vec![(format!("_:a{seq}"), statement)]
            }
            Part::Activity | Part::Agent | Part::WasInformedBy | Part::WasAssociatedWith => Vec::new(),
        })
    }

    /// Returns the calls that a call's start names as its parents.
    fn informants(&self, event: &Event, activity: &str) -> Result<Vec<(String, Value)>, QueryError> {
        let fields = event.fields();
        let mut informants = Vec::new();
        for (n, parent) in fields.cause.iter().chain(&fields.refs).enumerate() {
            if let Some(parent) = self.event(parent)?
                && let Some(informant) = self.activity(&parent)?
            {
                let informed = json!({"prov:informed": activity, "prov:informant": informant});
                informants.push((format!("_:i{}.{n}", fields.seq), informed));
            }
        }
        Ok(informants)
    }

    /// Returns the id of the call that an event belongs to: the CID of its start.
    fn activity(&self, event: &Event) -> Result<Option<String>, QueryError> {
        let fields = event.fields();
        Ok(match fields.kind.as_str() {
            "call.started" => Some(id(&event.cid())),
            "call.answered" => self.asked_by(event)?.as_ref().map(id),
            kind if kind.starts_with("call.") => fields.cause.as_ref().map(id),
            _ => None,
        })
    }

    /// Returns the start of the call in which an answer was given: the cause of its question, or its own if it came with
    /// the request.
    fn asked_by(&self, answered: &Event) -> Result<Option<Cid>, QueryError> {
        let Some(cause) = answered.fields().cause else { return Ok(None) };
        let asked = self.event(&cause)?.filter(|event| event.fields().kind == "call.asked");
        Ok(asked.map_or(Some(cause), |asked| asked.fields().cause))
    }

    /// Returns when the call that started at `seq` ended, in microseconds since the epoch.
    fn ended(&self, seq: u64) -> Result<Option<u64>, QueryError> {
        let Some(ended) = query::ending_of(&self.state, seq)? else { return Ok(None) };
        let mut statement = self.state.prepare_cached("SELECT ts FROM entry WHERE seq = ?1")?;
        Ok(Some(statement.query_row([ended], |row| row.get(0))?))
    }
}

fn id(cid: &Cid) -> String {
    format!("ipld:{cid}")
}

/// Returns the id of an event's actor. An actor has no CID, and its id may hold characters that a PROV qualified name
/// may not, so it is written in hex.
fn agent(event: &Event) -> String {
    let encoded = data_encoding::HEXLOWER.encode(event.fields().actor.id.as_bytes());
    format!("cairn:agent-{encoded}")
}

/// Formats microseconds since the epoch as in RFC 3339.
fn time(ts: u64) -> String {
    let micros = i64::try_from(ts).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(micros).map_or_else(|_| ts.to_string(), |time| time.to_string())
}
