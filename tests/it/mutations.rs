//! Everything an auditor takes away, changed in one place: each field of each kind of block, event, proof, manifest, receipt
//! and head, flipped, dropped, doubled, swapped or extended. Nothing that was changed passes for what was signed.
//!
//! `CAIRN_MUTATIONS_SEED` chooses the changes, `CAIRN_MUTATIONS` how many of each; the defaults are the same every time.

use std::{fs, path::Path};

use cairn::{
    archive::{
        evidence::Evidence,
        import::{Imported, import},
    },
    block::{Cid, Codec},
    event::Event,
    identity::open_checkpoint,
    merkle::{leaf_hash, node_hash},
    receipt::Receipt,
};
use serde_json::{Value, json};

use crate::{
    harness::temp,
    minted::{Mint, Section, archive},
};

const SEED: u64 = 20_260_101;
/// Changes of each archive. A debug build takes in about ten a second.
const ROUNDS: u64 = 100;
/// Events of the golden log that the archives hold: those whose head its first key signs.
const EVENTS: usize = 79;
/// The run in the golden log that was decided to its end.
const RUN: &str = "wf1";

/// Pseudo-random numbers (splitmix64) from a seed that a failing test prints.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn random() -> Random {
    let seed = asked("CAIRN_MUTATIONS_SEED", SEED);
    println!("CAIRN_MUTATIONS_SEED={seed}");
    Random(seed)
}

fn rounds() -> u64 {
    asked("CAIRN_MUTATIONS", ROUNDS)
}

/// What is done to one place.
#[derive(Clone, Copy, Debug)]
enum Change {
    Flip,
    Drop,
    Double,
    Swap,
    Extend,
}

const CHANGES: [Change; 5] = [Change::Flip, Change::Drop, Change::Double, Change::Swap, Change::Extend];

/// One CBOR item, as it stands: so that it can be made wrong, where an encoder would make it right again.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    /// An integer, a simple value or a link.
    Plain(Vec<u8>),
    /// Bytes or text, with the major type.
    Text(u8, Vec<u8>),
    List(Vec<Item>),
    Map(Vec<(Item, Item)>),
}

fn head(major: u8, number: u64) -> Vec<u8> {
    let major = major << 5;
    match number {
        0..24 => vec![major | number as u8],
        24..0x100 => vec![major | 24, number as u8],
        0x100..0x1_0000 => [&[major | 25][..], &(number as u16).to_be_bytes()].concat(),
        _ => [&[major | 26][..], &(number as u32).to_be_bytes()].concat(),
    }
}

impl Item {
    fn read(bytes: &[u8]) -> Self {
        let (item, rest) = Self::first(bytes);
        assert!(rest.is_empty(), "one item");
        item
    }

    fn first(bytes: &[u8]) -> (Self, &[u8]) {
        const LINK_LEN: usize = 41;
        let (major, info) = (bytes[0] >> 5, bytes[0] & 0x1f);
        let width = if info < 24 { 0 } else { 1 << (info - 24) };
        let number = match width {
            0 => u64::from(info),
            _ => bytes[1..=width].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        let (at, len) = (1 + width, number as usize);
        let mut rest = &bytes[at..];
        let mut next = || {
            let (item, left) = Self::first(rest);
            rest = left;
            item
        };
        match major {
            2 | 3 => (Self::Text(major, bytes[at..at + len].to_vec()), &bytes[at + len..]),
            4 => (Self::List((0..len).map(|_| next()).collect()), rest),
            5 => (Self::Map((0..len).map(|_| (next(), next())).collect()), rest),
            6 => (Self::Plain(bytes[..LINK_LEN].to_vec()), &bytes[LINK_LEN..]),
            _ => (Self::Plain(bytes[..at].to_vec()), &bytes[at..]),
        }
    }

    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Plain(bytes) => to.extend(bytes),
            Self::Text(major, bytes) => {
                to.extend(head(*major, bytes.len() as u64));
                to.extend(bytes);
            }
            Self::List(items) => {
                to.extend(head(4, items.len() as u64));
                items.iter().for_each(|item| item.write(to));
            }
            Self::Map(entries) => {
                to.extend(head(5, entries.len() as u64));
                entries.iter().for_each(|(key, value)| {
                    key.write(to);
                    value.write(to);
                });
            }
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        bytes
    }

    /// Items in it, itself included; keys are part of their entries.
    fn count(&self) -> usize {
        1 + match self {
            Self::Plain(_) | Self::Text(..) => 0,
            Self::List(items) => items.iter().map(Self::count).sum(),
            Self::Map(entries) => entries.iter().map(|(_, value)| value.count()).sum(),
        }
    }

    /// Changes the item of this number; what cannot be changed so stays.
    fn change(&mut self, mut nth: usize, change: Change, random: &mut Random) {
        if nth == 0 {
            return self.change_here(change, random);
        }
        nth -= 1;
        let within: Vec<&mut Self> = match self {
            Self::Plain(_) | Self::Text(..) => Vec::new(),
            Self::List(items) => items.iter_mut().collect(),
            Self::Map(entries) => entries.iter_mut().map(|(_, value)| value).collect(),
        };
        for item in within {
            match nth.checked_sub(item.count()) {
                None => return item.change(nth, change, random),
                Some(left) => nth = left,
            }
        }
    }

    fn change_here(&mut self, change: Change, random: &mut Random) {
        match (self, change) {
            (Self::Plain(bytes), Change::Extend | Change::Double) => bytes.push(bytes[bytes.len() - 1]),
            (Self::Plain(bytes) | Self::Text(_, bytes), change) => change_bytes(bytes, change, random),
            (Self::List(items), change) => {
                change_list(items, change, random, || Self::Plain(vec![0xf6]));
            }
            (Self::Map(entries), Change::Flip) if !entries.is_empty() => {
                let at = random.below(entries.len());
                if let Self::Text(_, key) = &mut entries[at].0 {
                    change_bytes(key, Change::Flip, random);
                }
            }
            (Self::Map(entries), change) => {
                change_list(entries, change, random, || {
                    (Self::Text(3, b"zzzzzzzzzzzzz".to_vec()), Self::Plain(vec![0xf5]))
                });
            }
        }
    }
}

fn change_bytes(bytes: &mut Vec<u8>, change: Change, random: &mut Random) {
    let at = if bytes.is_empty() { 0 } else { random.below(bytes.len()) };
    match change {
        Change::Extend => bytes.push(b'x'),
        _ if bytes.is_empty() => bytes.push(b'x'),
        Change::Flip => bytes[at] ^= 1 << random.below(8),
        Change::Drop => drop(bytes.remove(at)),
        Change::Double => bytes.insert(at, bytes[at]),
        Change::Swap => {
            let other = (at + 1) % bytes.len();
            bytes.swap(at, other);
        }
    }
}

fn change_list<T: Clone>(items: &mut Vec<T>, change: Change, random: &mut Random, new: impl FnOnce() -> T) {
    if items.is_empty() || matches!(change, Change::Extend) {
        return items.push(new());
    }
    let at = random.below(items.len());
    match change {
        Change::Drop => drop(items.remove(at)),
        Change::Double => items.insert(at, items[at].clone()),
        Change::Swap | Change::Flip | Change::Extend => {
            let other = (at + 1) % items.len();
            items.swap(at, other);
        }
    }
}

/// Changes one block of an archive in one field; gives what was done, or none where nothing changed.
fn change_block(sections: &mut [Section], nth: usize, random: &mut Random) -> Option<String> {
    let (cid, bytes) = &mut sections[nth];
    let change = CHANGES[random.below(CHANGES.len())];
    let before = bytes.clone();
    let mut place = 0;
    match cid.codec() {
        Codec::Raw => change_bytes(bytes, change, random),
        Codec::DagCbor => {
            let mut item = Item::read(bytes);
            place = random.below(item.count());
            item.change(place, change, random);
            *bytes = item.bytes();
        }
    }
    if *bytes == before {
        return None;
    }
    let said = format!("{change:?} of item {place} of block {nth} ({cid})");
    // Under its old name, under the one its bytes have now, or with every link to it and every name that follows made anew.
    let naming = random.below(3);
    match naming {
        0 => {}
        1 => sections[nth].0 = Cid::of(cid.codec(), bytes),
        _ => remake(sections),
    }
    Some(format!("{said}, naming {naming}"))
}

/// Gives every block the name its bytes have, and every link to it that name, until all of it agrees.
fn remake(sections: &mut [Section]) {
    while let Some(nth) = sections.iter().position(|(name, bytes)| !name.names(bytes)) {
        let old = sections[nth].0;
        let new = Cid::of(old.codec(), &sections[nth].1);
        sections[nth].0 = new;
        for (_, bytes) in sections.iter_mut() {
            for at in 0..bytes.len().saturating_sub(35) {
                if bytes[at..at + 36] == old.to_bytes() {
                    bytes[at..at + 36].copy_from_slice(&new.to_bytes());
                }
            }
        }
    }
}

/// Drops, doubles or swaps a whole block; payloads may be absent, and contracts stand in any order.
fn change_order(sections: &mut Vec<Section>, random: &mut Random) -> Option<String> {
    let fixed = |section: &Section| {
        let read = Event::open(section.1.clone());
        section.0.codec() == Codec::DagCbor && read.is_ok()
    };
    let nth = random.below(sections.len());
    match random.below(3) {
        0 if fixed(&sections[nth]) || nth < 3 => {
            let (cid, _) = sections.remove(nth);
            Some(format!("block {nth} ({cid}) dropped"))
        }
        1 => {
            let copy = sections[nth].clone();
            let said = format!("block {nth} ({}) doubled", copy.0);
            sections.insert(random.below(sections.len() + 1).max(1), copy);
            Some(said)
        }
        _ => {
            let both = sections.get(nth..nth + 2)?.iter().all(fixed);
            both.then(|| sections.swap(nth, nth + 1))?;
            Some(format!("blocks {nth} and {} swapped", nth + 1))
        }
    }
}

/// Takes an archive in; gives why it is refused, if it is.
fn take_in(sections: &[Section], dir: &Path) -> Result<Evidence, String> {
    let _ = fs::remove_dir_all(dir);
    match import(&archive(sections)[..], dir, &mut |_| {}) {
        Ok(Imported::Log(_, evidence)) => Ok(evidence),
        Ok(Imported::Run(kept)) => Ok(kept.evidence),
        Err(err) => Err(err.to_string()),
    }
}

/// Every kind of block of the archive is changed in turn.
fn check_archive(good: &[Section]) {
    let mut random = random();
    let dir = temp();
    let dir = dir.path().join("data");
    let taken = take_in(good, &dir);
    assert!(matches!(taken, Ok(Evidence::Verified { head, .. }) if head == EVENTS as u64), "{taken:?}");
    let (events, others): (Vec<usize>, Vec<usize>) =
        (0..good.len()).partition(|nth| Event::open(good[*nth].1.clone()).is_ok());
    for round in 0..rounds() {
        let mut changed = good.to_vec();
        let of = if round % 2 == 0 { &others } else { &events };
        let nth = of[random.below(of.len())];
        let said = match round % 5 {
            4 => change_order(&mut changed, &mut random),
            _ => change_block(&mut changed, nth, &mut random),
        };
        let Some(said) = said.filter(|_| changed != good) else { continue };
        let taken = take_in(&changed, &dir);
        assert!(taken.is_err(), "round {round}: {said}: {taken:?}");
    }
}

#[test]
fn no_changed_archive_of_a_log_is_taken_in() {
    let mint = Mint::golden(EVENTS);
    check_archive(&mint.sections(&mint.manifest()));
}

#[test]
fn no_changed_record_of_a_run_is_taken_in() {
    check_archive(&Mint::golden(EVENTS).run(RUN));
}

/// The receipt of event 3 in a log of 5.
fn receipt(mint: &Mint) -> Value {
    let hash = |seq: usize| leaf_hash(&mint.events[seq].cid());
    let proof = [hash(2), node_hash(&hash(0), &hash(1)), hash(4)];
    let bytes = |bytes: &[u8]| data_encoding::BASE64.encode(bytes);
    json!({
        "v": 1,
        "cid": mint.events[3].cid().to_string(),
        "event": bytes(mint.events[3].bytes()),
        "genesis": bytes(mint.genesis.bytes()),
        "index": 3,
        "proof": proof.iter().map(|hash| bytes(hash)).collect::<Vec<_>>(),
        "checkpoint": mint.head(5),
    })
}

/// The text of a receipt with one member changed.
fn change_receipt(good: &Value, random: &mut Random) -> String {
    let mut members: Vec<(String, Value)> = good
        .as_object()
        .expect("an object")
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let at = random.below(members.len());
    let change = CHANGES[random.below(CHANGES.len())];
    match (&mut members[at].1, change, random.below(2)) {
        (Value::String(text), change, 0) => *text = changed_text(text, change, random),
        (Value::Number(number), _, 0) => {
            let other = number.as_u64().unwrap_or(0) + 1 + random.below(9) as u64;
            members[at].1 = other.into();
        }
        (Value::Array(items), change, 0) => {
            change_list(items, change, random, || Value::String(data_encoding::BASE64.encode(&[0; 32])));
        }
        (_, Change::Drop, _) => drop(members.remove(at)),
        (_, Change::Double, _) => members.insert(at, members[at].clone()),
        (_, Change::Extend, _) => members.push(("more".to_owned(), Value::Null)),
        (_, Change::Swap | Change::Flip, _) => {
            let other = (at + 1) % members.len();
            let taken = members[at].1.clone();
            members[at].1 = std::mem::replace(&mut members[other].1, taken);
        }
    }
    let members = members.iter().map(|(key, value)| format!("{}:{value}", Value::String(key.clone())));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// Text with one character changed; a flip that leaves no text drops it.
fn changed_text(text: &str, change: Change, random: &mut Random) -> String {
    let mut bytes = text.as_bytes().to_vec();
    change_bytes(&mut bytes, change, random);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn no_changed_receipt_proves_anything() {
    let mut random = random();
    let mint = Mint::golden(5);
    let good = receipt(&mint);
    let verified = |text: &str| {
        Receipt::read(text.as_bytes()).is_ok_and(|receipt| receipt.verify(mint.signer.verifier()).is_ok())
    };
    let good_text = good.to_string();
    assert!(verified(&good_text));
    for round in 0..20 * rounds() {
        let changed = change_receipt(&good, &mut random);
        assert!(good_text == changed || !verified(&changed), "round {round}: {changed}");
    }
}

#[test]
fn no_changed_head_is_a_head() {
    let mut random = random();
    let mint = Mint::golden(5);
    let good = mint.head(5);
    let open = |note: &str| open_checkpoint(note, mint.signer.verifier());
    let root = open(&good).expect("a signed head").root;
    let lines: Vec<&str> = good.lines().collect();
    for round in 0..20 * rounds() {
        let change = CHANGES[random.below(CHANGES.len())];
        let changed = match random.below(2) {
            0 => changed_text(&good, change, &mut random),
            _ => {
                let mut lines = lines.clone();
                change_list(&mut lines, change, &mut random, || "more");
                lines.join("\n") + "\n"
            }
        };
        match open(&changed) {
            // The same signature twice says what it said once.
            Ok(head) if changed != good => {
                let signature = lines[lines.len() - 1];
                assert_eq!(changed.matches(signature).count(), 2, "round {round}: {changed}");
                assert_eq!((head.size, head.root), (5, root));
            }
            Ok(_) | Err(_) => {}
        }
    }
}
