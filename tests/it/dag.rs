//! DAG-JSON read back into data, to hash again what a node has shown.

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use cairn::block::{Block, Cid, Codec, json::dag};
use ipld_core::ipld::Ipld;
use serde_json::Value;

/// The block that this DAG-JSON shows.
pub fn block(json: &Value) -> Block {
    Block::encode(&undag(json))
}

fn undag(json: &Value) -> Ipld {
    match json {
        Value::Null => Ipld::Null,
        Value::Bool(flag) => Ipld::Bool(*flag),
        Value::Number(number) => match number.as_i128() {
            Some(integer) => Ipld::Integer(integer),
            None => Ipld::Float(number.as_f64().expect("a number")),
        },
        Value::String(text) => Ipld::String(text.clone()),
        Value::Array(items) => Ipld::List(items.iter().map(undag).collect()),
        Value::Object(entries) => match entries.get("/") {
            Some(Value::String(cid)) => Ipld::Link(cid.parse::<Cid>().expect("a link").into()),
            Some(Value::Object(held)) => {
                let text = held["bytes"].as_str().expect("bytes");
                Ipld::Bytes(BASE64_STANDARD_NO_PAD.decode(text).expect("base64 without padding"))
            }
            Some(other) => panic!("neither a link nor bytes: {other}"),
            None => Ipld::Map(entries.iter().map(|(key, value)| (key.clone(), undag(value))).collect()),
        },
    }
}

#[test]
fn what_is_shown_can_be_hashed_again() {
    let data = Ipld::Map(
        [
            ("bytes".to_owned(), Ipld::Bytes(vec![0, 255])),
            ("a".to_owned(), Ipld::Link(Cid::of(Codec::Raw, b"x").into())),
            ("list".to_owned(), Ipld::List(vec![Ipld::Null, Ipld::Bool(true)])),
            ("int".to_owned(), Ipld::Integer(u64::MAX.into())),
            ("text".to_owned(), Ipld::String("é\n".to_owned())),
        ]
        .into(),
    );
    assert_eq!(block(&dag(&data)), Block::encode(&data));
}
