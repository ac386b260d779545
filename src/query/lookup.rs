//! Looking up one event or block by its name, and showing blocks as JSON.
//!
//! Invariant: payload content is shown only where it was asked for.

use base64::{Engine, prelude::BASE64_STANDARD};
use rusqlite::OptionalExtension;
use serde_json::{Map, Value, json};

use super::{QueryError, View, shown::INLINE_MAX};
use crate::{
    block::{
        Cid, Codec, decode, decode_ipld,
        json::dag,
        links,
        payload::{JSON, Payload},
    },
    contract::Contract,
    event::{Event, Genesis},
    log::Stored,
};

/// What a name stands for.
#[derive(Debug)]
pub enum Found {
    Event(Box<Event>),
    Block { cid: Cid, bytes: Vec<u8> },
}

impl Found {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Event(event) => event.bytes(),
            Self::Block { bytes, .. } => bytes,
        }
    }
}

impl View {
    /// Returns the event with this CID.
    pub fn event(&self, cid: &Cid) -> Result<Option<Event>, QueryError> {
        match cid.codec() {
            Codec::DagCbor => Ok(self.log.event(cid)?),
            Codec::Raw => Ok(None),
        }
    }

    /// Returns when the event with this seq was recorded, in milliseconds since the epoch.
    pub fn recorded_ms(&self, seq: u64) -> Result<u64, QueryError> {
        let event = self.log.event_at(seq)?.ok_or_else(|| QueryError::NotFound(format!("event {seq}")))?;
        Ok(event.fields().at_ms())
    }

    /// Returns the event or block with this CID.
    pub fn find(&self, cid: &Cid) -> Result<Found, QueryError> {
        if let Some(event) = self.event(cid)? {
            return Ok(Found::Event(Box::new(event)));
        }
        match self.log.block(cid)? {
            Some(Stored::Present(bytes)) => Ok(Found::Block { cid: *cid, bytes }),
            Some(Stored::Erased) | None => Err(self.gone(cid)?),
        }
    }

    /// Returns a block as JSON: its CID, codec, size, links, what it is, and its value.
    pub fn block_json(&self, cid: &Cid, bytes: &[u8], inline: bool) -> Result<Value, QueryError> {
        let links = links(cid.codec(), bytes).map_err(|_| corrupt("a block"))?;
        let (kind, value) = match cid.codec() {
            Codec::Raw => ("raw", Value::Null),
            Codec::DagCbor => self.value(cid, bytes, inline)?,
        };
        let codec = match cid.codec() {
            Codec::Raw => "raw",
            Codec::DagCbor => "dag-cbor",
        };
        let links: Vec<Value> = links.iter().map(link).collect();
        let size = bytes.len();
        let cid = cid.to_string();
        Ok(json!({"cid": cid, "codec": codec, "size": size, "links": links, "type": kind, "value": value}))
    }

    fn value(&self, cid: &Cid, bytes: &[u8], inline: bool) -> Result<(&'static str, Value), QueryError> {
        if let Ok(payload) = decode::<Payload>(bytes) {
            let mut shown = Map::new();
            shown.insert("v".to_owned(), payload.v.into());
            shown.insert("media".to_owned(), payload.media.as_str().into());
            shown.insert("len".to_owned(), self.content_len(&payload)?.into());
            if let Some(parts) = &payload.parts {
                shown.insert("parts".to_owned(), parts.iter().map(link).collect());
            }
            if inline && self.content_len(&payload)? <= INLINE_MAX as u64 {
                self.show_content(cid, None, &mut shown)?;
            }
            return Ok(("payload", shown.into()));
        }
        if let Ok(contract) = decode::<Contract>(bytes) {
            return Ok(("contract", contract_json(&contract)));
        }
        let ipld = decode_ipld(bytes).map_err(|_| corrupt("a block"))?;
        let kind = match decode::<Genesis>(bytes) {
            Ok(_) => "genesis",
            Err(_) => "block",
        };
        Ok((kind, dag(&ipld)))
    }

    /// Returns a payload's content, joined from its parts.
    pub fn content(&self, payload: Payload) -> Result<Vec<u8>, QueryError> {
        let content = payload.content(None, |part| match self.log.block(part)? {
            Some(Stored::Present(bytes)) => Ok(Some(bytes)),
            // It is being erased at this moment: its envelope was here just now.
            Some(Stored::Erased) => Err(QueryError::NotFound(part.to_string())),
            None => Ok(None),
        })?;
        content.map_err(|_| corrupt("a payload whose content cannot be put together"))
    }

    /// Returns the payload with this CID; `None` if it was erased or is something else.
    pub fn payload(&self, cid: &Cid) -> Result<Option<Payload>, QueryError> {
        Ok(self.log.bytes(cid)?.and_then(|bytes| decode(&bytes).ok()))
    }

    fn content_len(&self, payload: &Payload) -> Result<u64, QueryError> {
        let mut len = payload.data.as_ref().map_or(0, |data| data.len() as u64);
        let mut statement = self.state.prepare_cached("SELECT length(bytes) FROM log.block WHERE id = ?1")?;
        for part in payload.parts.iter().flatten() {
            let number = self.log.number_of(part)?;
            let part: Option<Option<u64>> = statement.query_row([number], |row| row.get(0)).optional()?;
            len += part.flatten().unwrap_or(0).saturating_sub(payload.part_salt_len() as u64);
        }
        Ok(len)
    }

    /// Adds `content` (JSON) or `content_base64`.
    ///
    /// Content whose length differs from the stated one is not shown: the caller's bound counts on the stated length.
    pub(super) fn show_content(
        &self,
        cid: &Cid,
        len: Option<u64>,
        shown: &mut Map<String, Value>,
    ) -> Result<(), QueryError> {
        let Some(payload) = self.payload(cid)? else {
            return Ok(());
        };
        if payload.layout(len).is_err() {
            return Ok(());
        }
        let json = payload.media == JSON;
        let content = self.content(payload)?;
        let parsed = json.then(|| serde_json::from_slice(&content).ok()).flatten();
        match parsed {
            Some(value) => shown.insert("content".to_owned(), value),
            None => shown.insert("content_base64".to_owned(), BASE64_STANDARD.encode(content).into()),
        };
        Ok(())
    }
}

/// Returns a contract with its schemas and annotations as JSON.
pub fn contract_json(contract: &Contract) -> Value {
    let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or(Value::Null);
    let effects: Map<String, Value> =
        contract.effects.iter().map(|(name, effect)| (name.clone(), dag(effect))).collect();
    json!({
        "v": contract.v,
        "name": contract.name,
        "source": contract.source,
        "version": contract.version,
        "description": contract.description,
        "input": parsed(&contract.input),
        "output": contract.output.as_deref().map(parsed),
        "annotations": contract.annotations.as_deref().map(parsed),
        "effects": effects,
        "prev": contract.prev.as_ref().map(link),
    })
}

/// Returns a link in DAG-JSON.
pub fn link(cid: &Cid) -> Value {
    json!({"/": cid.to_string()})
}

pub(crate) fn corrupt(what: &'static str) -> QueryError {
    crate::log::LogError::Corrupt { what }.into()
}
