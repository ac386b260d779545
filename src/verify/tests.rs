//! Checks that the strict reader and `Event::open` agree on whole events and on damaged ones.

use crate::{
    block::{Cid, Codec, encode},
    event::{Event, Fields, strict},
};

/// Returns the events of the golden log.
fn golden() -> Vec<Vec<u8>> {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../schemas/golden.json")).expect("json");
    let events = golden["events"].as_array().expect("events");
    let hex = events.iter().filter_map(|event| event["hex"].as_str());
    hex.map(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("hex")).collect()
}

fn agree(bytes: &[u8]) -> bool {
    let (mut refs, mut pay) = (Vec::new(), Vec::new());
    let read = strict::read(bytes, &mut refs, &mut pay);
    let opened = Event::open(bytes.to_vec()).ok();
    match (read, opened) {
        (None, None) => false,
        (Some(read), Some(event)) => {
            let fields = event.fields();
            let same = read.kind == fields.kind
                && (read.log, read.seq, read.prev) == (fields.log, fields.seq, fields.prev)
                && (read.cause, read.tool, read.ts) == (fields.cause, fields.tool, fields.ts)
                && (read.v, read.subject) == (fields.v, &fields.subject)
                && read.body == encode(&fields.body)
                && fields.pay.iter().map(|pay| pay.len).eq(read.lens[..fields.pay.len()].iter().copied())
                && refs == fields.refs
                && pay.iter().eq(fields.pay.iter().map(|pay| &pay.cid));
            assert!(same, "{read:?} is not {fields:?}");
            true
        }
        (read, opened) => {
            panic!("{}: strict {read:?}, open {opened:?}", data_encoding::HEXLOWER.encode(bytes))
        }
    }
}

#[test]
fn both_readers_take_the_golden_events() {
    for event in golden() {
        assert!(agree(&event));
    }
}

#[test]
fn both_readers_refuse_the_same_damage() {
    let mut taken = 0;
    for event in golden() {
        for at in 0..event.len() {
            for change in [1, 2, 0x10, 0x20, 0x40, 0x60, 0x80, 0xff] {
                let mut damaged = event.clone();
                damaged[at] ^= change;
                taken += u32::from(agree(&damaged));
            }
            let mut shorter = event.clone();
            shorter.remove(at);
            agree(&shorter);
            let mut longer = event.clone();
            longer.insert(at, event[at]);
            agree(&longer);
            agree(&event[..at]);
        }
    }
    // A flipped bit in a text or a digest gives another valid event.
    assert!(taken > 1000, "{taken}");
}

#[test]
fn both_readers_draw_the_same_lines() {
    use ipld_core::ipld::Ipld;
    let first = Event::open(golden().remove(0)).expect("an event");
    let with = |change: &dyn Fn(&mut Fields)| {
        let mut fields = first.fields().clone();
        change(&mut fields);
        agree(&encode(&fields))
    };
    let nested = |levels: usize| (1..levels).fold(Ipld::List(Vec::new()), |inner, _| Ipld::List(vec![inner]));
    let link = |n: u8| Cid::of(Codec::DagCbor, &[n]);
    let mut sorted: Vec<Cid> = (0..33).map(link).collect();
    sorted.sort_unstable();
    let body = |value: Ipld| {
        with(&|fields| {
            fields.body.insert("x".to_owned(), value.clone());
        })
    };
    assert!(body(Ipld::Integer(-(1 << 63))));
    assert!(body(Ipld::Bytes(vec![0; 300])));
    assert!(!body(Ipld::Float(1.5)));
    assert!(!body(Ipld::List(vec![Ipld::Float(1.0)])));
    assert!(body(nested(14)));
    assert!(!body(nested(15)));
    assert!(with(&|fields| fields.refs = sorted[..32].to_vec()));
    assert!(!with(&|fields| fields.refs = sorted.clone()));
    assert!(!with(&|fields| fields.refs = vec![sorted[1], sorted[0]]));
    assert!(!with(&|fields| fields.refs = vec![sorted[0], sorted[0]]));
    assert!(!with(&|fields| fields.kind = String::new()));
    assert!(with(&|fields| fields.kind = "k".repeat(32)));
    assert!(!with(&|fields| fields.kind = "k".repeat(33)));
    assert!(!with(&|fields| fields.v = 0));
    assert!(!with(&|fields| fields.seq = 1));
    assert!(!with(&|fields| fields.subject = "s".repeat(17 * 1024)));
}
