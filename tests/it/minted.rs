//! Logs and archives made by hand: a key of the test's own signs whatever a test wants said.

use std::collections::BTreeMap;

use cairn::{
    archive::writing::Manifest,
    block::{Block, Cid, Codec, car::Writer, encode},
    event::{Actor, Body, Event, Fields, Genesis, PayloadRef, Role},
    identity::Signer,
    merkle::{Growing, Hash, TileRow, Tiles, leaf_hash, several},
};
use ipld_core::ipld::Ipld;
use serde::Serialize;

pub const ORIGIN: &str = "mint.example/log";
const SEED: [u8; 32] = [9; 32];

/// The seed of the key of the golden log, and its name.
const GOLDEN: (&str, [u8; 32]) = ("cairn.example/golden", [3; 32]);

/// A log as somebody wants it, event by event.
pub struct Mint {
    pub signer: Signer,
    pub genesis: Block,
    /// Blocks that stand before the events.
    pub blocks: Vec<Block>,
    pub events: Vec<Block>,
}

/// What one event says; the rest follows from its place.
pub struct Said<'a> {
    pub kind: &'a str,
    pub subject: &'a str,
    pub cause: Option<Cid>,
    pub tool: Option<Cid>,
    pub pay: Vec<(Cid, u64)>,
    pub body: Vec<(&'a str, Ipld)>,
}

/// An event that pauses the queue: it says nothing more.
pub fn paused() -> Said<'static> {
    Said { kind: "queue.paused", subject: "queue", cause: None, tool: None, pay: vec![], body: vec![] }
}

/// A call's start, and its ending.
pub fn started(tool: Option<Cid>) -> Said<'static> {
    let text = |text: &str| Ipld::String(text.to_owned());
    let body = vec![
        ("method", text("tools/call")),
        ("name", text("t")),
        ("source", text("s")),
        ("runtime", text("builtin")),
        ("rule", text("registry")),
        ("runner", text("r")),
    ];
    Said { kind: "call.started", subject: "call/1", tool, body, ..paused() }
}

pub fn succeeded(cause: Cid, tool: Option<Cid>) -> Said<'static> {
    let body = vec![("took_us", Ipld::Integer(1))];
    Said { kind: "call.succeeded", subject: "call/1", cause: Some(cause), tool, body, ..paused() }
}

impl Mint {
    /// A log of its genesis alone.
    pub fn empty() -> Self {
        let signer = Signer::new(ORIGIN, SEED).expect("the origin is a key name");
        let genesis = Block::encode(&Genesis {
            v: 1,
            origin: ORIGIN.to_owned(),
            key: signer.public_key().to_vec(),
            created: 1,
            nonce: b"nnnnnnnnnnnnnnnn".to_vec(),
        });
        Self { signer, genesis, blocks: Vec::new(), events: Vec::new() }
    }

    /// A log with its first event.
    pub fn new() -> Self {
        let mut mint = Self::empty();
        mint.open(mint.log());
        mint
    }

    /// The blocks and the first `size` events of the golden log.
    pub fn golden(size: usize) -> Self {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../schemas/golden.json")).expect("golden.json is json");
        let lines = |list: &str| {
            let lines = golden[list].as_array().expect("a list of golden.json").clone();
            lines.into_iter().map(|line| {
                let hex = line["hex"].as_str().expect("bytes in hex").to_owned();
                let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("bytes in hex");
                Block::new(Codec::DagCbor, bytes)
            })
        };
        let mut blocks: Vec<Block> = lines("blocks").collect();
        let genesis = blocks.remove(0);
        let (origin, seed) = GOLDEN;
        let signer = Signer::new(origin, seed).expect("the origin is a key name");
        Self { signer, genesis, blocks, events: lines("events").take(size).collect() }
    }

    pub fn log(&self) -> Cid {
        self.genesis.cid()
    }

    /// Adds the event that opens the log, under this genesis.
    pub fn open(&mut self, genesis: Cid) {
        let body =
            vec![("genesis", Ipld::Link(genesis.into())), ("software", Ipld::String("mint".to_owned()))];
        self.say(Said { kind: "log.opened", subject: "log", body, ..paused() });
    }

    /// Adds an event, whatever it says.
    pub fn say(&mut self, said: Said<'_>) -> Cid {
        let seq = self.events.len() as u64;
        let pay = |(cid, len): (Cid, u64)| PayloadRef { cid, len, role: Role::Input };
        let fields = Fields {
            v: 1,
            kind: said.kind.to_owned(),
            log: self.log(),
            seq,
            prev: self.events.last().map(Block::cid),
            cause: said.cause,
            refs: Vec::new(),
            actor: Actor { id: "m".to_owned(), role: "system".to_owned(), proof: None },
            subject: said.subject.to_owned(),
            tool: said.tool,
            pay: said.pay.into_iter().map(pay).collect(),
            body: said
                .body
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect::<BTreeMap<_, _>>(),
            ts: 1000 + seq,
        };
        let event = Block::encode(&fields);
        let cid = event.cid();
        self.events.push(event);
        cid
    }

    /// Adds a block, whatever it is.
    pub fn block(&mut self, block: Block) -> Cid {
        let cid = block.cid();
        self.blocks.push(block);
        cid
    }

    /// The signed head over the first `size` events.
    pub fn head(&self, size: usize) -> String {
        self.signer.sign_checkpoint(size as u64, &self.tree(size).root())
    }

    fn tree(&self, size: usize) -> Growing {
        let mut tree = Growing::new();
        self.events.iter().take(size).for_each(|event| tree.push(leaf_hash(&event.cid())));
        tree
    }

    /// The manifest of the whole log.
    pub fn manifest(&self) -> Manifest {
        let count = self.events.len() as u64;
        Manifest {
            v: 1,
            log: self.log(),
            from: 0,
            to: count.saturating_sub(1),
            count,
            checkpoint: self.head(self.events.len()),
            subject: None,
            proof: None,
        }
    }

    /// The archive of the whole log.
    pub fn car(&self) -> Vec<u8> {
        self.car_of(&self.manifest())
    }

    /// The same, behind another manifest.
    pub fn car_of(&self, manifest: &impl Serialize) -> Vec<u8> {
        archive(&self.sections(manifest))
    }

    pub fn sections(&self, manifest: &impl Serialize) -> Vec<Section> {
        let manifest = Block::encode(manifest);
        let blocks = [&manifest, &self.genesis].into_iter().chain(&self.blocks).chain(&self.events);
        blocks.map(|block| (block.cid(), block.bytes().to_vec())).collect()
    }

    /// The record of a run: its own events and those of its tasks, each proven under the log's head.
    pub fn run(&self, id: &str) -> Vec<Section> {
        let (run, tasks) = (format!("workflow/{id}"), format!("task/{id}#"));
        let events = self.events.iter().map(|block| Event::open(block.bytes().to_vec()).expect("an event"));
        let of_run = |event: &Event| {
            let subject = &event.fields().subject;
            *subject == run || subject.starts_with(&tasks)
        };
        let events: Vec<Event> = events.filter(of_run).collect();
        let seqs: Vec<u64> = events.iter().map(|event| event.fields().seq).collect();
        let proof = Block::new(Codec::Raw, self.proof(&seqs).concat());
        let manifest = Block::encode(&Manifest {
            from: seqs[0],
            to: seqs[seqs.len() - 1],
            count: seqs.len() as u64,
            subject: Some(run.clone()),
            proof: Some(vec![proof.cid()]),
            ..self.manifest()
        });
        let mut blocks = vec![manifest, proof, self.genesis.clone()];
        for event in &events {
            if let Some(Body::WorkflowSubmitted(facts)) = event.body() {
                blocks.extend(self.named(&facts.plan));
            }
        }
        for event in &events {
            blocks.push(Block::new(Codec::DagCbor, event.bytes().to_vec()));
            for pay in &event.fields().pay {
                if !blocks.iter().any(|block| block.cid() == pay.cid) {
                    blocks.extend(self.named(&pay.cid));
                }
            }
        }
        blocks.iter().map(|block| (block.cid(), block.bytes().to_vec())).collect()
    }

    /// The proof of several events under the head over all.
    fn proof(&self, seqs: &[u64]) -> Vec<Hash> {
        let tiles = Grown(self.tree(self.events.len()).take_changed());
        let holds = |start: u64, end: u64| seqs.iter().any(|seq| (start..end).contains(seq));
        several::inclusion_of(&tiles, self.events.len() as u64, &holds).expect("the whole tree is there")
    }

    fn named(&self, cid: &Cid) -> Option<Block> {
        self.blocks.iter().find(|block| block.cid() == *cid).cloned()
    }
}

pub type Section = (Cid, Vec<u8>);

/// An archive of these sections, the first of which is its root.
pub fn archive(sections: &[Section]) -> Vec<u8> {
    let mut archive = Writer::new(Vec::new(), sections[0].0).expect("it can be written");
    for (cid, bytes) in sections {
        archive.append(cid, bytes).expect("it can be written");
    }
    archive.finish().expect("it can be written")
}

/// A payload's envelope as a map, to be made whole or otherwise.
pub fn envelope(entries: &[(&str, Ipld)]) -> Block {
    let mut map = BTreeMap::from([
        ("v".to_owned(), Ipld::Integer(1)),
        ("salt".to_owned(), Ipld::Bytes(vec![0; 16])),
        ("media".to_owned(), Ipld::String("a/b".to_owned())),
    ]);
    map.extend(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    Block::new(Codec::DagCbor, encode(&Ipld::Map(map)))
}

struct Grown(Vec<TileRow>);

impl Tiles for Grown {
    type Error = std::convert::Infallible;

    fn tile(&self, level: u8, index: u64) -> Result<Option<Vec<u8>>, Self::Error> {
        let mut rows = self.0.iter();
        Ok(rows.find(|row| (row.level, row.index) == (level, index)).map(|row| row.hashes.clone()))
    }
}
