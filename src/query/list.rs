//! Lists of events: filtered, in order, page by page.
//!
//! Invariants:
//! - pages are cut by `seq`, so they stay as they are while others write;
//! - a cursor goes on with the query that gave it and with no other.

use rusqlite::{OptionalExtension, params};
use serde::Serialize;

use super::{QueryError, View, cursor};
use crate::{
    block::{Cid, decode},
    contract::Contract,
    event::{Event, Kind},
    state::subject_key,
    words::number,
};

/// Events on one page.
pub const LIMIT_MAX: u64 = 1000;
pub const LIMIT_DEFAULT: u64 = 100;
/// The kinds with the lowest numbers, `call.started` and `call.succeeded`, which are not indexed because almost every
/// event is one.
const COMMON_KINDS: u64 = 2;
/// Past contracts that a tool's name is followed back to.
const PAST_CONTRACTS_MAX: usize = 1000;

/// Which events are asked for: those that fit every field that is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Filter {
    pub kind: Option<String>,
    pub subject: Option<String>,
    /// The actor's id.
    pub actor: Option<String>,
    /// A tool's name, its source's own or one it was called under, which stands for every contract it had; or one contract.
    pub tool: Option<String>,
    pub contract: Option<Cid>,
    pub payload: Option<Cid>,
    /// Microseconds since the epoch; events at this moment are not after it.
    pub after: Option<u64>,
    pub before: Option<u64>,
    pub from_seq: Option<u64>,
    /// The last seq, included.
    pub to_seq: Option<u64>,
}

/// Some events of a list.
#[derive(Debug)]
pub struct Page {
    pub events: Vec<Event>,
    pub next_cursor: Option<String>,
    /// Events the state had folded when this was answered.
    pub applied: u64,
}

/// A filter as a condition in SQL, with the range of seqs it is for.
struct Conditions {
    sql: String,
    from: u64,
    to: u64,
}

impl View {
    /// Returns the next page. `limit` is clamped to 1 to [`LIMIT_MAX`].
    pub fn list(&self, filter: &Filter, limit: u64, cursor: Option<&str>) -> Result<Page, QueryError> {
        let limit = limit.clamp(1, LIMIT_MAX);
        let after = cursor.map(|cursor| cursor::open(filter, cursor)).transpose()?;
        let applied = self.applied()?;
        let mut page = Page { events: Vec::new(), next_cursor: None, applied };
        let Some(mut conditions) = self.conditions(filter, applied)? else {
            return Ok(page);
        };
        conditions.from = conditions.from.max(after.unwrap_or(0));
        let sql = format!(
            "SELECT entry.seq, event.bytes FROM entry CROSS JOIN log.event ON event.seq = entry.seq
             WHERE {} ORDER BY entry.seq LIMIT ?3",
            conditions.sql
        );
        let mut statement = self.state.prepare_cached(&sql)?;
        let mut rows = statement.query(params![conditions.from, conditions.to, limit + 1])?;
        while let Some(row) = rows.next()? {
            let seq: u64 = row.get(0)?;
            if page.events.len() as u64 == limit {
                page.next_cursor = Some(cursor::name(filter, seq));
                break;
            }
            let event = Event::open(row.get(1)?).map_err(|_| super::lookup::corrupt("an event"))?;
            page.events.push(event);
        }
        Ok(page)
    }

    /// Returns how many events fit.
    pub fn count(&self, filter: &Filter) -> Result<u64, QueryError> {
        let applied = self.applied()?;
        if *filter == Filter::default() {
            return Ok(applied);
        }
        let Some(conditions) = self.conditions(filter, applied)? else {
            return Ok(0);
        };
        let sql = format!("SELECT count(*) FROM entry WHERE {}", conditions.sql);
        let mut statement = self.state.prepare_cached(&sql)?;
        Ok(statement.query_row(params![conditions.from, conditions.to], |row| row.get(0))?)
    }

    /// Returns the seqs of the first `max` events that fit, from `from` on, in order.
    pub fn seqs(&self, filter: &Filter, from: u64, max: u64) -> Result<Vec<u64>, QueryError> {
        let Some(conditions) = self.conditions(filter, self.applied()?)? else {
            return Ok(Vec::new());
        };
        let sql = format!("SELECT entry.seq FROM entry WHERE {} ORDER BY entry.seq LIMIT ?3", conditions.sql);
        let mut statement = self.state.prepare_cached(&sql)?;
        let rows =
            statement.query_map(params![conditions.from.max(from), conditions.to, max], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns the last seq that fits.
    pub fn last_seq(&self, filter: &Filter) -> Result<Option<u64>, QueryError> {
        let Some(conditions) = self.conditions(filter, self.applied()?)? else {
            return Ok(None);
        };
        let sql = format!("SELECT max(entry.seq) FROM entry WHERE {}", conditions.sql);
        let mut statement = self.state.prepare_cached(&sql)?;
        Ok(statement.query_row(params![conditions.from, conditions.to], |row| row.get(0))?)
    }

    /// Returns the block numbers of all contracts that fitting events name.
    pub fn contracts_fitting(&self, filter: &Filter) -> Result<Vec<u64>, QueryError> {
        let Some(conditions) = self.conditions(filter, self.applied()?)? else {
            return Ok(Vec::new());
        };
        let sql = format!(
            "SELECT DISTINCT entry.tool FROM entry WHERE entry.tool IS NOT NULL AND {} ORDER BY 1",
            conditions.sql
        );
        let mut statement = self.state.prepare_cached(&sql)?;
        let rows = statement.query_map(params![conditions.from, conditions.to], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns the filter as a condition on `entry`, over seqs `?1` to before `?2`; `None` if nothing can fit.
    fn conditions(&self, filter: &Filter, applied: u64) -> Result<Option<Conditions>, QueryError> {
        let mut sql = String::from("entry.seq >= ?1 AND entry.seq < ?2");
        if let Some(kind) = &filter.kind {
            self.check_kind(kind)?;
        }
        let words = [("kind", &filter.kind), ("actor", &filter.actor)];
        for (column, text) in words {
            let Some(text) = text else { continue };
            let Some(id) = self.number("SELECT id FROM word WHERE text = ?1", text)? else {
                return Ok(None);
            };
            sql += &format!(" AND entry.{column} = {id}");
            if column == "kind" && id > COMMON_KINDS {
                // Said in so many words for the index over the rarer kinds to be used.
                sql += &format!(" AND entry.kind > {COMMON_KINDS}");
            }
        }
        if let Some(subject) = &filter.subject {
            let found = self.number("SELECT id FROM subject WHERE name = ?1", subject_key(subject))?;
            let Some(id) = found else { return Ok(None) };
            sql +=
                &format!(" AND (entry.seq = {id} OR (entry.subject = {id} AND entry.subject <> entry.seq))");
        }
        if let Some(contracts) = self.contracts_of(filter)? {
            if contracts.is_empty() {
                return Ok(None);
            }
            let list: Vec<String> = contracts.iter().map(u64::to_string).collect();
            sql += &format!(" AND entry.tool IN ({})", list.join(","));
        }
        if let Some(payload) = &filter.payload {
            let Some(id) = self.log.number_of(payload)? else {
                return Ok(None);
            };
            sql += &format!(" AND entry.seq IN (SELECT seq FROM holds WHERE block = {id})");
        }
        let from = filter.from_seq.unwrap_or(0);
        let after = filter.after.map_or(0, |ts| ts.saturating_add(1));
        let to = filter.to_seq.map_or(applied, |to| to.saturating_add(1));
        let before = match filter.before {
            Some(ts) => self.first_at(ts, applied)?,
            None => applied,
        };
        Ok(Some(Conditions { sql, from: from.max(self.first_at(after, applied)?), to: to.min(before) }))
    }

    /// Returns the block numbers that `tool` and `contract` both allow; `None` if neither is set.
    fn contracts_of(&self, filter: &Filter) -> Result<Option<Vec<u64>>, QueryError> {
        let one = |cid: &Cid| -> Result<Vec<u64>, QueryError> {
            Ok(self.log.number_of(cid)?.into_iter().collect())
        };
        let tool = match &filter.tool {
            None => None,
            Some(tool) => Some(match tool.parse::<Cid>() {
                Ok(cid) => one(&cid)?,
                Err(_) => self.contracts_named(tool)?,
            }),
        };
        let contract = filter.contract.as_ref().map(one).transpose()?;
        Ok(match (tool, contract) {
            (Some(mut tool), Some(contract)) => {
                tool.retain(|number| contract.contains(number));
                Some(tool)
            }
            (tool, contract) => tool.or(contract),
        })
    }

    /// Returns the block numbers of every contract of tools with this name, or that were called by it.
    fn contracts_named(&self, name: &str) -> Result<Vec<u64>, QueryError> {
        let mut statement = self.state.prepare_cached(
            "SELECT contract.block FROM contract JOIN word ON word.id = contract.name WHERE word.text = ?1
             UNION SELECT called.block FROM called JOIN word ON word.id = called.name WHERE word.text = ?1",
        )?;
        let latest = statement.query_map([name], |row| row.get(0))?;
        let mut open: Vec<u64> = latest.collect::<Result<_, _>>()?;
        let mut numbers = Vec::new();
        while let Some(number) = open.pop() {
            if numbers.contains(&number) || numbers.len() == PAST_CONTRACTS_MAX {
                continue;
            }
            numbers.push(number);
            let Some(cid) = self.log.block_named(number)? else {
                continue;
            };
            if let Some(bytes) = self.log.bytes(&cid)?
                && let Ok(contract) = decode::<Contract>(&bytes)
                && let Some(prev) = contract.prev
            {
                open.extend(self.log.number_of(&prev)?);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Returns the first seq whose time is `ts` or later. Times never decrease, so it is found by halving.
    fn first_at(&self, ts: u64, applied: u64) -> Result<u64, QueryError> {
        let mut statement = self.state.prepare_cached("SELECT ts FROM entry WHERE seq = ?1")?;
        let (mut low, mut high) = (0, if ts == 0 { 0 } else { applied });
        while low < high {
            let middle = low + (high - low) / 2;
            let at: u64 = statement.query_row([middle], |row| row.get(0))?;
            if at < ts {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Refuses a kind that neither this build nor the log knows: it is a typing error.
    fn check_kind(&self, kind: &str) -> Result<(), QueryError> {
        let mut kinds: Vec<String> = Kind::ALL.iter().map(|known| known.as_str().to_owned()).collect();
        if kinds.iter().any(|known| known == kind) {
            return Ok(());
        }
        let mut statement =
            self.state.prepare_cached("SELECT word.text FROM tally JOIN word ON word.id = tally.kind")?;
        for held in statement.query_map([], |row| row.get(0))? {
            kinds.push(held?);
        }
        if kinds.iter().any(|held| held == kind) {
            return Ok(());
        }
        let alike = |known: &String| strsim::jaro_winkler(kind, known);
        let nearest = kinds.iter().max_by(|left, right| alike(left).total_cmp(&alike(right)));
        let nearest = nearest.map_or_else(String::new, |known| format!("; did you mean `{known}`?"));
        Err(QueryError::Invalid(format!("no event is of this kind{nearest}")))
    }

    fn number(&self, sql: &str, name: impl rusqlite::ToSql) -> Result<Option<u64>, QueryError> {
        let mut statement = self.state.prepare_cached(sql)?;
        Ok(statement.query_row([name], |row| row.get(0)).optional()?)
    }
}

/// Parses a moment to microseconds since the epoch: a whole number of them, or RFC 3339.
pub fn moment(text: &str) -> Result<u64, QueryError> {
    if let Ok(micros) = number::parse(text) {
        return Ok(micros);
    }
    let moment: Option<jiff::Timestamp> = text.parse().ok();
    moment.and_then(|moment| u64::try_from(moment.as_microsecond()).ok()).ok_or_else(|| {
        QueryError::Invalid(format!("`{text}` is no moment: expected RFC 3339, or microseconds since 1970"))
    })
}
