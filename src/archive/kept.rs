//! Archives beside the log: exports of other nodes' runs, kept whole under the name of their root.
//!
//! Invariants:
//! - a file under a root's name was checked when it was kept, and every block is hashed again when it is read;
//! - an archive is evidence, never part of the log: nothing of it is folded, listed or exported again;
//! - payloads may be erased in it, and nothing else: what is missing of a payload counts as erased.

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

/// The directory of a data directory that they are kept in.
pub const DIRECTORY: &str = "archives";
/// What their files end with.
pub const EXTENSION: &str = "car";
/// Archives of one data directory: each is opened when one is looked for.
pub const ARCHIVES_MAX: usize = 1000;
/// Bytes of one archive.
pub const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Events of one archive: they are held in memory to decide a run again.
pub const EVENTS_MAX: u64 = 1_000_000;

/// An archive that was kept: its events in memory, its blocks where they lie.
pub struct Archive {
    root: Cid,
    file: File,
    /// In order.
    events: Vec<Event>,
    evidence: Evidence,
    places: HashMap<Cid, Place>,
}

/// Where a block's bytes are in the file.
#[derive(Clone, Copy)]
struct Place {
    at: u64,
    len: usize,
}

impl Archive {
    /// The archive of a subject that was imported last.
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
            places.insert(cid, Place { at: archive.at() - bytes.len() as u64, len: bytes.len() });
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

    /// What shows that its events are those that a key signed.
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

/// The manifest of an archive of which nothing was read yet; none where its root is no manifest of the known version.
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
