//! The file of peers: JSON that nodes on one machine, or on one shared disk, tell each other by.
//!
//! ```json
//! {"peers": [{"peer_id": "12D3…", "multiaddrs": ["/ip4/…/tcp/…"], "capabilities": [], "last_seen_ms": 1780000000000, "ttl_s": 3600}]}
//! ```
//!
//! Invariants:
//! - writers take turns by a lock beside the file, and replace it whole: a reader sees the old one or the new one;
//! - an entry that makes no sense is counted, kept for whoever wrote it, and hides no other.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{FOUND_MAX, Found, LookError, Looked, Origin, Source, Wanted, entry};
use crate::{log::home::unlinked, router::BoxFuture};

/// Bytes of the file.
pub const BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A file of peers.
pub struct PeersFile {
    path: PathBuf,
    ttl_ms: u64,
}

impl PeersFile {
    pub fn new(path: PathBuf, ttl_ms: u64) -> Self {
        Self { path, ttl_ms }
    }

    /// Writes a node's entry in place of its last one, and drops entries past their time to live.
    ///
    /// Blocks: the file is locked, written beside, flushed and renamed.
    pub fn announce(&self, own: &Found) -> io::Result<()> {
        self.change(own.seen_ms, &own.peer, Some(entry::write(own, self.ttl_ms)))
    }

    /// Removes a node's entry.
    pub fn withdraw(&self, peer: &str, now_ms: u64) -> io::Result<()> {
        self.change(now_ms, peer, None)
    }

    fn change(&self, now_ms: u64, peer: &str, with: Option<Value>) -> io::Result<()> {
        let lock = unlinked().create(true).truncate(false).write(true).open(beside(&self.path, "lock"))?;
        lock.lock()?;
        let mut entries = self.entries()?;
        let stays = |entry: &Value| {
            let past = entry::read(entry, self.ttl_ms, Origin::File)
                .is_some_and(|(found, ttl_ms)| found.seen_ms + ttl_ms < now_ms);
            entry["peer_id"].as_str() != Some(peer) && !past
        };
        entries.retain(stays);
        entries.extend(with);
        let fresh = beside(&self.path, "new");
        let mut file = unlinked().create(true).truncate(true).write(true).open(&fresh)?;
        let text = serde_json::to_vec_pretty(&json!({ "peers": entries }))?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)
        // The lock falls with its file.
    }

    /// Reads the entries; an empty list if there is no file yet.
    fn entries(&self) -> io::Result<Vec<Value>> {
        let mut text = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file.take(BYTES_MAX + 1).read_to_end(&mut text)?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(err) => return Err(err),
        };
        if text.len() as u64 > BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file of peers is over 8 MiB"));
        }
        let peers = match serde_json::from_slice(&text)? {
            Value::Array(entries) => Some(entries),
            Value::Object(mut whole) => match whole.remove("peers") {
                Some(Value::Array(entries)) => Some(entries),
                _ => None,
            },
            _ => None,
        };
        peers.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the file of peers holds no list of them")
        })
    }
}

impl Source for PeersFile {
    fn origin(&self) -> Origin {
        Origin::File
    }

    fn look(&self, _: Wanted, now_ms: u64) -> BoxFuture<'_, Result<Looked, LookError>> {
        let file = Self { path: self.path.clone(), ttl_ms: self.ttl_ms };
        Box::pin(async move {
            let entries = tokio::task::spawn_blocking(move || file.entries().map(|entries| (file, entries)));
            let (file, entries) = match entries.await {
                Ok(Ok(read)) => read,
                Ok(Err(err)) => return Err(unavailable(&err)),
                Err(_) => return Err(LookError::Unavailable("it was not read to its end".to_owned())),
            };
            let mut looked = Looked::default();
            for entry in &entries {
                match entry::read(entry, file.ttl_ms, Origin::File) {
                    None => looked.bad += 1,
                    Some((found, ttl_ms)) if found.seen_ms.saturating_add(ttl_ms) >= now_ms => {
                        if looked.found.len() < FOUND_MAX {
                            looked.found.push(found);
                        }
                    }
                    Some(_) => {}
                }
            }
            Ok(looked)
        })
    }
}

/// Makes the error of a file operation, without the file's path.
fn unavailable(err: &io::Error) -> LookError {
    LookError::Unavailable(match err.kind() {
        io::ErrorKind::PermissionDenied => "the file of peers may not be read".to_owned(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            "the file of peers is not a JSON list of them".to_owned()
        }
        io::ErrorKind::FileTooLarge => "the file of peers is over 8 MiB".to_owned(),
        kind => format!("the file of peers cannot be read: {kind}"),
    })
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}
