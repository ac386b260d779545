//! Events as JSON: the keys of their schema, their names, and what is known of their payloads.
//!
//! Invariants:
//! - payload content is shown only where it was asked for, and at most [`INLINE_MAX`] bytes of it an answer;
//! - one form: text and values are written from the same [`Shown`].

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, HashSet},
};

use ipld_core::ipld::Ipld;
use rusqlite::Row;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{QueryError, View, erasure::Erasure};
use crate::{
    block::{
        Cid,
        json::{Dag, Link, Text},
    },
    event::{Event, Role},
    log::sqlite::blocks,
};

/// Bytes of payload content in one answer; further content is left out and named by its CID.
pub const INLINE_MAX: usize = 16 * 1024 * 1024;
/// Blocks that are skipped in search of the next payload before it is looked up by its CID.
const PASSED_MAX: usize = 8;

/// How payloads are shown within events.
pub struct Payloads {
    /// Bytes of content that may still be shown.
    left: Cell<usize>,
    /// Payloads whose content was shown.
    shown: Cell<u64>,
}

/// An event with the keys of its schema and `cid`; each payload has its media type (null if its content is not here)
/// and the event that erased it.
#[derive(Serialize)]
pub struct Shown<'a> {
    cid: Text,
    v: u64,
    kind: &'a str,
    log: Link,
    seq: u64,
    prev: Option<Link>,
    cause: Option<Link>,
    refs: Vec<Link>,
    actor: ShownActor<'a>,
    subject: &'a str,
    tool: Option<Link>,
    pay: Vec<ShownPayload>,
    #[serde(serialize_with = "facts")]
    body: &'a BTreeMap<String, Ipld>,
    ts: u64,
}

#[derive(Serialize)]
struct ShownActor<'a> {
    id: &'a str,
    role: &'a str,
    proof: Option<Link>,
}

#[derive(Serialize)]
struct ShownPayload {
    cid: Link,
    len: u64,
    role: Role,
    #[serde(flatten)]
    erased: Option<ShownErasure>,
    media: Option<String>,
    #[serde(flatten)]
    content: Map<String, Value>,
}

/// The event that erased a payload, if no later event has recorded it again.
#[derive(Serialize)]
struct ShownErasure {
    erased: bool,
    erased_by: Link,
    erased_seq: u64,
}

/// A payload's envelope without its content.
#[derive(Deserialize)]
struct Envelope<'a> {
    media: &'a str,
}

impl Payloads {
    /// Shows CIDs, media types and lengths only.
    pub fn named() -> Self {
        Self { left: Cell::new(0), shown: Cell::new(0) }
    }

    /// Shows content too, up to the bound.
    pub fn inline() -> Self {
        Self { left: Cell::new(INLINE_MAX), shown: Cell::new(0) }
    }

    /// Returns how many payloads' content was shown so far.
    pub fn shown(&self) -> u64 {
        self.shown.get()
    }

    fn take(&self, len: usize) -> bool {
        let left = self.left.get().checked_sub(len);
        self.left.set(left.unwrap_or(self.left.get()));
        left.is_some() && self.left.get() + len > 0
    }
}

impl View {
    /// Returns the events as they are shown. Their payloads are looked up together.
    pub fn shown<'a>(&self, events: &'a [Event], payloads: &Payloads) -> Result<Vec<Shown<'a>>, QueryError> {
        let media = self.media_of(events)?;
        events.iter().map(|event| self.shown_with(event, &media, payloads)).collect()
    }

    /// Returns one event as JSON.
    pub fn event_json(&self, event: &Event, payloads: &Payloads) -> Result<Value, QueryError> {
        let shown = self.shown(std::slice::from_ref(event), payloads)?;
        Ok(shown.first().map_or(Value::Null, |shown| serde_json::json!(shown)))
    }

    fn shown_with<'a>(
        &self,
        event: &'a Event,
        media: &HashMap<Cid, String>,
        payloads: &Payloads,
    ) -> Result<Shown<'a>, QueryError> {
        let fields = event.fields();
        let mut pay = Vec::with_capacity(fields.pay.len());
        for held in &fields.pay {
            let media = media.get(&held.cid).cloned();
            let mut content = Map::new();
            if media.is_some() && payloads.take(held.len as usize) {
                self.show_content(&held.cid, Some(held.len), &mut content)?;
                payloads.shown.set(payloads.shown.get() + 1);
            }
            let erased = if media.is_none() { self.erasure(&held.cid)? } else { None };
            let erased = erased.map(|Erasure { by, seq }| ShownErasure {
                erased: true,
                erased_by: Link(by),
                erased_seq: seq,
            });
            let (cid, len, role) = (Link(held.cid), held.len, held.role);
            pay.push(ShownPayload { cid, len, role, erased, media, content });
        }
        let actor = &fields.actor;
        Ok(Shown {
            cid: Text(event.cid()),
            v: fields.v,
            kind: &fields.kind,
            log: Link(fields.log),
            seq: fields.seq,
            prev: fields.prev.map(Link),
            cause: fields.cause.map(Link),
            refs: fields.refs.iter().copied().map(Link).collect(),
            actor: ShownActor { id: &actor.id, role: &actor.role, proof: actor.proof.map(Link) },
            subject: &fields.subject,
            tool: fields.tool.map(Link),
            pay,
            body: &fields.body,
            ts: fields.ts,
        })
    }

    /// Returns the media types of the payloads in these events; erased ones have none.
    ///
    /// Blocks are stored with their events, so one payload's block follows the other's and few are looked up by CID.
    fn media_of(&self, events: &[Event]) -> Result<HashMap<Cid, String>, QueryError> {
        let held = || events.iter().flat_map(|event| event.fields().pay.iter().map(|pay| pay.cid));
        let mut open: HashSet<Cid> = held().collect();
        let mut media = HashMap::with_capacity(open.len());
        let sql = "SELECT digest, codec, bytes FROM log.block WHERE id >= ?1 ORDER BY id";
        let mut statement = self.state.prepare_cached(sql)?;
        for cid in held() {
            if !open.contains(&cid) {
                continue;
            }
            if let Some(number) = self.log.number_of(&cid)? {
                let mut rows = statement.query([number])?;
                let mut passed = 0;
                while let Some(row) = rows.next()?.filter(|_| passed < PASSED_MAX && !open.is_empty()) {
                    match name(row)?.filter(|name| open.remove(name)) {
                        Some(name) => {
                            passed = 0;
                            media.extend(media_type(row)?.map(|media| (name, media)));
                        }
                        None => passed += 1,
                    }
                }
            }
            open.remove(&cid);
        }
        Ok(media)
    }
}

impl Shown<'_> {
    /// Returns the event as JSON text.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("an event has text keys and no failing values")
    }
}

/// Returns a block's CID; `None` if its codec is unknown.
fn name(row: &Row<'_>) -> rusqlite::Result<Option<Cid>> {
    Ok(blocks::name(row.get_ref(0)?, row.get(1)?))
}

/// Returns the media type of a payload, without copying its content.
fn media_type(row: &Row<'_>) -> rusqlite::Result<Option<String>> {
    let Some(bytes) = row.get_ref(2)?.as_blob_or_null()? else {
        return Ok(None);
    };
    let envelope: Option<Envelope<'_>> = serde_ipld_dagcbor::from_slice(bytes).ok();
    Ok(envelope.map(|envelope| envelope.media.to_owned()))
}

fn facts<S: Serializer>(body: &BTreeMap<String, Ipld>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(body.iter().map(|(name, fact)| (name, Dag(fact))))
}
