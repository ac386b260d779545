//! Questions to the table of providers and peers, from the asking to the answer.
//!
//! Invariants:
//! - each question has an end: its own, its deadline, or that nobody waits for it any more;
//! - walks of the table that are asked for together are one walk;
//! - own keys are told a few at a time, and again when the neighbourhood changes while it is small.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Instant,
};

use libp2p::{
    PeerId,
    kad::{self, QueryId, QueryResult, RecordKey, store::RecordStore as _},
};
use tokio::sync::oneshot;

use crate::{
    block::Cid,
    p2p::{NetError, limits, swarm::records::Records},
};

type Walked = oneshot::Sender<Result<(), NetError>>;
/// Peers, or addresses of one.
type Found = oneshot::Sender<Result<Vec<String>, NetError>>;
pub type Kad = kad::Behaviour<Records>;

/// The lookups and publications under way.
#[derive(Default)]
pub struct Questions {
    open: HashMap<QueryId, Question>,
    walk: Option<QueryId>,
    walkers: Vec<Walked>,
    untold: VecDeque<RecordKey>,
    /// Nodes in the table when own keys were last published.
    told_among: usize,
}

enum Question {
    Providers { found: HashSet<PeerId>, deadline: Instant, answer: Found },
    Peer { peer: PeerId, answer: Found },
}

/// Returns the key of a block's provider records: the bytes of its CID.
pub fn key(cid: &Cid) -> RecordKey {
    RecordKey::new(&cid.to_bytes())
}

impl Questions {
    pub fn busy(&self) -> bool {
        self.open.len() >= limits::QUERIES_MAX
    }

    pub fn providers(&mut self, kad: &mut Kad, key: RecordKey, deadline: Instant, answer: Found) {
        let id = kad.get_providers(key);
        self.open.insert(id, Question::Providers { found: HashSet::new(), deadline, answer });
    }

    pub fn peer(&mut self, kad: &mut Kad, peer: PeerId, answer: Found) {
        let id = kad.get_closest_peers(peer);
        self.open.insert(id, Question::Peer { peer, answer });
    }

    /// Looks up this node's own id, so that its neighbours learn of it. The far buckets are left to the table's own
    /// refresh, which costs ten times as much and which nobody waits for.
    pub fn walk(&mut self, kad: &mut Kad, local: PeerId, answer: Walked) {
        if kad.kbuckets().all(|bucket| bucket.is_empty()) {
            let _ = answer.send(Err(NetError::NoAddress));
            return;
        }
        if self.walkers.len() >= limits::QUERIES_MAX {
            let _ = answer.send(Err(NetError::Busy));
            return;
        }
        self.walk.get_or_insert_with(|| kad.get_closest_peers(local));
        self.walkers.push(answer);
    }

    /// Publishes keys, a few at a time. Errors: `Busy` if they are more than one node may provide.
    pub fn provide(
        &mut self,
        kad: &mut Kad,
        keys: impl ExactSizeIterator<Item = RecordKey>,
    ) -> Result<(), NetError> {
        if kad.store_mut().provided().count() + self.untold.len() + keys.len() > limits::PROVIDED_MAX {
            return Err(NetError::Busy);
        }
        self.untold.extend(keys);
        self.tell(kad);
        Ok(())
    }

    pub fn stop_providing(&mut self, kad: &mut Kad, keys: impl Iterator<Item = RecordKey>) {
        let gone: HashSet<_> = keys.collect();
        self.untold.retain(|key| !gone.contains(key));
        gone.iter().for_each(|key| kad.stop_providing(key));
    }

    /// Publishes all own keys again after a new node has come, unless the table had enough nodes for any key before.
    pub fn tell_again(&mut self, kad: &mut Kad) {
        if self.told_among > kad::K_VALUE.get() {
            return;
        }
        let own: Vec<_> = kad.store_mut().provided().map(|record| record.key.clone()).collect();
        let waiting: HashSet<_> = self.untold.iter().cloned().collect();
        self.untold.extend(own.into_iter().filter(|key| !waiting.contains(key)));
        self.tell(kad);
    }

    pub fn progressed(&mut self, id: QueryId, result: QueryResult, last: bool) {
        match result {
            QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })) => {
                if let Some(Question::Providers { found, .. }) = self.open.get_mut(&id) {
                    found.extend(providers);
                }
            }
            QueryResult::GetClosestPeers(_) if self.walk == Some(id) => {
                self.walk = None;
                self.walkers.drain(..).for_each(|answer| drop(answer.send(Ok(()))));
            }
            QueryResult::GetClosestPeers(result) => {
                let peers = match result {
                    Ok(found) => found.peers,
                    Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                if let Some(Question::Peer { peer, answer }) = self.open.remove(&id) {
                    let found = peers.into_iter().find(|found| found.peer_id == peer);
                    let addrs = found.into_iter().flat_map(|found| found.addrs);
                    let addrs = addrs.take(limits::ADDRESSES_PER_PEER_MAX).map(|address| address.to_string());
                    let _ = answer.send(Ok(addrs.collect()));
                }
            }
            QueryResult::Bootstrap(_)
            | QueryResult::GetProviders(_)
            | QueryResult::StartProviding(_)
            | QueryResult::RepublishProvider(_)
            | QueryResult::GetRecord(_)
            | QueryResult::PutRecord(_)
            | QueryResult::RepublishRecord(_) => {}
        }
        if last && let Some(question) = self.open.remove(&id) {
            question.end();
        }
    }

    /// Ends lookups that are over time or whose caller is gone, and publishes some more keys.
    pub fn sweep(&mut self, kad: &mut Kad, now: Instant) {
        let over: Vec<_> =
            self.open.iter().filter(|(_, question)| question.over(now)).map(|(id, _)| *id).collect();
        for id in over {
            if let Some(mut query) = kad.query_mut(&id) {
                query.finish();
            }
            if let Some(question) = self.open.remove(&id) {
                question.end();
            }
        }
        self.walkers.retain(|answer| !answer.is_closed());
        self.tell(kad);
    }

    fn tell(&mut self, kad: &mut Kad) {
        if !self.untold.is_empty() {
            self.told_among = kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        }
        for key in self.untold.drain(..self.untold.len().min(limits::TOLD_AT_ONCE)) {
            if let Err(err) = kad.start_providing(key) {
                tracing::warn!(%err, "a contract is not announced");
            }
        }
    }
}

impl Question {
    fn over(&self, now: Instant) -> bool {
        match self {
            Self::Providers { deadline, answer, .. } => now >= *deadline || answer.is_closed(),
            Self::Peer { answer, .. } => answer.is_closed(),
        }
    }

    fn end(self) {
        match self {
            Self::Providers { found, answer, .. } => {
                let found = found.into_iter().take(limits::PROVIDERS_MAX).map(|peer| peer.to_base58());
                let _ = answer.send(Ok(found.collect()));
            }
            Self::Peer { answer, .. } => {
                let _ = answer.send(Ok(Vec::new()));
            }
        }
    }
}
