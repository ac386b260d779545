//! The table's provider records: who says that they serve a key.
//!
//! Invariants:
//! - this node's own records never give way to those of others;
//! - no peer has more than its share, and all others together have a bound;
//! - values are not stored: the table answers who, never what.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet, btree_map},
    iter,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use libp2p::{
    PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};

use crate::p2p::limits;

/// Keys longer than this are no CIDs and no multihashes.
const KEY_BYTES_MAX: usize = 128;

/// What this node provides, and what it keeps for others.
pub struct Records {
    local: PeerId,
    own: BTreeMap<Vec<u8>, ProviderRecord>,
    others: HashMap<RecordKey, Vec<ProviderRecord>>,
    /// Keys of each other peer.
    shares: HashMap<PeerId, HashSet<RecordKey>>,
    /// Records in `others`.
    held: usize,
    refused: Arc<AtomicU64>,
}

impl Records {
    pub fn new(local: PeerId, refused: Arc<AtomicU64>) -> Self {
        Self { local, own: BTreeMap::new(), others: HashMap::new(), shares: HashMap::new(), held: 0, refused }
    }

    /// Drops the records that were not published again in time.
    pub fn expire(&mut self, now: Instant) {
        let stale = self.others.iter().flat_map(|(key, records)| {
            let stale = records.iter().filter(move |record| record.is_expired(now));
            stale.map(move |record| (key.clone(), record.provider))
        });
        for (key, provider) in stale.collect::<Vec<_>>() {
            self.remove_provider(&key, &provider);
        }
    }

    fn refuse(&self) -> Result<()> {
        self.refused.fetch_add(1, Relaxed);
        Err(Error::MaxProvidedKeys)
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Map<
        btree_map::Values<'a, Vec<u8>, ProviderRecord>,
        fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>,
    >;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        self.refused.fetch_add(1, Relaxed);
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, mut record: ProviderRecord) -> Result<()> {
        if record.provider == self.local {
            if self.own.len() >= limits::PROVIDED_MAX {
                return Err(Error::MaxProvidedKeys);
            }
            self.own.insert(record.key.to_vec(), record);
            return Ok(());
        }
        record.addresses.truncate(limits::ADDRESSES_PER_PEER_MAX);
        let known = self.others.get_mut(&record.key).into_iter().flatten();
        if let Some(known) = known.into_iter().find(|known| known.provider == record.provider) {
            *known = record;
            return Ok(());
        }
        let share = self.shares.get(&record.provider).map_or(0, HashSet::len);
        let of_key = self.others.get(&record.key).map_or(0, Vec::len);
        if record.key.as_ref().len() > KEY_BYTES_MAX
            || share >= limits::RECORDS_PER_PEER_MAX
            || of_key >= limits::PROVIDERS_MAX
            || self.held >= limits::RECORDS_MAX
        {
            return self.refuse();
        }
        self.held += 1;
        self.shares.entry(record.provider).or_default().insert(record.key.clone());
        self.others.entry(record.key.clone()).or_default().push(record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let own = self.own.get(key.as_ref());
        own.into_iter().chain(self.others.get(key).into_iter().flatten()).cloned().collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.own.values().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.local {
            self.own.remove(key.as_ref());
            return;
        }
        let Some(records) = self.others.get_mut(key) else {
            return;
        };
        let before = records.len();
        records.retain(|record| record.provider != *provider);
        self.held -= before - records.len();
        if records.is_empty() {
            self.others.remove(key);
        }
        if let Some(share) = self.shares.get_mut(provider) {
            share.remove(key);
            if share.is_empty() {
                self.shares.remove(provider);
            }
        }
    }
}
