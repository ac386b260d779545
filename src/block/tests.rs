//! Checks which bytes are accepted as a block or a CID, and which are refused.

use data_encoding::HEXLOWER;

use super::*;

enum Verdict {
    /// The bytes decode, and encode to the same bytes.
    Accept,
    Refuse,
}
use Verdict::{Accept, Refuse};

/// The SHA-256 of no bytes, used where any digest will do.
const DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn check(name: &str, hex: &str, verdict: Verdict) {
    let bytes = HEXLOWER.decode(hex.as_bytes()).expect("hex");
    let read = decode_ipld(&bytes);
    match verdict {
        Accept => assert_eq!(encode(&read.expect(name)), bytes, "{name}"),
        Refuse => assert!(read.is_err(), "{name}: {read:?}"),
    }
}

#[test]
fn dag_cbor_is_strict() {
    for (name, hex, verdict) in [
        ("zero", "00", Accept),
        ("23", "17", Accept),
        ("24", "1818", Accept),
        ("2^64-1", "1bffffffffffffffff", Accept),
        ("-2^64", "3bffffffffffffffff", Accept),
        ("23 in two bytes", "1817", Refuse),
        ("255 in three bytes", "1900ff", Refuse),
        ("65535 in five bytes", "1a0000ffff", Refuse),
        ("2^32-1 in nine bytes", "1b00000000ffffffff", Refuse),
        ("-1 in two bytes", "3800", Refuse),
        ("-256 in three bytes", "3900ff", Refuse),
        ("bignum 2^64", "c249010000000000000000", Refuse),
        ("reserved argument 28", "1c", Refuse),
        ("nothing", "", Refuse),
        ("empty text", "60", Accept),
        ("text", "6161", Accept),
        ("text with a long length", "780161", Refuse),
        ("bytes with a long length", "580100", Refuse),
        ("array with a long length", "980100", Refuse),
        ("map with a long length", "b801616100", Refuse),
        ("indefinite bytes", "5f4100ff", Refuse),
        ("indefinite text", "7f6161ff", Refuse),
        ("indefinite array", "9f00ff", Refuse),
        ("indefinite map", "bf616100ff", Refuse),
        ("a lone break", "ff", Refuse),
        ("keys in order", "a2616100616200", Accept),
        ("shorter key first", "a261620062616100", Accept),
        ("keys out of order", "a2616200616100", Refuse),
        ("longer key first", "a262616100616200", Refuse),
        ("key twice", "a2616100616101", Refuse),
        ("integer key", "a10000", Refuse),
        ("bytes key", "a1416100", Refuse),
        ("null key", "a1f600", Refuse),
        ("float", "fb3ff8000000000000", Accept),
        ("float of a whole number", "fb3ff0000000000000", Accept),
        ("half float", "f93c00", Refuse),
        ("single float", "fa3fc00000", Refuse),
        ("negative zero", "fb8000000000000000", Refuse),
        ("not a number", "fb7ff8000000000000", Refuse),
        ("infinity", "fb7ff0000000000000", Refuse),
        ("minus infinity", "fbfff0000000000000", Refuse),
        ("false", "f4", Accept),
        ("true", "f5", Accept),
        ("null", "f6", Accept),
        ("undefined", "f7", Refuse),
        ("simple 0", "e0", Refuse),
        ("simple 20 in two bytes", "f814", Refuse),
        ("simple 32", "f820", Refuse),
        ("tag 0", "c06161", Refuse),
        ("tag 41", "d82900", Refuse),
        ("self-described cbor", "d9d9f700", Refuse),
        ("trailing byte", "0000", Refuse),
        ("trailing break", "00ff", Refuse),
        ("cut in an integer", "18", Refuse),
        ("cut in a text", "6261", Refuse),
        ("cut in an array", "8200", Refuse),
        ("cut in a map", "a16161", Refuse),
        ("text of 2^64-1", "7bffffffffffffffff", Refuse),
        ("bytes of 2^64-1", "5bffffffffffffffff00", Refuse),
        ("array of 2^64-1", "9bffffffffffffffff00", Refuse),
        ("map of 2^64-1", "bbffffffffffffffff616100", Refuse),
        ("bytes of 2^32", "5b000000010000000000", Refuse),
        ("utf-8", "62c3a9", Accept),
        ("cut utf-8", "61c3", Refuse),
        ("overlong utf-8", "62c080", Refuse),
        ("surrogate", "63eda080", Refuse),
        ("no utf-8 in a key", "a161ff00", Refuse),
    ] {
        check(name, hex, verdict);
    }
}

#[test]
fn links_are_exactly_ours() {
    let short = &DIGEST[..62];
    for (name, hex, verdict) in [
        ("dag-cbor", format!("d82a58250001711220{DIGEST}"), Accept),
        ("raw", format!("d82a58250001551220{DIGEST}"), Accept),
        ("in a list", format!("82d82a58250001551220{DIGEST}00"), Accept),
        ("byte after the cid", format!("d82a58260001711220{DIGEST}00"), Refuse),
        ("byte before the cid", format!("d82a5826000001711220{DIGEST}"), Refuse),
        ("no multibase prefix", format!("d82a582401711220{DIGEST}"), Refuse),
        ("another multibase prefix", format!("d82a58250101711220{DIGEST}"), Refuse),
        ("tag in three bytes", format!("d9002a58250001711220{DIGEST}"), Refuse),
        ("tag in five bytes", format!("da0000002a58250001711220{DIGEST}"), Refuse),
        ("length in three bytes", format!("d82a5900250001711220{DIGEST}"), Refuse),
        ("identity hash", "d82a46000155000161".to_owned(), Refuse),
        ("identity hash of 32", format!("d82a58250001550020{DIGEST}"), Refuse),
        ("blake3", format!("d82a58250001711e20{DIGEST}"), Refuse),
        ("sha2-512 cut", format!("d82a58250001711320{DIGEST}"), Refuse),
        ("dag-pb", format!("d82a58250001701220{DIGEST}"), Refuse),
        ("dag-json", format!("d82a58270001a9021220{DIGEST}"), Refuse),
        ("version 0", format!("d82a5823001220{DIGEST}"), Refuse),
        ("version 2", format!("d82a58250002711220{DIGEST}"), Refuse),
        ("digest of 31", format!("d82a5824000171121f{short}"), Refuse),
        ("text instead of bytes", "d82a6161".to_owned(), Refuse),
        ("nothing", "d82a".to_owned(), Refuse),
        ("empty", "d82a40".to_owned(), Refuse),
        ("as a key", format!("a1d82a58250001711220{DIGEST}00"), Refuse),
        ("cut", format!("d82a58250001711220{short}"), Refuse),
    ] {
        check(name, &hex, verdict);
    }
}

#[test]
fn nesting_is_bounded_at_16() {
    for open in ["81", "a16161"] {
        check("16 deep", &format!("{}00", open.repeat(16)), Accept);
        check("17 deep", &format!("{}00", open.repeat(17)), Refuse);
        check("the 17th empty", &format!("{}80", open.repeat(16)), Refuse);
        check("100,000 deep", &format!("{}00", open.repeat(100_000)), Refuse);
    }
    // Siblings do not count as nesting.
    check("wide", &format!("9820{}", "8100".repeat(32)), Accept);
}

#[test]
fn links_come_in_the_order_of_the_bytes() {
    let (a, b) = (Cid::of(Codec::Raw, b"a"), Cid::of(Codec::DagCbor, b"b"));
    let block = encode(&vec![Some(b), None, Some(a), Some(b)]);
    assert_eq!(links(Codec::DagCbor, &block).expect("our own bytes"), [b, a, b]);
    assert_eq!(links(Codec::Raw, &block).expect("raw has no form"), []);
    assert!(links(Codec::DagCbor, &block[1..]).is_err());
}

#[test]
fn a_cid_has_one_text_and_one_binary_form() {
    // The CIDs of the empty raw block and the empty map, as other programs compute them.
    let empty_raw = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    let empty_map = "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua";
    for (text, codec, bytes) in [(empty_raw, Codec::Raw, &[][..]), (empty_map, Codec::DagCbor, &[0xa0])] {
        let cid: Cid = text.parse().expect(text);
        assert_eq!(cid, Cid::of(codec, bytes));
        assert_eq!(cid.to_string(), text);
        assert_eq!(Cid::from_bytes(&cid.to_bytes()), Ok(cid));
        assert_eq!(Cid::try_from(&cid::Cid::from(cid)), Ok(cid));
        assert!(cid.names(bytes) && !cid.names(b"other"));
    }
    let text = |bytes: &[u8]| {
        let text = data_encoding::BASE32_NOPAD.encode(bytes);
        format!("b{}", text.to_ascii_lowercase())
    };
    let with_head = |head: [u8; 4]| text(&[&head[..], &[7; 32]].concat());
    let (cut, _) = empty_raw.split_at(58);
    for bad in [
        String::new(),
        "b".to_owned(),
        empty_raw.to_uppercase(),
        format!("B{}", &empty_raw[1..]),
        format!("b{}", empty_raw[1..].to_uppercase()),
        format!("z{}", &empty_raw[1..]),
        cut.to_owned(),
        format!("{empty_raw}a"),
        format!("{empty_raw}="),
        format!(" {cut}"),
        format!("{cut}v"),
        format!("{cut}1"),
        format!("{}é", &empty_raw[..57]),
        "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n".to_owned(),
        with_head([1, 0x71, 0x1e, 32]),
        with_head([1, 0x70, 0x12, 32]),
        with_head([2, 0x71, 0x12, 32]),
        with_head([1, 0x71, 0x00, 32]),
        with_head([1, 0x71, 0x12, 31]),
    ] {
        assert_eq!(bad.parse::<Cid>(), Err(CidError::Malformed), "{bad:?}");
    }
    for len in [0, 35, 37, 72] {
        let mut bytes = empty_raw.parse::<Cid>().expect(empty_raw).to_bytes().to_vec();
        bytes.resize(len, 0);
        assert_eq!(Cid::from_bytes(&bytes), Err(CidError::Malformed), "{len} bytes");
    }
}
