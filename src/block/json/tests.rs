//! Checks which text is strict JSON, and which fault is reported for any other.

use super::*;
use crate::block::{Codec, decode_ipld, encode};

fn verdict(text: impl AsRef<[u8]>, expected: Result<(), Fault>) {
    let text = text.as_ref();
    let shown = String::from_utf8_lossy(&text[..text.len().min(80)]);
    assert_eq!(check(text), expected, "{shown}");
}

#[test]
fn strict_json_passes() {
    for text in [
        "null",
        " true\r\n\t",
        "\"\"",
        "0",
        "-0",
        "-1.25e-7",
        "1E+308",
        "1e-999999",
        "12345678901234567890123",
        "[]",
        "{}",
        "[ ]",
        "{ }",
        r#"{"a":{"a":1},"b":[{"a":1},{"a":2}]}"#,
        r#"{"":0,"a\u0000":1,"a":2}"#,
        r#"["\ud83d\ude00","\"\\\/\b\f\n\r\t","é","😀"]"#,
        "\"\u{7f}\u{2028}\"",
    ] {
        verdict(text, Ok(()));
        let parsed: Result<Value, _> = serde_json::from_str(text);
        assert!(parsed.is_ok(), "{text}");
    }
    verdict("[".repeat(64) + &"]".repeat(64), Ok(()));
    verdict("9".repeat(308), Ok(()));
}

#[test]
fn every_fault_is_named_with_its_place() {
    let syntax = |at| Err(Fault::Syntax { at });
    let number = |at| Err(Fault::Number { at });
    let surrogate = |at| Err(Fault::Surrogate { at });
    let trailing = |at| Err(Fault::Trailing { at });
    let duplicate = |at| Err(Fault::DuplicateKey { at });
    for (text, expected) in [
        ("", syntax(0)),
        (" ", syntax(1)),
        ("\u{feff}1", syntax(0)),
        ("nul", syntax(0)),
        ("True", syntax(0)),
        ("NaN", syntax(0)),
        ("-Infinity", number(0)),
        ("+1", syntax(0)),
        (".5", syntax(0)),
        ("01", number(0)),
        ("-01", number(0)),
        ("-", number(0)),
        ("1.", number(0)),
        ("1.e5", number(0)),
        ("[1e]", number(1)),
        ("1e+", number(0)),
        ("1e400", number(0)),
        ("-1e400", number(0)),
        ("0x10", trailing(1)),
        ("1 2", trailing(2)),
        ("{}x", trailing(2)),
        ("1\0", trailing(1)),
        ("[1,]", syntax(3)),
        ("[,1]", syntax(1)),
        ("[1 2]", syntax(3)),
        ("[1", syntax(2)),
        ("[1}", syntax(2)),
        ("{\"a\":1]", syntax(6)),
        ("{\"a\":1,}", syntax(7)),
        ("{\"a\" 1}", syntax(5)),
        ("{\"a\":}", syntax(5)),
        ("{a:1}", syntax(1)),
        ("{1:1}", syntax(1)),
        ("{'a':1}", syntax(1)),
        ("{\"a\"", syntax(4)),
        ("]", syntax(0)),
        ("// x\n1", syntax(0)),
        ("\"abc", syntax(4)),
        ("\"a\nb\"", syntax(2)),
        ("\"a\u{0}b\"", syntax(2)),
        (r#""\x""#, syntax(1)),
        (r#""\u12g4""#, syntax(1)),
        (r#""\u+123""#, syntax(1)),
        (r#""\u12"#, syntax(1)),
        ("\"\\", syntax(1)),
        (r#""\ud800""#, surrogate(1)),
        (r#""\udc00""#, surrogate(1)),
        (r#""\ud800\u0041""#, surrogate(1)),
        (r#""\ud800\ud800""#, surrogate(1)),
        (r#""\ude00\ud83d""#, surrogate(1)),
        (r#"{"\ud800":1}"#, surrogate(2)),
        (r#"{"a":1,"a":2}"#, duplicate(7)),
        (r#"{"a":1,"\u0061":2}"#, duplicate(7)),
        (r#"[{"x":{"é":1,"\u00e9":2}}]"#, duplicate(14)),
        (r#"{"$serde_json::private::RawValue":"{}"}"#, Err(Fault::ReservedKey { at: 1 })),
        (r#"[{"\u0024serde_json::private::RawValue":"1"}]"#, Err(Fault::ReservedKey { at: 2 })),
        (r#"{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"c":0}"#, duplicate(55)),
    ] {
        verdict(text, expected);
    }
    verdict("[".repeat(65), Err(Fault::Depth { at: 64 }));
    verdict("{\"a\":".repeat(65), Err(Fault::Depth { at: 320 }));
    verdict("[".repeat(1_000_000), Err(Fault::Depth { at: 64 }));
    verdict("9".repeat(310), number(0));
    verdict(b"\"a\xff\"", Err(Fault::Utf8 { at: 2 }));
    verdict(b"\"\xed\xa0\x80\"", Err(Fault::Utf8 { at: 1 }));
    verdict(b"\"\xc0\x80\"", Err(Fault::Utf8 { at: 1 }));
}

#[test]
fn the_reserved_key_is_one_the_parser_would_misread() {
    let text = format!(r#"{{"{RESERVED_KEY}":"[1]"}}"#);
    let value: Value = serde_json::from_str(&text).expect("json");
    assert_eq!(value, serde_json::json!([1]));
}

#[test]
fn many_keys_are_not_quadratic() {
    let keys: Vec<String> = (0..200_000).map(|key| format!("\"{key}\":0")).collect();
    verdict(format!("{{{}}}", keys.join(",")), Ok(()));
    let text = format!("{{{},\"7\":1}}", keys.join(","));
    let at = text.len() - 6;
    verdict(text, Err(Fault::DuplicateKey { at }));

    // Ten times the keys must take about ten times as long. A quadratic check would take a hundred times as long.
    let least = |keys: &[String]| {
        let text = format!("{{{}}}", keys.join(","));
        let taken = (0..5).map(|_| {
            let begun = std::time::Instant::now();
            assert_eq!(check(text.as_bytes()), Ok(()));
            begun.elapsed()
        });
        taken.min().expect("it was checked")
    };
    let (few, many) = (least(&keys[..20_000]), least(&keys));
    assert!(many < few * 40, "{many:?} for ten times what takes {few:?}");
}

#[test]
fn what_passes_is_what_the_parser_reads() {
    // Tests every prefix and every one-byte change of a text with values of all kinds.
    let text = br#"{"a":[1,-2.5e3,"\u00e9\n",true,null],"b":{"c":""}}"#;
    let agree = |bytes: &[u8]| {
        let parsed = serde_json::from_slice::<Value>(bytes).is_ok();
        let checked = check(bytes);
        let stricter = matches!(checked, Err(Fault::DuplicateKey { .. }));
        assert!(parsed == checked.is_ok() || stricter, "{}", String::from_utf8_lossy(bytes));
    };
    for end in 0..=text.len() {
        agree(&text[..end]);
    }
    for at in 0..text.len() {
        for byte in 0..=255 {
            let mut changed = text.to_vec();
            changed[at] = byte;
            agree(&changed);
        }
    }
}

#[test]
fn dag_json_shows_links_and_bytes_under_a_slash() {
    let cid = Cid::of(Codec::Raw, b"x");
    let data = Ipld::Map(
        [
            ("bytes".to_owned(), Ipld::Bytes(vec![0, 255])),
            ("a".to_owned(), Ipld::Link(cid.into())),
            ("list".to_owned(), Ipld::List(vec![Ipld::Null, Ipld::Bool(true)])),
            ("int".to_owned(), Ipld::Integer(u64::MAX.into())),
            ("text".to_owned(), Ipld::String("é\n".to_owned())),
        ]
        .into(),
    );
    let text = dag_text(&data);
    let expected = format!(
        r#"{{"a":{{"/":"{cid}"}},"bytes":{{"/":{{"bytes":"AP8"}}}},"int":18446744073709551615,"list":[null,true],"text":"é\n"}}"#
    );
    assert_eq!(text, expected);
    assert_eq!(decode_ipld(&encode(&data)).expect("our own bytes"), data);
}
