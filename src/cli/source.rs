//! The source of a log that a command reads: the files of a data directory, or a server.
//!
//! Invariants:
//! - both give the same JSON, so that the output does not depend on the source;
//! - reading files writes nothing into the log. A state that is behind is folded first, if nobody owns the log.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::{
    block::{Block, Cid},
    cli::{
        Usage, existing,
        naming::Name,
        place::{LogSource, Place},
        progress::Progress,
        remote::{Refused, Remote},
    },
    follow::copy::Followed,
    ledger::{fitting, heads::notes, opening},
    log::{
        Log, Reader,
        home::Home,
        sqlite::{SqliteLog, SqliteReader},
        still::{Scratch, is_writable},
    },
    query::{View, beside::Logs, list::Filter, lookup::Found, proof::Head, shown::Payloads},
    verify::derived::fold,
};

pub enum Source {
    Files(Box<Files>),
    Server(Remote),
}

/// The log of a data directory, and its state.
pub struct Files {
    pub home: Home,
    pub view: View,
    /// Where the state was derived, if it could not be where it belongs. It goes with this.
    _scratch: Option<Scratch>,
}

/// A page of events as JSON.
pub struct Page {
    pub events: Vec<Value>,
    pub next_cursor: Option<String>,
}

impl Source {
    pub fn open(place: &LogSource, quiet: bool) -> anyhow::Result<Self> {
        match place.place() {
            Place::Server(url) => Ok(Self::Server(Remote::new(&url, place.token.clone())?)),
            Place::Files(data) => Self::files(&data, quiet),
        }
    }

    pub fn files(data: &Path, quiet: bool) -> anyhow::Result<Self> {
        let home = existing(data)?;
        Ok(Self::Files(Box::new(Files::open(home, quiet)?)))
    }

    /// Returns the CID that a name stands for. Errors: `Usage` if it stands for none or for several.
    pub async fn resolve(&self, name: &Name) -> anyhow::Result<Cid> {
        let part = match name {
            Name::Cid(cid) => return Ok(*cid),
            Name::Seq(seq) => {
                let filter = Filter { from_seq: Some(*seq), to_seq: Some(*seq), ..Filter::default() };
                let page = self.page(&filter, 1, None).await?;
                let cid = page.events.first().and_then(|event| event["cid"].as_str()?.parse().ok());
                return cid.ok_or_else(|| anyhow::anyhow!("the log has no event {seq}"));
            }
            Name::Part(part) => part,
        };
        let named = match self {
            Self::Files(files) => files.view.named(part)?,
            Self::Server(remote) => {
                let answer = remote.json(&format!("/v1/names/{part}"), &[]).await?;
                let named = answer["cids"].as_array().into_iter().flatten();
                named.filter_map(|cid| cid.as_str()?.parse().ok()).collect()
            }
        };
        match &named[..] {
            [one] => Ok(*one),
            [] => {
                Err(Usage(format!("no event or block of this log has a CID that begins or ends with {part}"))
                    .into())
            }
            several => {
                let several: Vec<String> = several.iter().map(Cid::to_string).collect();
                let several = several.join(", ");
                Err(Usage(format!("{part} may be any of {several}; give more of it")).into())
            }
        }
    }

    /// Does the same for an optional name.
    pub async fn resolved(&self, name: Option<&Name>) -> anyhow::Result<Option<Cid>> {
        match name {
            Some(name) => self.resolve(name).await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns the event or block with this CID.
    pub async fn find(&self, cid: &Cid, payloads: bool) -> anyhow::Result<Value> {
        match self {
            Self::Files(files) => Ok(logs(&files.home, &files.view).ask(&Head::default(), |view, _| {
                Ok(match view.find(cid)? {
                    Found::Event(event) if payloads => view.event_json(&event, &Payloads::inline())?,
                    Found::Event(event) => view.event_json(&event, &Payloads::named())?,
                    Found::Block { cid, bytes } => view.block_json(&cid, &bytes, payloads)?,
                })
            })?),
            Self::Server(remote) => {
                let query: &[_] = match payloads {
                    true => &[("payloads", "inline".to_owned())],
                    false => &[],
                };
                let event = remote.json(&format!("/v1/events/{cid}"), query).await;
                match event {
                    Err(err) if is_unknown(&err) => remote.json(&format!("/v1/blocks/{cid}"), query).await,
                    event => event,
                }
            }
        }
    }

    pub async fn page(&self, filter: &Filter, limit: u64, cursor: Option<&str>) -> anyhow::Result<Page> {
        match self {
            Self::Files(files) => {
                let view = &files.view;
                let page = view.list(filter, limit, cursor)?;
                let shown = view.shown(&page.events, &Payloads::named())?;
                let events = shown.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
                Ok(Page { events, next_cursor: page.next_cursor })
            }
            Self::Server(remote) => {
                let mut query = parameters(filter);
                query.push(("limit", limit.to_string()));
                query.extend(cursor.map(|cursor| ("cursor", cursor.to_owned())));
                let mut page = remote.json("/v1/events", &query).await?;
                let events = match page["events"].take() {
                    Value::Array(events) => events,
                    _ => anyhow::bail!("the server's answer is no list of events"),
                };
                let next_cursor = page["next_cursor"].as_str().map(str::to_owned);
                Ok(Page { events, next_cursor })
            }
        }
    }

    /// Returns how many events can be asked for now.
    pub async fn size(&self) -> anyhow::Result<u64> {
        match self {
            Self::Files(files) => Ok(files.view.applied()?),
            Self::Server(remote) => {
                let note = remote.read("/log/checkpoint", &[], "text/plain").await?;
                let note = String::from_utf8_lossy(&note);
                // The second line of a C2SP checkpoint.
                let size = note.lines().nth(1).and_then(|size| size.parse().ok());
                size.ok_or_else(|| anyhow::anyhow!("the server's checkpoint cannot be read"))
            }
        }
    }
}

impl Files {
    /// Opens a log with its state, caught up. In a directory that cannot be written a state that is behind is derived
    /// elsewhere.
    pub fn open(home: Home, quiet: bool) -> anyhow::Result<Self> {
        let events = catch_up(&home, quiet)?;
        let behind =
            || !View::open(&home).and_then(|view| view.applied()).is_ok_and(|applied| applied >= events);
        if is_writable(home.dir()) || home.owner().is_some() || !behind() {
            let view = View::open(&home)?;
            return Ok(Self { home, view, _scratch: None });
        }
        let scratch = Scratch::make().context("no directory for temporary files can be made")?;
        let state = scratch.path().join("state.db");
        let mut progress = Progress::new("folding", events, quiet);
        fold(&home, &state, events, &mut |applied, _| progress.at(applied))?;
        let view = View::beside(&home, &state)?;
        Ok(Self { home, view, _scratch: Some(scratch) })
    }
}

/// Returns the log of a data directory, and the followed ones beside it.
pub fn logs<'a>(home: &'a Home, view: &'a View) -> Logs<'a> {
    Logs::new(view, || Followed::beside(home))
}

/// Returns the last signed head of a data directory that its state covers.
pub fn head(home: &Home, view: &View) -> anyhow::Result<Head> {
    let log = SqliteReader::open(&home.log_path())?;
    let genesis = fitting::genesis(&log)?;
    let keys = view.keys(&Block::encode(&genesis).cid())?;
    let applied = view.applied()?;
    let heads = notes(home, &log)?.into_iter().filter_map(|note| {
        let size = keys.open(&note).ok()?.size;
        (size <= applied).then_some(Head { size, note })
    });
    heads.max_by_key(|head| head.size).ok_or_else(|| {
        anyhow::anyhow!(
            "no signed head of the log {} is in it or beside it; see `cairn log verify`",
            Block::encode(&genesis).cid()
        )
    })
}

/// Folds what the state lacks, unless a process owns the log, which does so itself. Returns how many events there are.
fn catch_up(home: &Home, quiet: bool) -> anyhow::Result<u64> {
    let events = SqliteReader::open(&home.log_path())?.tip()?.map_or(0, |tip| tip.seq + 1);
    let reached = View::open(home).and_then(|view| view.applied());
    if reached.is_ok_and(|applied| applied >= events) || !is_writable(home.dir()) {
        return Ok(events);
    }
    let owner = format!("a cairn process that reads the log (process {})", std::process::id());
    let Ok(_one) = home.lock(&owner) else {
        return Ok(events);
    };
    let log = SqliteLog::open(&home.log_path(), true)?;
    let log: &dyn Log = &log;
    let mut progress = Progress::new("folding", events, quiet);
    opening::derive(home, log, &mut |applied| progress.at(applied))?;
    Ok(events)
}

/// Returns the filter as the audit API's parameters.
fn parameters(filter: &Filter) -> Vec<(&'static str, String)> {
    let cid = |cid: &Option<Cid>| cid.as_ref().map(Cid::to_string);
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    [
        ("kind", filter.kind.clone()),
        ("subject", filter.subject.clone()),
        ("actor", filter.actor.clone()),
        ("tool", filter.tool.clone()),
        ("contract", cid(&filter.contract)),
        ("payload", cid(&filter.payload)),
        ("after", number(filter.after)),
        ("before", number(filter.before)),
        ("from_seq", number(filter.from_seq)),
        ("to_seq", number(filter.to_seq)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

fn is_unknown(err: &anyhow::Error) -> bool {
    err.downcast_ref::<Refused>().is_some_and(|refused| refused.status == http::StatusCode::NOT_FOUND)
}
