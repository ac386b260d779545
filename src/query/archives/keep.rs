//! Keeping an archive: every block and event checked on its way into the data directory.
//!
//! Invariants:
//! - an archive takes its name once it is whole and checked; of one that is refused nothing is left;
//! - what nothing names is not kept: contracts and plans come before the events, payloads after the first that holds them.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{ARCHIVES_MAX, BYTES_MAX, DIRECTORY, EVENTS_MAX, EXTENSION};
use crate::{
    block::{
        Cid, Codec,
        car::{self, CarError},
        decode, encode,
    },
    contract::Contract,
    event::{Body, Event, Genesis},
    identity::{Verifier, open_checkpoint},
    query::{export::archive::Manifest, payload_parts},
    workflow::plan::Plan,
};

/// Events between two words about progress.
const STEP: u64 = 1024;

/// An archive that was kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Whose record it is.
    pub subject: String,
    pub file: PathBuf,
    pub events: u64,
    pub blocks: u64,
}

/// Why an archive is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("the archive is refused")]
    Car(#[from] CarError),
    #[error("the archive is refused: event {seq}, {cid}: {fault}")]
    Event { seq: u64, cid: Cid, fault: &'static str },
    #[error("the archive is refused: block {cid}: {fault}")]
    Block { cid: Cid, fault: &'static str },
    #[error(
        "the archive is refused: it holds {found} events, from {from} to {to}, not those its manifest speaks of"
    )]
    Count { found: u64, from: u64, to: u64 },
    #[error("the archive is refused: the submission of {subject} is not in it")]
    NoSubmission { subject: String },
    #[error("the archive holds {count} events; the bound is {EVENTS_MAX}")]
    TooLarge { count: u64 },
    #[error("the directory keeps {ARCHIVES_MAX} archives already; remove some of its `{DIRECTORY}`")]
    TooMany,
    #[error("the data directory cannot be written")]
    Io(#[from] io::Error),
}

/// Checks what follows the manifest of a record of `subject`, and keeps all of it in `dir`. `step` is told how many
/// events were checked.
pub fn keep<R: Read>(
    archive: car::Reader<R>,
    manifest: &Manifest,
    subject: &str,
    dir: &Path,
    step: &mut dyn FnMut(u64),
) -> Result<Kept, KeepError> {
    if manifest.count > EVENTS_MAX {
        return Err(KeepError::TooLarge { count: manifest.count });
    }
    let dir = dir.join(DIRECTORY);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let file = dir.join(format!("{}.{EXTENSION}", archive.root()));
    if !file.exists() && fs::read_dir(&dir)?.count() >= ARCHIVES_MAX {
        return Err(KeepError::TooMany);
    }
    // A crash leaves a part that nobody reads; the next import of the same archive begins it anew.
    let part = file.with_extension("part");
    let kept = write(archive, manifest, subject, &part, step).and_then(|(events, blocks)| {
        fs::rename(&part, &file)?;
        File::open(&dir)?.sync_all()?;
        Ok(Kept { subject: subject.to_owned(), file, events, blocks })
    });
    if kept.is_err() {
        let _ = fs::remove_file(&part);
    }
    kept
}

fn write<R: Read>(
    archive: car::Reader<R>,
    manifest: &Manifest,
    subject: &str,
    part: &Path,
    step: &mut dyn FnMut(u64),
) -> Result<(u64, u64), KeepError> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(part)?;
    let root = archive.root();
    let mut copy = car::Writer::new(BufWriter::new(file), root)?;
    copy.append(&root, &encode(manifest))?;
    let mut check = Check::new(manifest, subject);
    let mut bytes = 0;
    for section in archive {
        let (cid, block) = section?;
        bytes += block.len() as u64;
        if bytes > BYTES_MAX {
            return Err(CarError::TooLarge { max: BYTES_MAX }.into());
        }
        copy.append(&cid, &block)?;
        check.block(cid, block)?;
        if check.events.is_multiple_of(STEP) {
            step(check.events);
        }
    }
    check.end()?;
    let mut file = copy.finish()?;
    file.flush()?;
    file.get_ref().sync_all()?;
    Ok((check.events, check.blocks))
}

/// What was read so far of an archive.
struct Check<'a> {
    manifest: &'a Manifest,
    subject: &'a str,
    genesis: bool,
    contracts: HashSet<Cid>,
    plans: HashSet<Cid>,
    /// Payloads and their parts that an event has named.
    named: HashSet<Cid>,
    /// Causes that were not met yet.
    causes: HashSet<Cid>,
    /// Seq, name and moment of the last event.
    last: Option<(u64, Cid, u64)>,
    from: u64,
    submitted: bool,
    events: u64,
    blocks: u64,
}

impl<'a> Check<'a> {
    fn new(manifest: &'a Manifest, subject: &'a str) -> Self {
        Self {
            manifest,
            subject,
            genesis: false,
            contracts: HashSet::new(),
            plans: HashSet::new(),
            named: HashSet::new(),
            causes: HashSet::new(),
            last: None,
            from: 0,
            submitted: false,
            events: 0,
            blocks: 0,
        }
    }

    /// Checks the next block, whose bytes have its name.
    fn block(&mut self, cid: Cid, bytes: Vec<u8>) -> Result<(), KeepError> {
        if !self.genesis {
            self.blocks += 1;
            return self.genesis(cid, &bytes);
        }
        if self.named.contains(&cid) {
            self.blocks += 1;
            if cid.codec() == Codec::DagCbor {
                let parts = payload_parts(&bytes)
                    .ok_or(KeepError::Block { cid, fault: "the payload is malformed" })?;
                self.named.extend(parts);
            }
            return Ok(());
        }
        if self.last.is_none() && decode::<Contract>(&bytes).is_ok() {
            self.blocks += 1;
            self.contracts.insert(cid);
            return Ok(());
        }
        if self.last.is_none() && decode::<Plan>(&bytes).is_ok() {
            self.blocks += 1;
            self.plans.insert(cid);
            return Ok(());
        }
        match Event::open(bytes) {
            Ok(event) if cid.codec() == Codec::DagCbor => self.event(&event),
            Ok(_) | Err(_) => {
                Err(KeepError::Block { cid, fault: "it is no event, and nothing before it names it" })
            }
        }
    }

    /// The log's first block, whose key signed the head.
    fn genesis(&mut self, cid: Cid, bytes: &[u8]) -> Result<(), KeepError> {
        let refused = |fault| KeepError::Block { cid, fault };
        if cid != self.manifest.log {
            return Err(refused("it stands where the genesis block of the log should"));
        }
        let genesis: Genesis = decode(bytes).map_err(|_| refused("it is no genesis block"))?;
        let key = genesis.key.as_slice().try_into().ok();
        let verifier = key.and_then(|key| Verifier::from_key(&genesis.origin, key).ok());
        let verifier = verifier.ok_or_else(|| refused("it holds no ed25519 key"))?;
        let head = open_checkpoint(&self.manifest.checkpoint, &verifier)
            .map_err(|_| refused("the manifest's checkpoint is not signed with its key"))?;
        if head.size <= self.manifest.to {
            return Err(refused("the manifest's checkpoint does not reach the archive's last event"));
        }
        self.genesis = true;
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Result<(), KeepError> {
        let (fields, cid) = (event.fields(), event.cid());
        let rule = |holds: bool, fault| match holds {
            true => Ok(()),
            false => Err(KeepError::Event { seq: fields.seq, cid, fault }),
        };
        rule(fields.log == self.manifest.log, "it is of another log")?;
        if let Some((seq, prev, ts)) = self.last {
            rule(fields.seq > seq, "it stands after a later event")?;
            rule(fields.seq > seq + 1 || fields.prev == Some(prev), "`prev` is not the event before")?;
            rule(fields.ts >= ts, "`ts` is before that of the event before")?;
        } else {
            self.from = fields.seq;
        }
        rule(!self.causes.contains(&cid), "an earlier event names it as its cause")?;
        rule(fields.tool.is_none_or(|tool| self.contracts.contains(&tool)), "its contract is missing")?;
        if let Some(Body::WorkflowSubmitted(facts)) = event.body() {
            rule(self.plans.contains(&facts.plan), "its plan is missing")?;
            self.submitted |= fields.subject == self.subject;
        }
        self.causes.extend(fields.cause);
        self.named.extend(fields.pay.iter().map(|pay| pay.cid));
        self.last = Some((fields.seq, cid, fields.ts));
        self.events += 1;
        Ok(())
    }

    fn end(&self) -> Result<(), KeepError> {
        let Manifest { from, to, count, .. } = *self.manifest;
        let last = self.last.map_or(0, |(seq, ..)| seq);
        if (self.from, last, self.events) != (from, to, count) {
            return Err(KeepError::Count { found: self.events, from: self.from, to: last });
        }
        match self.submitted {
            true => Ok(()),
            false => Err(KeepError::NoSubmission { subject: self.subject.to_owned() }),
        }
    }
}
