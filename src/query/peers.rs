//! Questions about other nodes: who is known, how one stood at a time, what was measured when.
//!
//! Invariants:
//! - answers come from the log and what is derived from it, whether there is a network now or not;
//! - what was not measured has no value.

use rusqlite::{Connection, OptionalExtension, ToSql, params, types::FromSql};
use serde::Serialize;

use crate::{
    entity,
    event::{Body, peer::PeerMeasured},
    peer::{self, Peer, Status},
    query::{
        QueryError, View, cursor,
        list::LIMIT_MAX,
        work::{
            At, events_of,
            page::{From, Page},
        },
    },
    state::{
        StateError,
        peers::{PEER_STATUSES, read},
    },
    words::words,
};

/// Points of a history: one a minute for a day; longer histories are thinned out.
const HISTORY_MAX: usize = 24 * 60;

const MINUTE_MS: u64 = 60_000;

/// Which peers are asked for: those that fit every field that is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Filter {
    pub status: Option<Status>,
    /// A peer must offer all of them.
    pub capabilities: Vec<String>,
    /// Only these peers, if set.
    pub among: Option<Vec<String>>,
    pub sort: Sort,
}

words! {
    /// The order of a list of peers, the best first; peers without a measure come last.
    #[derive(Default, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Sort {
        #[default]
        LastSeen = "last_seen",
        Latency = "latency",
        Bandwidth = "bandwidth",
        Reliability = "reliability",
        PeerId = "peer_id",
    }
}

impl Sort {
    /// Returns the SQL expression that is smallest for the best peer; among equals the id decides.
    fn rank(self) -> &'static str {
        match self {
            Self::LastSeen => "-coalesce(last_seen_ms, -1)",
            Self::Latency => "coalesce(latency_us, 9223372036854775807)",
            Self::Bandwidth => "-coalesce(bandwidth, -1)",
            Self::Reliability => "-coalesce(reliability, -1)",
            Self::PeerId => "0",
        }
    }
}

/// The measures of a peer in a span of minutes.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// When its first measure was taken.
    pub at_ms: u64,
    /// The sums of its measures; of latencies, the highest.
    pub measured: PeerMeasured,
}

/// Returns the peer with this id, as far as the state is folded.
pub fn peer(state: &Connection, id: &str) -> Result<Option<Peer>, StateError> {
    let mut find = state.prepare_cached("SELECT entity FROM peer WHERE name = ?1")?;
    let bytes: Option<Vec<u8>> = find.query_row([id], |row| row.get(0)).optional()?;
    bytes.map(|bytes| read(&bytes)).transpose()
}

/// Returns the connected peers.
pub fn connected(state: &Connection) -> Result<Vec<Peer>, StateError> {
    let mut find = state.prepare_cached("SELECT entity FROM peer WHERE status = 0 ORDER BY id")?;
    let rows = find.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
    rows.map(|bytes| read(&bytes?)).collect()
}

/// Returns how many peers have each status, in the order of the statuses.
pub fn counts(state: &Connection) -> Result<[u64; PEER_STATUSES.len()], StateError> {
    let mut counts = [0; PEER_STATUSES.len()];
    let mut find = state.prepare_cached("SELECT status, count(*) FROM peer GROUP BY status")?;
    let mut rows = find.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(count) = counts.get_mut(row.get::<_, usize>(0)?) {
            *count = row.get(1)?;
        }
    }
    Ok(counts)
}

impl View {
    /// Returns one page of the peers that fit.
    pub fn peers(&self, filter: &Filter, from: From<'_>, limit: u64) -> Result<At<Page<Peer>>, QueryError> {
        self.at(|| self.peer_page(filter, from, limit))
    }

    /// Returns one peer after the event `as_of`, or now.
    pub fn peer(&self, id: &str, as_of: Option<u64>) -> Result<At<Peer>, QueryError> {
        let unknown = || QueryError::NotFound(format!("peer {id}"));
        self.at(|| match as_of {
            None => peer(&self.state, id)?.ok_or_else(unknown),
            Some(as_of) => self.peer_as_of(id, as_of)?.ok_or_else(unknown),
        })
    }

    /// Returns the measures of a peer from a time on, in order.
    pub fn peer_history(&self, id: &str, from_ms: u64, as_of: Option<u64>) -> Result<Vec<Point>, QueryError> {
        let sql = "SELECT seq FROM entry WHERE kind = (SELECT id FROM word WHERE text = 'peer.measured')
                   AND subject = (SELECT id FROM subject WHERE name = ?1) AND seq <= ?2 AND ts >= ?3 ORDER BY seq";
        let mut find = self.state.prepare_cached(sql)?;
        let as_of = as_of.map_or(i64::MAX, |seq| i64::try_from(seq).unwrap_or(i64::MAX));
        let from_us = i64::try_from(from_ms.saturating_mul(1000)).unwrap_or(i64::MAX);
        let seqs = find.query_map(params![peer::subject(id).as_bytes(), as_of, from_us], |row| row.get(0))?;
        let mut points: Vec<Point> = Vec::new();
        for seq in seqs {
            let Some(event) = self.log.event_at(seq?)? else { continue };
            if let Some(Body::PeerMeasured(measured)) = event.body() {
                points.push(Point { at_ms: event.fields().at_ms(), measured });
            }
        }
        Ok(thinned(points))
    }

    fn peer_as_of(&self, id: &str, as_of: u64) -> Result<Option<Peer>, QueryError> {
        let seqs = events_of(&self.state, &peer::subject(id))?.into_iter().take_while(|seq| *seq <= as_of);
        Ok(entity::try_folded(seqs.filter_map(|seq| self.log.event_at(seq).transpose()), &())?)
    }

    fn peer_page(&self, filter: &Filter, from: From<'_>, limit: u64) -> Result<Page<Peer>, QueryError> {
        let limit = limit.clamp(1, LIMIT_MAX);
        let mut fits = String::from("1");
        let mut values: Vec<Box<dyn ToSql>> = Vec::new();
        if let Some(status) = filter.status {
            values.push(Box::new(PEER_STATUSES.iter().position(|known| *known == status)));
            fits.push_str(" AND status = ?");
        }
        for capability in &filter.capabilities {
            values.push(Box::new(capability.clone()));
            fits.push_str(" AND id IN (SELECT peer FROM peer_capability WHERE capability = ?)");
        }
        if let Some(among) = &filter.among {
            values.push(Box::new(serde_json::json!(among).to_string()));
            fits.push_str(" AND name IN (SELECT value FROM json_each(?))");
        }
        let total = self.peer_value(&format!("SELECT count(*) FROM peer WHERE {fits}"), &values)?;
        let rank = filter.sort.rank();
        let mut page = fits;
        let mut skipped = 0;
        match from {
            From::Offset(offset) => skipped = i64::try_from(offset).unwrap_or(i64::MAX),
            From::Cursor(cursor) => {
                let (key, id) = cursor::open_ranked(filter, cursor)?;
                values.push(Box::new(key));
                values.push(Box::new(id));
                page.push_str(&format!(" AND ({rank}, name) > (?, (SELECT name FROM peer WHERE id = ?))"));
            }
        }
        // One more than asked for says whether there are more.
        values.push(Box::new(limit + 1));
        values.push(Box::new(skipped));
        let sql = format!(
            "SELECT {rank} AS rank, id, entity FROM peer WHERE {page} ORDER BY rank, name LIMIT ? OFFSET ?"
        );
        let mut find = self.state.prepare_cached(&sql)?;
        let mut rows = find.query(rusqlite::params_from_iter(values.iter().map(AsRef::as_ref)))?;
        let mut peers = Vec::new();
        let mut last = None;
        let mut more = false;
        while let Some(row) = rows.next()? {
            if peers.len() as u64 == limit {
                more = true;
                break;
            }
            last = Some((row.get(0)?, row.get(1)?));
            peers.push(read(&row.get::<_, Vec<u8>>(2)?)?);
        }
        let next_cursor = last.filter(|_| more).map(|(key, id)| cursor::name_ranked(filter, key, id));
        Ok(Page { rows: peers, total, next_cursor })
    }

    fn peer_value<T: FromSql>(&self, sql: &str, values: &[Box<dyn ToSql>]) -> Result<T, QueryError> {
        let mut find = self.state.prepare_cached(sql)?;
        Ok(find.query_row(rusqlite::params_from_iter(values.iter().map(AsRef::as_ref)), |row| row.get(0))?)
    }
}

/// Merges points into equal spans of minutes, so that they are within the bound.
fn thinned(points: Vec<Point>) -> Vec<Point> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return points };
    let minutes = (last.at_ms - first.at_ms) / MINUTE_MS + 1;
    let span_ms = minutes.div_ceil(HISTORY_MAX as u64) * MINUTE_MS;
    let begin_ms = first.at_ms;
    let mut thin: Vec<Point> = Vec::new();
    for point in points {
        match thin.last_mut() {
            Some(kept) if (kept.at_ms - begin_ms) / span_ms == (point.at_ms - begin_ms) / span_ms => {
                add(&mut kept.measured, &point.measured);
            }
            _ => thin.push(point),
        }
    }
    thin
}

fn add(sum: &mut PeerMeasured, next: &PeerMeasured) {
    if next.latency_p99_us > sum.latency_p99_us {
        (sum.latency_p50_us, sum.latency_p99_us) = (next.latency_p50_us, next.latency_p99_us);
    }
    sum.window_ms += next.window_ms;
    sum.samples += next.samples;
    sum.bytes_in += next.bytes_in;
    sum.bytes_out += next.bytes_out;
    sum.served += next.served;
    sum.sent += next.sent;
    sum.failures += next.failures;
    sum.connected_ms += next.connected_ms;
}
