//! Archives beside the log: records of other nodes' runs, each kept as one file under the CID of its root.
//!
//! Invariants:
//! - a file was checked when it was kept, and every block is hashed again when it is read;
//! - an archive is evidence and no part of the log: its events are not folded, listed or exported again;
//! - only payloads may be erased in it, so a missing payload counts as erased.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    archive::{
        evidence::{self, Evidence, Proof},
        writing::{Manifest, VERSION},
    },
    block::{
        Cid, Codec,
        car::{self, CarError, Limits, SECTION_MAX},
        decode_exactly,
    },
    event::Event,
    log::LogError,
    query::{QueryError, lookup::corrupt, source::Source},
};

/// A data directory keeps its archives in this directory.
pub const DIRECTORY: &str = "archives";
/// The file of an archive has this extension.
pub const EXTENSION: &str = "car";
/// A data directory keeps at most this many archives, because a look-up opens every one of them.
pub const ARCHIVES_MAX: usize = 1000;
/// An archive has at most this many bytes.
pub const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// An archive has at most this many events, because they are held in memory while a run is decided again.
pub const EVENTS_MAX: u64 = 1_000_000;

/// An archive that was kept. Its events are held in memory; other blocks are read from the file.
pub struct Archive {
    root: Cid,
    file: File,
    /// Holds the events in the order of their seqs.
    events: Vec<Event>,
    evidence: Evidence,
    places: HashMap<Cid, BlockSpan>,
}

/// Says where a block's bytes are in the file.
#[derive(Clone, Copy)]
struct BlockSpan {
    at: u64,
    len: usize,
}

impl Archive {
    /// Returns the archive of a subject with the latest modification time, which is the one that was imported last.
    pub fn of_subject(dir: &Path, subject: &str) -> Result<Option<Self>, QueryError> {
        let entries = match fs::read_dir(dir) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries.map_err(unreadable)?,
        };
        let mut latest: Option<(SystemTime, PathBuf, File)> = None;
        for entry in entries.take(ARCHIVES_MAX) {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let file = File::open(&path).map_err(unreadable)?;
            let kept = file.metadata().and_then(|about| about.modified()).map_err(unreadable)?;
            let manifest = opened(&file).ok().and_then(|mut archive| manifest(&mut archive));
            let wanted = manifest.is_some_and(|manifest| manifest.subject.as_deref() == Some(subject));
            if wanted && latest.as_ref().is_none_or(|(than, name, _)| (*than, name) < (kept, &path)) {
                latest = Some((kept, path, file));
            }
        }
        latest.map(|(.., file)| Self::read(file)).transpose()
    }

    fn read(mut file: File) -> Result<Self, QueryError> {
        file.rewind().map_err(unreadable)?;
        let mut archive = opened(&file).map_err(unreadable)?;
        let root = archive.root();
        let manifest = manifest(&mut archive).ok_or_else(|| corrupt("an archive without its manifest"))?;
        let mut proof = Proof::of(&manifest).map_err(corrupt)?;
        let mut genesis = None;
        let mut events = Vec::new();
        let mut places = HashMap::new();
        while let Some((cid, bytes)) = archive.next().transpose().map_err(unreadable)? {
            places.insert(cid, BlockSpan { at: archive.at() - bytes.len() as u64, len: bytes.len() });
            if proof.open() {
                proof.take(cid, &bytes).map_err(corrupt)?;
            } else if cid == manifest.log {
                genesis = Some(bytes);
            } else if cid.codec() == Codec::DagCbor
                && let Ok(event) = Event::open(bytes)
                && event.fields().log == manifest.log
            {
                events.push(event);
            }
        }
        drop(archive);
        let genesis = genesis.ok_or_else(|| corrupt("an archive without its genesis block"))?;
        let evidence = evidence::judge_read(&manifest, &genesis, &events, &proof).map_err(corrupt)?;
        Ok(Self { root, file, events, evidence, places })
    }

    /// Returns whether the events are shown to be those that the log's key signed.
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    pub fn root(&self) -> Cid {
        self.root
    }
}

impl Source for Archive {
    fn events_of_run(&self, id: &str, as_of: Option<u64>) -> Result<Vec<Event>, QueryError> {
        let (run, tasks) = (format!("workflow/{id}"), format!("task/{id}#"));
        let of_run = |event: &&Event| {
            let fields = event.fields();
            (fields.subject == run || fields.subject.starts_with(&tasks))
                && as_of.is_none_or(|as_of| fields.seq <= as_of)
        };
        Ok(self.events.iter().filter(of_run).cloned().collect())
    }

    fn bytes(&self, cid: &Cid) -> Result<Option<Vec<u8>>, QueryError> {
        let Some(place) = self.places.get(cid) else { return Ok(None) };
        let mut bytes = vec![0; place.len];
        self.file.read_exact_at(&mut bytes, place.at).map_err(unreadable)?;
        match cid.names(&bytes) {
            true => Ok(Some(bytes)),
            false => Err(corrupt("a block of an archive does not have its name")),
        }
    }
}

/// Returns the manifest of an archive that was not read yet; returns none if its root is no manifest of the known
/// version.
pub fn manifest<R: Read>(archive: &mut car::Reader<R>) -> Option<Manifest> {
    let root = archive.root();
    let (cid, bytes) = archive.next()?.ok()?;
    let manifest =
        (cid == root && cid.codec() == Codec::DagCbor).then(|| decode_exactly(&bytes).ok()).flatten();
    manifest.filter(|manifest: &Manifest| manifest.v == VERSION)
}

pub(super) fn opened(file: &File) -> Result<car::Reader<BufReader<&File>>, CarError> {
    let mut file = file;
    file.rewind()?;
    car::Reader::new(BufReader::new(file), Limits { section_max: SECTION_MAX, total_max: BYTES_MAX })
}

fn unreadable(err: impl std::error::Error + Send + Sync + 'static) -> QueryError {
    LogError::Store(Box::new(err)).into()
}
