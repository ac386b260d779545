//! Writes exports and parts of the graph as CARv1 archives.
//!
//! Invariant: an archive of a whole log, from seq 0, is enough to restore that log under its signed head.

use std::{
    collections::{BTreeSet, HashSet},
    io::Write,
};

use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

use crate::{
    archive::export::{ExportError, Selected, Seqs},
    block::{Block, Cid, Codec, car, decode, links, payload::Payload},
    event::Event,
    merkle::several,
    query::{
        QueryError, View,
        beside::Logs,
        lookup::{Found, corrupt},
        proof::{Head, broken},
        walk::Walk,
    },
};

/// The version of the manifest.
pub const VERSION: u64 = 1;
/// A block of a proof has this many bytes, except that the last one may have fewer.
pub const PROOF_BLOCK: usize = 1024 * 1024;
/// The proof of one archive has at most this many blocks. That is eight million hashes, which a reader holds in memory.
pub const PROOF_BLOCKS_MAX: usize = 256;
/// Blocks of one archive of a graph.
const BLOCKS_MAX: usize = 10_000;
/// An archive of a graph has at most this many bytes.
pub const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The root block of an export, which says what the archive holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub v: u64,
    pub log: Cid,
    /// Holds the first seq, as `to` holds the last one.
    pub from: u64,
    pub to: u64,
    /// Counts the events in the archive.
    pub count: u64,
    /// Holds a signed head of the log, over at least these events.
    pub checkpoint: String,
    /// Names the entity if the archive is the record of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Lists the blocks of the proof that every event of the archive is under the head. It is left out if the archive
    /// holds every event under its head, and in archives that were written before proofs existed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Vec<Cid>>,
}

impl View {
    pub(super) fn export_car(&self, selected: &Selected, to: &mut dyn Write) -> Result<(), ExportError> {
        let first = self.log.event_at(selected.from).map_err(QueryError::from)?;
        let log = first.ok_or_else(|| corrupt("an event is missing"))?.fields().log;
        let proof = self.proof_of(selected)?;
        let manifest = Block::encode(&Manifest {
            v: VERSION,
            log,
            from: selected.from,
            to: selected.to,
            count: selected.count,
            checkpoint: selected.head.note.clone(),
            subject: selected.subject.clone(),
            proof: proof.as_ref().map(|blocks| blocks.iter().map(Block::cid).collect()),
        });
        let mut archive = car::Writer::new(to, manifest.cid())?;
        archive.write(&manifest.cid(), manifest.bytes())?;
        for block in proof.iter().flatten() {
            archive.write(&block.cid(), block.bytes())?;
        }
        archive.write(&log, &self.genesis(&log)?.1)?;
        for number in self.contracts_in(selected)? {
            let cid = self.log.block_named(number).map_err(QueryError::from)?;
            let cid = cid.ok_or_else(|| corrupt("a contract is missing"))?;
            archive.write(&cid, &self.stored(&cid)?.ok_or_else(|| corrupt("a contract is missing"))?)?;
        }
        for plan in self.plans_in(selected)? {
            archive.write(&plan, &self.stored(&plan)?.ok_or_else(|| corrupt("a plan is missing"))?)?;
        }
        self.visit(selected, &mut |event| {
            archive.append(&event.cid(), event.bytes())?;
            self.write_payloads(event, selected, &mut archive)
        })?;
        archive.finish()?;
        Ok(())
    }

    /// Returns the blocks of the proof that the selected events are under their head; returns none if they are all the
    /// events under it.
    fn proof_of(&self, selected: &Selected) -> Result<Option<Vec<Block>>, QueryError> {
        let Selected { from, to, count, .. } = *selected;
        let size = selected.head.size;
        if count == size {
            return Ok(None);
        }
        let seqs = match &selected.seqs {
            Seqs::Fitting { gapless: true, .. } => None,
            Seqs::Fitting { filter, gapless: false } => Some(self.all_seqs(filter, from)?),
            Seqs::These(seqs) => Some(seqs.clone()),
        };
        let holds = |start: u64, end: u64| match &seqs {
            None => start <= to && end > from,
            Some(seqs) => {
                let first = seqs.partition_point(|seq| *seq < start);
                seqs.get(first).is_some_and(|seq| *seq < end)
            }
        };
        let hashes = several::inclusion_of(&self.tiles(), size, &holds).map_err(broken)?.concat();
        let blocks: Vec<Block> =
            hashes.chunks(PROOF_BLOCK).map(|hashes| Block::new(Codec::Raw, hashes.to_vec())).collect();
        match blocks.len() <= PROOF_BLOCKS_MAX {
            true => Ok(Some(blocks)),
            false => Err(QueryError::TooMuch(
                "the proof of so many events apart is over its bound; export fewer of them, or the whole log"
                    .to_owned(),
            )),
        }
    }

    /// Writes the payloads of an event that no earlier event of the export holds. In a gapless export the index tells
    /// which those are, so no names are remembered.
    fn write_payloads<W: Write>(
        &self,
        event: &Event,
        selected: &Selected,
        archive: &mut car::Writer<W>,
    ) -> Result<(), ExportError> {
        let mut here = HashSet::new();
        for pay in &event.fields().pay {
            if !here.insert(pay.cid) {
                continue;
            }
            let gapless = matches!(selected.seqs, Seqs::Fitting { gapless: true, .. });
            if gapless && !self.held_first(&pay.cid, event.fields().seq, selected.from)? {
                continue;
            }
            let Some(bytes) = self.stored(&pay.cid)? else {
                continue;
            };
            let new = match gapless {
                true => archive.append(&pay.cid, &bytes).map(|()| true)?,
                false => archive.write(&pay.cid, &bytes)?,
            };
            if !new {
                continue;
            }
            // A block that is named as a payload and is none has no parts, so only the block itself is written.
            let payload: Option<Payload> = decode(&bytes).ok();
            let parts = payload.and_then(|payload| payload.layout(None).ok()).unwrap_or_default();
            for part in parts {
                if let Some(bytes) = self.stored(&part.cid)? {
                    archive.write(&part.cid, &bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether no event from `from` to before `seq` holds the payload.
    fn held_first(&self, payload: &Cid, seq: u64, from: u64) -> Result<bool, QueryError> {
        let Some(number) = self.log.number_of(payload)? else {
            return Ok(true);
        };
        let sql = "SELECT min(seq) FROM holds WHERE block = ?1 AND seq >= ?2";
        let mut statement = self.state.prepare_cached(sql)?;
        let first: Option<u64> = statement.query_row([number, from], |row| row.get(0))?;
        Ok(first.is_none_or(|first| first >= seq))
    }

    /// Returns the block numbers of the contracts that the selected events name.
    fn contracts_in(&self, selected: &Selected) -> Result<Vec<u64>, QueryError> {
        let Seqs::These(seqs) = &selected.seqs else {
            let Seqs::Fitting { filter, .. } = &selected.seqs else {
                return Ok(Vec::new());
            };
            return self.contracts_fitting(filter);
        };
        let mut statement = self.state.prepare_cached("SELECT tool FROM entry WHERE seq = ?1")?;
        let mut numbers = BTreeSet::new();
        for seq in seqs {
            let number: Option<u64> = statement.query_row([seq], |row| row.get(0))?;
            numbers.extend(number);
        }
        Ok(numbers.into_iter().collect())
    }

    /// Returns the plans of the runs that the selected events submit.
    fn plans_in(&self, selected: &Selected) -> Result<Vec<Cid>, QueryError> {
        let numbers: BTreeSet<u64> = match &selected.seqs {
            Seqs::These(seqs) => {
                let mut statement = self.state.prepare_cached("SELECT plan FROM workflow WHERE id = ?1")?;
                let plan = |seq| statement.query_row([seq], |row| row.get::<_, Option<u64>>(0)).optional();
                let plans = seqs.iter().map(plan).collect::<Result<Vec<_>, _>>()?;
                plans.into_iter().flatten().flatten().collect()
            }
            Seqs::Fitting { gapless: true, .. } => {
                let sql =
                    "SELECT DISTINCT plan FROM workflow WHERE plan IS NOT NULL AND id BETWEEN ?1 AND ?2";
                let mut statement = self.state.prepare_cached(sql)?;
                let rows = statement.query_map([selected.from, selected.to], |row| row.get(0))?;
                rows.collect::<Result<_, _>>()?
            }
            // Such a selection is of one entity that is not a run, so it submits none.
            Seqs::Fitting { gapless: false, .. } => BTreeSet::new(),
        };
        let plan = |number| self.log.block_named(number)?.ok_or_else(|| corrupt("a plan is missing"));
        numbers.into_iter().map(plan).collect()
    }

    /// Returns the bytes of a block; returns none if they were erased or are not stored here.
    fn stored(&self, cid: &Cid) -> Result<Option<Vec<u8>>, QueryError> {
        Ok(self.log.bytes(cid)?)
    }

    /// Returns `root` and everything reachable from it by links, depth first. Errors: `TooMuch` if that is over
    /// `BLOCKS_MAX` or `BYTES_MAX`.
    pub fn graph(&self, root: &Cid) -> Result<Vec<Cid>, QueryError> {
        self.find(root)?;
        let mut known = HashSet::from([*root]);
        let mut open = vec![*root];
        let mut met = Vec::new();
        let mut bytes = 0;
        while let Some(cid) = open.pop() {
            let found = match self.find(&cid) {
                Ok(found) => found,
                // The block was erased or belongs to another log, so its links are not known.
                Err(QueryError::Erased { .. } | QueryError::NotFound(_)) => continue,
                Err(err) => return Err(err),
            };
            met.push(cid);
            bytes += found.bytes().len();
            if met.len() > BLOCKS_MAX || bytes > BYTES_MAX {
                return Err(too_much());
            }
            let links = links(cid.codec(), found.bytes()).map_err(|_| corrupt("a block"))?;
            // The links are pushed in reverse, so that the first one is taken first.
            open.extend(links.into_iter().rev().filter(|link| known.insert(*link)));
        }
        Ok(met)
    }

    /// Writes the blocks named `cids` as an archive with the root `root`.
    pub fn write_graph(&self, root: &Cid, cids: &[Cid], to: &mut dyn Write) -> Result<(), ExportError> {
        let mut archive = car::Writer::new(to, *root)?;
        for cid in cids {
            match self.find(cid)? {
                Found::Event(event) => archive.write(cid, event.bytes())?,
                Found::Block { bytes, .. } => archive.write(cid, &bytes)?,
            };
        }
        archive.finish()?;
        Ok(())
    }
}

impl Logs<'_> {
    /// Returns an archive of the start and the nodes of a walk, each read from the log that has it. Errors: `TooMuch`
    /// if they are over [`BYTES_MAX`].
    pub fn walk_car(&self, start: &Cid, walk: &Walk) -> Result<Vec<u8>, QueryError> {
        let in_memory = |_| corrupt("an archive");
        let mut archive = car::Writer::new(Vec::new(), *start).map_err(in_memory)?;
        let mut bytes = 0;
        for cid in std::iter::once(start).chain(walk.nodes.iter().map(|node| &node.cid)) {
            let found = match self.ask(&Head::default(), |view, _| view.find(cid)) {
                Ok(found) => found,
                // The block was erased or belongs to a log that is not kept here.
                Err(QueryError::Erased { .. } | QueryError::NotFound(_)) => continue,
                Err(err) => return Err(err),
            };
            bytes += found.bytes().len();
            if bytes > BYTES_MAX {
                return Err(too_much());
            }
            archive.write(cid, found.bytes()).map_err(in_memory)?;
        }
        archive.finish().map_err(in_memory)
    }
}

fn too_much() -> QueryError {
    QueryError::TooMuch(format!(
        "the graph is over the bound of {BLOCKS_MAX} blocks or {BYTES_MAX} bytes; ask for parts of it"
    ))
}
