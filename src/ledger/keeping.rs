//! The writer's part in the log's own keeping: tokens, settings, what was read and refused, which key salts it.
//!
//! Invariants:
//! - a fact that is on record already is not recorded again: saying the same twice changes nothing;
//! - the record it is compared with includes events that are committed and not folded yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::{
    block::{Cid, Codec, encode},
    event::{
        Actor, Body, Event, Fact,
        keeping::{
            AccessRead, AccessRefused, ConfigApplied, LogSalted, Reason, SETTING_BYTES_MAX, SETTINGS_MAX,
            TokenAdded, TokenRevoked,
        },
    },
    ledger::{
        Ruling, Sealed,
        commit::{Fault, Stop, log_fact},
        world::World,
    },
    query,
};

/// Events of one kind that are searched for an earlier record.
const LOOKED_MAX: u64 = 16 * 1024;

/// A fact about the log's own keeping that is to be on record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Keeping {
    /// Which key salts the log, if no event says so yet.
    Salted,
    TokenAdded(TokenAdded),
    TokenRevoked(TokenRevoked),
    /// These tokens are in force, and no others.
    Tokens(Vec<TokenAdded>),
    /// The actor was given the content of this many payloads. Reads are counted by the minute, because an event each
    /// would let anybody fill the log.
    Read {
        reads: u64,
        minute: u64,
    },
    /// The actor was refused this often.
    Refused {
        refusals: u64,
        minute: u64,
        reason: Reason,
    },
    /// A door is opened under these settings; `usual` if they are the defaults.
    Configured {
        door: String,
        settings: BTreeMap<String, String>,
        usual: bool,
    },
}

impl World {
    /// Records the fact, unless it is on record already.
    pub(super) fn keep(&mut self, keeping: Keeping, actor: &Actor) -> Result<Ruling, Stop> {
        let body = match keeping {
            Keeping::TokenAdded(token) => return self.token_added(token, actor),
            Keeping::TokenRevoked(token) => return self.token_revoked(token, actor),
            Keeping::Tokens(tokens) => return self.tokens(tokens, actor),
            Keeping::Configured { door, settings, usual } => {
                return self.configured(&door, &settings, usual, actor);
            }
            Keeping::Salted if !self.of_kind("log.salted")?.is_empty() => {
                return Ok(Ruling::Unchanged);
            }
            Keeping::Salted => {
                let commitment = ByteArray::new(self.salt.commitment_for(&self.commit.sealer.log));
                Body::LogSalted(LogSalted { commitment })
            }
            Keeping::Read { reads, minute } => Body::AccessRead(AccessRead { reads, minute }),
            Keeping::Refused { refusals, minute, reason } => {
                Body::AccessRefused(AccessRefused { refusals, minute, reason })
            }
        };
        Ok(Ruling::Done(self.commit.seal(log_fact(actor.clone(), body))?.into()))
    }

    /// Returns the ruling on a count that an earlier owner has recorded already. All other facts compare themselves
    /// with the record.
    pub(super) fn counted_before(&self, keeping: &Keeping, actor: &Actor) -> Result<Option<Ruling>, Fault> {
        let (kind, body) = match keeping.clone() {
            Keeping::Read { reads, minute } => {
                ("access.read", Body::AccessRead(AccessRead { reads, minute }))
            }
            Keeping::Refused { refusals, minute, reason } => {
                ("access.refused", Body::AccessRefused(AccessRefused { refusals, minute, reason }))
            }
            Keeping::Salted
            | Keeping::TokenAdded(_)
            | Keeping::TokenRevoked(_)
            | Keeping::Tokens(_)
            | Keeping::Configured { .. } => return Ok(None),
        };
        let same = |event: &&Event| event.fields().actor == *actor && event.body().as_ref() == Some(&body);
        Ok(self.of_kind(kind)?.iter().find(same).map(|event| Ruling::Done(Sealed::from(event))))
    }

    fn token_added(&mut self, token: TokenAdded, actor: &Actor) -> Result<Ruling, Stop> {
        let subject = token_subject(&token.token);
        if let Some(Body::TokenAdded(known)) = self.last_about(&subject)?
            && known == token
        {
            return Ok(Ruling::Unchanged);
        }
        let fact = Fact { subject, ..log_fact(actor.clone(), Body::TokenAdded(token)) };
        Ok(Ruling::Done(self.commit.seal(fact)?.into()))
    }

    fn token_revoked(&mut self, token: TokenRevoked, actor: &Actor) -> Result<Ruling, Stop> {
        let subject = token_subject(&token.token);
        if let Some(Body::TokenRevoked(_)) = self.last_about(&subject)? {
            return Ok(Ruling::Unchanged);
        }
        let fact = Fact { subject, ..log_fact(actor.clone(), Body::TokenRevoked(token)) };
        Ok(Ruling::Done(self.commit.seal(fact)?.into()))
    }

    /// Records each difference between the tokens in force and those on record.
    fn tokens(&mut self, tokens: Vec<TokenAdded>, actor: &Actor) -> Result<Ruling, Stop> {
        let in_force: BTreeSet<&str> = tokens.iter().map(|token| token.token.as_str()).collect();
        let mut gone = BTreeSet::new();
        for event in self.of_kind("token.added")? {
            if let Some(Body::TokenAdded(known)) = event.body()
                && !in_force.contains(known.token.as_str())
            {
                gone.insert(known.token);
            }
        }
        let mut ruling = Ruling::Unchanged;
        for token in gone {
            let ruled = self.token_revoked(TokenRevoked { token }, actor)?;
            ruling = if ruled == Ruling::Unchanged { ruling } else { ruled };
        }
        for token in tokens {
            let ruled = self.token_added(token, actor)?;
            ruling = if ruled == Ruling::Unchanged { ruling } else { ruled };
        }
        Ok(ruling)
    }

    fn configured(
        &mut self,
        door: &str,
        settings: &BTreeMap<String, String>,
        usual: bool,
        actor: &Actor,
    ) -> Result<Ruling, Stop> {
        let subject = ["config/", door].concat();
        let digest = ByteArray::new(*Cid::of(Codec::DagCbor, &encode(settings)).digest());
        let changed = match self.last_about(&subject)? {
            Some(Body::ConfigApplied(last)) => last.digest != digest,
            Some(_) | None => !usual,
        };
        if !changed {
            return Ok(Ruling::Unchanged);
        }
        let short = settings.iter().filter(|(name, value)| name.len() + value.len() <= SETTING_BYTES_MAX);
        let named: BTreeMap<String, String> =
            short.take(SETTINGS_MAX).map(|(name, value)| (name.clone(), value.clone())).collect();
        let omitted = (settings.len() - named.len()) as u64;
        let applied = ConfigApplied { settings: named, digest, omitted };
        let fact = Fact { subject, ..log_fact(actor.clone(), Body::ConfigApplied(applied)) };
        Ok(Ruling::Done(self.commit.seal(fact)?.into()))
    }

    /// Returns the body of the last event about a subject.
    fn last_about(&self, subject: &str) -> Result<Option<Body>, Fault> {
        let about = |event: &&Event| event.fields().subject == subject;
        if let Some(event) = self.commit.batch.events.iter().rev().find(about) {
            return Ok(event.body());
        }
        if let Some(event) = self.unfolded()?.iter().rev().find(about) {
            return Ok(event.body());
        }
        let last = query::keeping::last_about(&self.state, subject)?;
        let event = last.map(|seq| self.reader.event_at(seq)).transpose()?.flatten();
        Ok(event.and_then(|event| event.body()))
    }

    /// Returns the last `LOOKED_MAX` events of a kind, the last first.
    fn of_kind(&self, kind: &str) -> Result<Vec<Event>, Fault> {
        let mut events = self.unfolded()?;
        events.extend(self.commit.batch.events.iter().cloned());
        events.retain(|event| event.fields().kind == kind);
        events.reverse();
        let first = events.last().map(|event| event.fields().seq);
        for seq in query::keeping::of_kind(&self.state, kind, LOOKED_MAX)? {
            if first.is_none_or(|first| seq < first) {
                events.extend(self.reader.event_at(seq)?);
            }
        }
        Ok(events)
    }

    /// Returns the committed events that the state may not have folded yet.
    fn unfolded(&self) -> Result<Vec<Event>, Fault> {
        let applied = self.applied.borrow().applied;
        let mut events = Vec::new();
        self.reader.events(applied, &mut |row| {
            events.extend(Event::open(row.bytes.to_vec()));
            ControlFlow::Continue(())
        })?;
        Ok(events)
    }
}

fn token_subject(id: &str) -> String {
    ["token/", id].concat()
}
