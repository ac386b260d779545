//! Folds events into the tables, one after another.
//!
//! Invariants:
//! - each event is folded once and in order, and a batch is one transaction;
//! - what a row holds depends on the log alone, and not on how the events were grouped into batches.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    block::Cid,
    event::{Body, Event},
    log::{LogError, Reader},
    merkle::{self, Growing},
    metrics::Metrics,
    peer::Peer,
    state::{
        StateError, StoredTiles, counts::Counts, erasures, events_from, peers, progress, recent::Entities,
        subject_key, tile_id,
    },
};

/// The seqs of about this many recent events are remembered, so that most causes need no look-up.
const RECENT_MAX: usize = 16 * 1024;
/// At most this many words are remembered, such as kinds, tool names and recent actors. The others are looked up.
const WORDS_MAX: usize = 16 * 1024;
/// At most this many pairs of a name and a contract are remembered.
const CALLED_MAX: usize = 4 * 1024;

/// Owns the state's writing connection, and folds events into it.
pub struct Folder {
    pub(super) state: Connection,
    pub(super) log: Box<dyn Reader>,
    applied: u64,
    last: Option<Cid>,
    tree: Growing,
    /// Counts the words in the tables. The next word gets this number plus one.
    word_count: u64,
    words: HashMap<String, u64>,
    /// Holds pairs of a name and a contract that were called recently.
    called: HashSet<(u64, u64)>,
    tally: HashMap<u64, u64>,
    recent: HashMap<Cid, u64>,
    /// Holds the changes of the counts that are not written yet.
    pub(super) counts: Counts,
    /// Tasks, workers and schedules that events were about lately.
    pub(super) entities: Entities,
    /// Holds the peers that changed in this batch, by the numbers of their subjects.
    pub(super) peers: HashMap<u64, Peer>,
    /// Holds the payloads whose erasure holds.
    erased: HashSet<Cid>,
    /// Receives how long work waits and takes. None while the fold catches up with a log.
    pub(super) watcher: Option<Arc<Metrics>>,
}

impl Folder {
    /// Reports to `metrics` from now on how long work waits and takes.
    pub fn watched_by(&mut self, metrics: Option<Arc<Metrics>>) {
        self.watcher = metrics;
    }

    /// Continues at the last folded event.
    pub fn resume(state: Connection, log: Box<dyn Reader>) -> Result<Self, StateError> {
        let at = progress(&state)?;
        let tree = Growing::resume(at.applied, &StoredTiles { state: &state, log: log.as_ref() })
            .map_err(|_| StateError::Broken { what: "the merkle tiles are incomplete" })?;
        let word_count = state.query_row("SELECT coalesce(max(id), 0) FROM word", [], |row| row.get(0))?;
        let tally = pairs(&state, "SELECT kind, n FROM tally")?;
        let erased = erasures(&state)?.into_iter().map(|(cid, _)| cid).collect();
        Ok(Self {
            state,
            log,
            applied: at.applied,
            last: at.last,
            tree,
            word_count,
            words: HashMap::new(),
            called: HashSet::new(),
            tally,
            recent: HashMap::new(),
            counts: Counts::default(),
            entities: Entities::default(),
            peers: HashMap::new(),
            erased,
            watcher: None,
        })
    }

    /// Returns the number of events folded so far.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    pub fn last(&self) -> Option<Cid> {
        self.last
    }

    pub fn root(&self) -> merkle::Hash {
        self.tree.root()
    }

    /// Returns the right edge of the tree over the events folded so far.
    pub fn edge(&self) -> Growing {
        self.tree.clone()
    }

    pub fn state(&self) -> &Connection {
        &self.state
    }

    /// Folds the next events in one transaction. After an error the folder is ahead of its tables and must be dropped.
    pub fn apply(&mut self, events: &[Event]) -> Result<(), StateError> {
        // A crash before the commit leaves the state as it was, and the events are folded again at the next start.
        self.state.execute_batch("BEGIN")?;
        let folded = events.iter().try_for_each(|event| self.fold(event)).and_then(|()| self.finish());
        if folded.is_err() {
            self.state.execute_batch("ROLLBACK")?;
        }
        folded
    }

    fn finish(&mut self) -> Result<(), StateError> {
        self.write_tasks()?;
        {
            let mut tiles = self.state.prepare_cached(
                "INSERT INTO tile (id, hashes) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET hashes = ?2",
            )?;
            // Tiles of level 0 are not stored, because they are made from the digests of the events in the log.
            for row in self.tree.take_changed().into_iter().filter(|row| row.level > 0) {
                tiles.execute(params![tile_id(row.level, row.index), row.hashes])?;
            }
            let mut tally = self.state.prepare_cached(
                "INSERT INTO tally (kind, n) VALUES (?1, ?2) ON CONFLICT (kind) DO UPDATE SET n = ?2",
            )?;
            for (kind, n) in &self.tally {
                tally.execute(params![kind, n])?;
            }
            self.counts.write(&self.state)?;
            peers::write(&self.state, &mut self.peers)?;
            let mut progress = self.state.prepare_cached("UPDATE progress SET applied = ?1, last = ?2")?;
            progress.execute(params![self.applied, self.last.map(|cid| *cid.digest())])?;
        }
        self.state.execute_batch("COMMIT")?;
        self.entities.age();
        if self.recent.len() > RECENT_MAX {
            self.recent.clear();
        }
        Ok(())
    }

    fn fold(&mut self, event: &Event) -> Result<(), StateError> {
        let fields = event.fields();
        if fields.seq != self.applied {
            return Err(StateError::Broken { what: "events are missing between the state and the log" });
        }
        let seq = fields.seq;
        let kind = self.word(&fields.kind)?;
        let actor = self.word(&fields.actor.id)?;
        let subject = self.subject(&fields.subject, seq)?;
        let tool = fields.tool.map(|cid| self.block(&cid)).transpose()?.flatten();
        self.insert(
            "INSERT INTO entry (seq, kind, subject, actor, tool, ts) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![seq, kind, subject, actor, tool, fields.ts],
        )?;
        for parent in fields.cause.iter().chain(&fields.refs) {
            let parent = self.parent(parent)?;
            self.insert("INSERT OR IGNORE INTO edge (child, parent) VALUES (?1, ?2)", params![seq, parent])?;
        }
        for pay in &fields.pay {
            if self.erased.remove(&pay.cid) {
                // An erasure holds only for earlier events. From here on, the payload is content again.
                self.insert("DELETE FROM erased WHERE cid = ?1", params![pay.cid.to_bytes()])?;
            }
            if let Some(block) = self.block(&pay.cid)? {
                self.insert("INSERT OR IGNORE INTO holds (block, seq) VALUES (?1, ?2)", params![block, seq])?;
            }
        }
        self.remember(event, actor, subject, tool)?;
        self.tree.push(merkle::leaf_hash(&event.cid()));
        *self.tally.entry(kind).or_default() += 1;
        self.recent.insert(event.cid(), seq);
        self.applied += 1;
        self.last = Some(event.cid());
        Ok(())
    }

    /// Remembers the question that a later request answers by its state, if it has one.
    fn asked(&self, state: Option<&[u8; 16]>, seq: u64) -> Result<(), StateError> {
        let Some(state) = state else { return Ok(()) };
        let sql = "INSERT INTO asked (state, seq) VALUES (?1, ?2)
                   ON CONFLICT (state) DO UPDATE SET seq = ?2";
        self.insert(sql, params![*state, seq])
    }

    /// Folds what a kind changes beyond the indexes.
    fn remember(
        &mut self,
        event: &Event,
        actor: u64,
        subject: u64,
        tool: Option<u64>,
    ) -> Result<(), StateError> {
        let seq = event.fields().seq;
        // An event of an unknown kind is indexed and verified, and changes nothing else.
        let Some(body) = event.body() else {
            return Ok(());
        };
        match body {
            // These are read from the events themselves, by kind or subject.
            Body::LogOpened(_)
            | Body::LogRecovered(_)
            | Body::LogTakenOver(_)
            | Body::LogSalted(_)
            | Body::LogKeyRotated(_)
            | Body::TokenAdded(_)
            | Body::TokenRevoked(_)
            | Body::AccessRead(_)
            | Body::AccessRefused(_)
            | Body::AccessExported(_)
            | Body::CallAnswered(_)
            | Body::ConfigApplied(_) => Ok(()),
            Body::ContractPublished(facts) => {
                self.contract(&facts.source, &facts.name, &facts.contract, seq, true)
            }
            Body::ContractRetired(facts) => {
                self.contract(&facts.source, &facts.name, &facts.contract, seq, false)
            }
            Body::CallStarted(facts) => {
                let runner = self.word(&facts.runner)?;
                let sql = "INSERT INTO running (id, runner) VALUES (?1, ?2)";
                self.insert(sql, params![seq, runner])?;
                if let Some(contract) = tool.filter(|_| !facts.name.is_empty()) {
                    self.called(&facts.name, contract)?;
                }
                let Some(key) = facts.key else { return Ok(()) };
                let name = self.word(&facts.name)?;
                let sql = "INSERT INTO call_key (actor, name, key, call) VALUES (?1, ?2, ?3, ?4)
                           ON CONFLICT (actor, name, key) DO UPDATE SET call = ?4";
                self.insert(sql, params![actor, name, key, seq])
            }
            Body::CallSucceeded(_)
            | Body::CallFailed(_)
            | Body::CallRefused(_)
            | Body::CallInterrupted(_)
            | Body::CallCancelled(_) => self.insert("DELETE FROM running WHERE id = ?1", params![subject]),
            Body::CallAsked(facts) => self.asked(facts.state.as_deref(), seq),
            Body::PayloadErased(facts) => {
                self.erased.insert(facts.payload);
                let sql =
                    "INSERT INTO erased (cid, seq) VALUES (?1, ?2) ON CONFLICT (cid) DO UPDATE SET seq = ?2";
                self.insert(sql, params![facts.payload.to_bytes(), seq])
            }
            Body::PeerDiscovered(_)
            | Body::PeerConnected(_)
            | Body::PeerDisconnected(_)
            | Body::PeerUnreachable(_)
            | Body::PeerMeasured(_)
            | Body::PeerForked(_)
            | Body::PeerReleased(_)
            | Body::RemoteCalled(_)
            | Body::LogFollowed(_) => peers::remember(&self.state, &mut self.peers, event, subject),
            work => self.remember_work(event, work, subject),
        }
    }

    /// Records that a contract was called under a name. Nearly every pair was recorded just before.
    fn called(&mut self, name: &str, contract: u64) -> Result<(), StateError> {
        let name = self.word(name)?;
        if self.called.contains(&(name, contract)) {
            return Ok(());
        }
        self.insert("INSERT OR IGNORE INTO called (name, block) VALUES (?1, ?2)", params![name, contract])?;
        if self.called.len() >= CALLED_MAX {
            self.called.clear();
        }
        self.called.insert((name, contract));
        Ok(())
    }

    fn contract(
        &mut self,
        source: &str,
        name: &str,
        cid: &Cid,
        seq: u64,
        offered: bool,
    ) -> Result<(), StateError> {
        let (source, name) = (self.word(source)?, self.word(name)?);
        let block =
            self.block(cid)?.ok_or(StateError::Broken { what: "a published contract has no block" })?;
        let sql = "INSERT INTO contract (source, name, block, seq, offered) VALUES (?1, ?2, ?3, ?4, ?5)
                   ON CONFLICT (source, name) DO UPDATE SET block = ?3, seq = ?4, offered = ?5";
        self.insert(sql, params![source, name, block, seq, offered])
    }

    pub(super) fn insert(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<(), StateError> {
        self.state.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    pub(super) fn word(&mut self, text: &str) -> Result<u64, StateError> {
        if let Some(id) = self.words.get(text) {
            return Ok(*id);
        }
        let known = {
            let mut find = self.state.prepare_cached("SELECT id FROM word WHERE text = ?1")?;
            find.query_row([text], |row| row.get(0)).optional()?
        };
        let id = match known {
            Some(id) => id,
            None => {
                self.word_count += 1;
                self.insert("INSERT INTO word (id, text) VALUES (?1, ?2)", params![self.word_count, text])?;
                self.word_count
            }
        };
        if self.words.len() >= WORDS_MAX {
            self.words.clear();
        }
        self.words.insert(text.to_owned(), id);
        Ok(id)
    }

    fn subject(&self, subject: &str, seq: u64) -> Result<u64, StateError> {
        let key = subject_key(subject);
        let mut find = self.state.prepare_cached("SELECT id FROM subject WHERE name = ?1")?;
        if let Some(id) = find.query_row([&key], |row| row.get(0)).optional()? {
            return Ok(id);
        }
        self.insert("INSERT INTO subject (name, id) VALUES (?1, ?2)", params![key, seq])?;
        Ok(seq)
    }

    /// The events of the subject of this number that stand before `seq`.
    pub(super) fn events_before(
        &self,
        subject: u64,
        seq: u64,
    ) -> Result<impl Iterator<Item = Result<Event, LogError>>, StateError> {
        let seqs = events_from(&self.state, subject)?.into_iter().take_while(move |at| *at < seq);
        Ok(seqs.filter_map(|seq| self.log.event_at(seq).transpose()))
    }

    pub(super) fn block(&self, cid: &Cid) -> Result<Option<u64>, StateError> {
        Ok(self.log.number_of(cid)?)
    }

    /// Returns the number by which an edge names a parent: the seq of an event of this log, or minus the number of an
    /// event of another log.
    fn parent(&self, cid: &Cid) -> Result<i64, StateError> {
        let known = match self.recent.get(cid) {
            Some(seq) => Some(*seq),
            None => self.log.seq_of(cid)?,
        };
        if let Some(seq) = known {
            return i64::try_from(seq).map_err(|_| StateError::Broken { what: "a seq over 2^63" });
        }
        self.insert("INSERT OR IGNORE INTO foreign_event (cid) VALUES (?1)", params![cid.to_bytes()])?;
        let mut find = self.state.prepare_cached("SELECT -id FROM foreign_event WHERE cid = ?1")?;
        Ok(find.query_row([cid.to_bytes()], |row| row.get(0))?)
    }
}

fn pairs<K, V>(state: &Connection, sql: &str) -> Result<HashMap<K, V>, StateError>
where
    K: rusqlite::types::FromSql + std::hash::Hash + Eq,
    V: rusqlite::types::FromSql,
{
    let mut statement = state.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
