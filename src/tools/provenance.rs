//! The provenance tools: ask what produced something, and check the answer.
//!
//! Invariants:
//! - they read the log of all callers, and so need the scope `audit:read`;
//! - each answers what the audit API answers, from the same questions.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    archive::export::{Format, Scope},
    block::{Cid, Codec, splice},
    error::{Code, Refusal},
    query::{
        QueryError, View,
        beside::Logs,
        list::{self, Filter, moment},
        lookup::{Found, link},
        proof::Head,
        shown::Payloads,
        walk::{self, Direction},
    },
    questions::Audit,
    router::{BoxFuture, Invocation, Outcome, Run, lane},
    tools::{Builtin, Done, arguments, doing::definition, outcome, refusal},
    verify::Checks,
    words::number,
};

/// The tools over `audit`. `base` is the URL this node is reached under, where it is served over HTTP.
pub fn all(audit: &Audit, base: Option<&str>) -> Vec<Builtin> {
    let tool = |definition, does| Builtin {
        definition,
        category: "provenance",
        lane: lane::BUILTIN,
        run: Arc::new(Tool { audit: audit.clone(), base: base.map(str::to_owned), does }),
    };
    vec![
        tool(definition!("provenance_get"), Does::Get),
        tool(definition!("provenance_query"), Does::Query),
        tool(definition!("provenance_trace"), Does::Trace),
        tool(definition!("provenance_verify"), Does::Verify),
        tool(definition!("provenance_receipt"), Does::Receipt),
        tool(definition!("provenance_export"), Does::Export),
    ]
}

#[derive(Clone, Copy)]
enum Does {
    Get,
    Query,
    Trace,
    Verify,
    Receipt,
    Export,
}

struct Tool {
    audit: Audit,
    base: Option<String>,
    does: Does,
}

impl Run for Tool {
    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            match self.does {
                Does::Get => outcome(self.get(&invocation).await),
                Does::Query => outcome(self.query(&invocation).await),
                Does::Trace => outcome(self.trace(&invocation).await),
                Does::Verify => outcome(self.verify(&invocation).await),
                Does::Receipt => outcome(self.receipt(&invocation).await),
                Does::Export => self.export(&invocation).await,
            }
        })
    }
}

#[derive(Deserialize)]
struct Get {
    cid: String,
    #[serde(default)]
    include_content: bool,
}

#[derive(Deserialize)]
struct Query {
    kind: Option<String>,
    subject: Option<String>,
    actor: Option<String>,
    tool: Option<String>,
    contract: Option<String>,
    payload: Option<String>,
    after: Option<String>,
    before: Option<String>,
    #[serde(default, deserialize_with = "number::optional")]
    from_seq: Option<u64>,
    limit: Option<u64>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct Trace {
    cid: String,
    direction: Option<String>,
    max_depth: Option<u32>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct Verify {
    cid: Option<String>,
    #[serde(default, deserialize_with = "number::optional")]
    from_seq: Option<u64>,
    #[serde(default, deserialize_with = "number::optional")]
    to_seq: Option<u64>,
}

#[derive(Deserialize)]
struct Receipt {
    cid: String,
}

#[derive(Deserialize)]
struct Export {
    subject: Option<String>,
    cid: Option<String>,
    #[serde(default, deserialize_with = "number::optional")]
    from_seq: Option<u64>,
    #[serde(default, deserialize_with = "number::optional")]
    to_seq: Option<u64>,
    format: Option<String>,
}

impl Tool {
    async fn get(&self, invocation: &Invocation) -> Done {
        let Get { cid, include_content } = arguments(invocation)?;
        let cid = named(&cid)?;
        let question = self.audit.ask_all(move |logs, head| {
            let mut shown = logs.ask(head, |view, _| found(view, &cid, include_content))?;
            shown["seq"] = json!(head.size.saturating_sub(1));
            Ok(shown)
        });
        question.await.map_err(refusal)
    }

    async fn query(&self, invocation: &Invocation) -> Done {
        let asked: Query = arguments(invocation)?;
        let invalid = |err: QueryError| refusal(err.into());
        let time = |text: Option<&str>| text.map(moment).transpose().map_err(invalid);
        let name = |text: Option<&str>| text.map(named).transpose();
        let filter = Filter {
            contract: name(asked.contract.as_deref())?,
            payload: name(asked.payload.as_deref())?,
            after: time(asked.after.as_deref())?,
            before: time(asked.before.as_deref())?,
            kind: asked.kind,
            subject: asked.subject,
            actor: asked.actor,
            tool: asked.tool,
            from_seq: asked.from_seq,
            to_seq: None,
        };
        let question = self.audit.ask(move |view, _| {
            let limit = asked.limit.unwrap_or(list::LIMIT_DEFAULT);
            let page = view.list(&filter, limit, asked.cursor.as_deref())?;
            let events = view.shown(&page.events, &Payloads::named())?;
            Ok(json!({
                "returned_count": page.events.len(),
                "events": events,
                "total_count": view.count(&filter)?,
                "has_more": page.next_cursor.is_some(),
                "next_cursor": page.next_cursor,
                "seq": page.applied.saturating_sub(1),
            }))
        });
        question.await.map_err(refusal)
    }

    async fn trace(&self, invocation: &Invocation) -> Done {
        let asked: Trace = arguments(invocation)?;
        let cid = named(&asked.cid)?;
        let direction = asked.direction.as_deref().and_then(Direction::parse);
        let depth = asked.max_depth.unwrap_or(walk::DEPTH_DEFAULT);
        let limit = asked.limit.unwrap_or(walk::LIMIT_MAX);
        let question = self.audit.ask_all(move |logs, head| {
            let walk = logs.walk(&cid, direction.unwrap_or_default(), depth, limit)?;
            Ok((walk, head.size.saturating_sub(1)))
        });
        let (walk, seq) = question.await.map_err(refusal)?;
        let mut shown = json!(walk);
        shown["seq"] = json!(seq);
        Ok(shown)
    }

    async fn verify(&self, invocation: &Invocation) -> Done {
        let asked: Verify = arguments(invocation)?;
        let report = match asked.cid {
            Some(cid) => {
                let cid = named(&cid)?;
                let question = move |logs: &Logs<'_>, head: &Head| {
                    logs.ask(head, |view, head| view.verify_one(&cid, head))
                };
                self.audit.ask_all(question).await
            }
            None => {
                let checks = Checks {
                    from_seq: asked.from_seq.unwrap_or(0),
                    to_seq: asked.to_seq,
                    ..Checks::default()
                };
                self.audit.verify(checks).await
            }
        };
        Ok(json!(report.map_err(refusal)?))
    }

    async fn receipt(&self, invocation: &Invocation) -> Done {
        let Receipt { cid } = arguments(invocation)?;
        let cid = named(&cid)?;
        let question = self.audit.ask_all(move |logs, head| {
            let answer = logs.ask(head, |view, head| {
                let receipt = view.receipt(&cid, head)?;
                let keys = view.keys(&Cid::of(Codec::DagCbor, &receipt.genesis))?;
                let (origin, key) = (keys.origin(), keys.at(head.size).vkey());
                Ok(json!({"receipt": receipt.to_json(), "origin": origin, "key": key}))
            });
            Ok((answer?, head.size.saturating_sub(1)))
        });
        let (mut shown, seq) = question.await.map_err(refusal)?;
        shown["seq"] = json!(seq);
        Ok(shown)
    }

    /// Returns a link to an export. The export is recorded when the link is read.
    async fn export(&self, invocation: &Invocation) -> Outcome {
        let structured = match self.exported(invocation).await {
            Ok(structured) => structured,
            Err(refusal) => return Outcome::Refused(refusal),
        };
        let link = json!({
            "type": "resource_link",
            "uri": structured["uri"],
            "name": "export",
            "mimeType": structured["media_type"],
            "description": format!("{} events as {}", structured["count"], structured["format"]),
        });
        let text = json!({"type": "text", "text": structured.to_string()});
        let result = json!({"content": [text, link], "structuredContent": structured});
        Outcome::Result { result: splice::raw(result.to_string()), is_error: false }
    }

    async fn exported(&self, invocation: &Invocation) -> Done {
        let asked: Export = arguments(invocation)?;
        let format = asked.format.as_deref().and_then(Format::parse);
        let format = format.unwrap_or(Format::Car);
        let mut query = format!("format={}", format.as_str());
        let scope = match (asked.subject, asked.cid) {
            (Some(subject), _) => {
                query += &format!("&subject={}", percent(&subject));
                Scope::Subject(subject)
            }
            (None, Some(cid)) => {
                query += &format!("&cid={cid}");
                Scope::Ancestors(named(&cid)?)
            }
            (None, None) => {
                let bounds = [("from_seq", asked.from_seq), ("to_seq", asked.to_seq)];
                for (name, bound) in bounds {
                    query += &bound.map_or_else(String::new, |bound| format!("&{name}={bound}"));
                }
                Scope::Range { from: asked.from_seq, to: asked.to_seq }
            }
        };
        let question = self.audit.ask(move |view, head| Ok((view.select(&scope, format, head)?, head.size)));
        let (selected, size) = question.await.map_err(refusal)?;
        let uri = match &self.base {
            Some(base) => format!("{}/v1/export?{query}", base.trim_end_matches('/')),
            None => format!("cairn://export?{query}"),
        };
        Ok(json!({
            "success": true,
            "uri": uri,
            "format": format.as_str(),
            "media_type": format.media_type(),
            "from_seq": selected.from,
            "to_seq": selected.to,
            "count": selected.count,
            "seq": size.saturating_sub(1),
        }))
    }
}

/// Returns what a log has under a CID.
fn found(view: &View, cid: &Cid, include_content: bool) -> Result<Value, QueryError> {
    Ok(match view.find(cid)? {
        Found::Block { bytes, .. } => view.block_json(cid, &bytes, include_content)?,
        Found::Event(event) => {
            let payloads = match include_content {
                true => Payloads::inline(),
                false => Payloads::named(),
            };
            let links = crate::block::links(cid.codec(), event.bytes());
            let links: Vec<Value> = links.unwrap_or_default().iter().map(link).collect();
            json!({
                "cid": cid.to_string(),
                "codec": "dag-cbor",
                "size": event.bytes().len(),
                "links": links,
                "type": "event",
                "value": view.event_json(&event, &payloads)?,
            })
        }
    })
}

fn named(text: &str) -> Result<Cid, Refusal> {
    text.parse().map_err(|err| Refusal::new(Code::InvalidArgument, format!("{err}")))
}

/// Percent-encodes text for a query string (RFC 3986: unreserved characters stay).
fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(byte.into());
            }
            byte => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}
