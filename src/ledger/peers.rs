//! The writer's part in other nodes: news about them becomes events, where the rules say that it changes anything.
//!
//! Invariants:
//! - a peer changes by its events alone; what is connected is in memory;
//! - memory is bounded: of peers that are not connected, those not heard of the longest are left to the state.

use serde::{Deserialize, Serialize};

use crate::{
    block::{Cid, payload::SealedPayload},
    call::Remote,
    error::{Code, Refusal},
    event::{
        Actor, Body, Fact, PayloadRef, REFS_MAX, Role,
        peer::{Parting, PeerDisconnected},
    },
    ledger::{
        Ruling, Sealed,
        commit::{By, Fault, Stop, node, payload_ref},
        world::World,
    },
    peer::{self, News, Peer, Subject, WORD_MAX},
    query,
};

/// Artefacts of one event; beside them there is room for a note.
const ARTIFACTS_MAX: usize = 8;

/// News about another node or about a bootstrap, with its actor, its cause and its attachments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peering {
    /// The peer's id, or the bootstrap's.
    pub id: String,
    pub news: News,
    pub actor: Actor,
    /// The event it follows from, such as the call that asked; for `bootstrap.finished`, its start.
    pub cause: Option<Cid>,
    pub refs: Vec<Cid>,
    /// The reason given.
    pub note: Option<SealedPayload>,
    /// What proves it.
    pub artifacts: Vec<SealedPayload>,
}

impl Peering {
    /// Makes news whose actor is this node itself.
    pub fn new(id: impl Into<String>, news: News) -> Self {
        Self {
            id: id.into(),
            news,
            actor: node(),
            cause: None,
            refs: Vec::new(),
            note: None,
            artifacts: Vec::new(),
        }
    }
}

impl World {
    pub(super) fn peering(&mut self, peering: Peering) -> Result<Ruling, Stop> {
        let Peering { id, news, actor, cause, mut refs, note, artifacts } = peering;
        if !(1..=WORD_MAX).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            let refusal =
                format!("a name of a peer or a bootstrap is 1 to {WORD_MAX} visible ascii characters");
            return Err(Refusal::new(Code::InvalidArgument, refusal).into());
        }
        let (subject, now_ms) = (news.subject(), self.commit.now_ms());
        let known = match subject {
            Subject::Peer => self.load_peer(&id)?,
            Subject::Bootstrap => None,
        };
        let Some(body) = peer::told(known, &id, news, now_ms) else {
            return Ok(Ruling::Unchanged);
        };
        refs.truncate(REFS_MAX);
        let mut payloads: Vec<PayloadRef> = note.iter().map(|note| payload_ref(note, Role::Note)).collect();
        self.commit.store(note);
        for artifact in artifacts.into_iter().take(ARTIFACTS_MAX) {
            payloads.push(payload_ref(&artifact, Role::Artifact));
            self.commit.store(Some(artifact));
        }
        let fact = |subject| Fact { cause, refs, actor, subject, tool: None, payloads, body };
        let sealed = match subject {
            Subject::Peer => self.peer_event(&id, fact(peer::subject(&id)))?,
            Subject::Bootstrap => self.commit.seal(fact(["bootstrap/", &id].concat()))?.into(),
        };
        Ok(Ruling::Done(sealed))
    }

    /// Records that a call was tried at a peer.
    pub(super) fn remote_called(
        &mut self,
        remote: &Remote,
        actor: &Actor,
        started: Option<Cid>,
    ) -> Result<(), Stop> {
        let id = &remote.facts.peer;
        self.load_peer(id)?;
        let fact = Fact {
            cause: started,
            refs: remote.refs.iter().copied().take(REFS_MAX).collect(),
            actor: actor.clone(),
            subject: peer::subject(id),
            tool: None,
            payloads: Vec::new(),
            body: Body::RemoteCalled(remote.facts.clone()),
        };
        self.peer_event(id, fact)?;
        Ok(())
    }

    /// Records the disconnection of peers whose connections were held by these ended processes. Returns the last
    /// event.
    pub(super) fn part(&mut self, runners: &[String]) -> Result<Option<Sealed>, Stop> {
        let held = |peer: &&Peer| peer.link.as_ref().is_some_and(|link| runners.contains(&link.runner));
        let mut lost: Vec<String> =
            self.holding.peers.live.values().filter(held).map(|peer| peer.id.clone()).collect();
        // The map has no order of its own; the log must not depend on chance.
        lost.sort_unstable();
        let mut last = None;
        for id in lost {
            let body = Body::PeerDisconnected(PeerDisconnected { cause: Parting::Stopped });
            let fact = By::new(node()).fact(peer::subject(&id), body, Vec::new());
            last = Some(self.peer_event(&id, fact)?);
        }
        Ok(last)
    }

    /// Loads a peer into memory; returns `None` if it was never heard of.
    fn load_peer(&mut self, id: &str) -> Result<Option<&Peer>, Fault> {
        if !self.holding.peers.live.contains_key(id)
            && let Some(peer) = query::peers::peer(&self.state, id)?
        {
            let folded = self.folded();
            self.holding.peers.hold(peer, folded);
        }
        Ok(self.holding.peers.live.get(id))
    }

    fn peer_event(&mut self, id: &str, fact: Fact) -> Result<Sealed, Stop> {
        let event = self.commit.seal(fact)?;
        let sealed = event.into();
        match self.holding.peers.live.get_mut(id) {
            Some(peer) => peer.apply(event),
            None => {
                let peer = Peer::begun(event).ok_or(Fault::Broken { what: "a peer cannot be read" })?;
                let folded = self.folded();
                self.holding.peers.hold(peer, folded);
            }
        }
        Ok(sealed)
    }
}
