//! Checks which envelopes and parts a payload may have, and that no part's CID can be guessed.

use super::*;

const KEY: [u8; 32] = [1; 32];

fn key() -> SaltKey {
    SaltKey::new(KEY)
}

/// Returns `len` bytes of content that change along the way, so that two parts differ.
fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 1000) as u8).collect()
}

/// Seals a payload in version 1, as before parts had salts.
pub fn plain_parts(media: &str, data: &[u8]) -> SealedPayload {
    let parts: Vec<Block> =
        data.chunks(INLINE_MAX).map(|part| Block::new(Codec::Raw, part.to_vec())).collect();
    let payload = Payload {
        v: PLAIN,
        media: media.to_owned(),
        salt: key().commit(media, data).to_vec(),
        data: None,
        parts: Some(parts.iter().map(Block::cid).collect()),
    };
    SealedPayload { envelope: Block::encode(&payload), parts, len: data.len() as u64 }
}

fn envelope(payload: &SealedPayload) -> Payload {
    decode(payload.envelope.bytes()).expect("it was sealed")
}

#[test]
fn content_comes_back_from_every_form() {
    for len in [0, 1, INLINE_MAX, INLINE_MAX + 1, 2 * INLINE_MAX, 3 * INLINE_MAX - 1] {
        let data = content(len);
        let sealed = Payload::seal(&key(), JSON, &data).expect("under the bound");
        assert_eq!(sealed.content().as_deref(), Some(&data[..]), "{len} bytes");
        assert_eq!(sealed, Payload::seal(&key(), JSON, &data).expect("under the bound"), "the same again");
        assert_eq!(envelope(&sealed).v, if len > INLINE_MAX { 2 } else { 1 });
    }
    let data = content(600 * 1024);
    assert_eq!(plain_parts(JSON, &data).content(), Some(data), "parts without salts stay readable");
}

#[test]
fn a_part_cannot_be_guessed_and_is_of_its_payload_alone() {
    let data = vec![b'x'; 3 * INLINE_MAX];
    let of = |media| Payload::seal(&key(), media, &data).expect("under the bound");
    let (one, other) = (of(JSON), of("text/plain"));
    let foreign = Payload::seal(&SaltKey::new([2; 32]), JSON, &data).expect("under the bound");
    let guess = Cid::of(Codec::Raw, &data[..INLINE_MAX]);
    let all = [&one, &other, &foreign].map(|payload| payload.parts.iter().map(Block::cid));
    let mut names: Vec<Cid> = all.into_iter().flatten().chain([guess]).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 10, "no two parts are called the same, and none as its content would be");
}

/// Released forms must keep their CIDs.
#[test]
fn the_bytes_of_salted_parts_are_fixed() {
    let sealed = Payload::seal(&key(), JSON, &content(INLINE_MAX + 1)).expect("under the bound");
    assert_eq!(
        sealed.envelope.cid().to_string(),
        "bafyreif52gtdnuxfgi5iuko5msjgkmy3ufgvq4l6rvcedpd3bneijrovjm"
    );
    assert_eq!(sealed.parts[1].bytes().len(), SALT_LEN + 1);
}

#[test]
fn an_envelope_that_breaks_a_rule_says_which() {
    let data = content(2 * INLINE_MAX + 5);
    let len = Some(data.len() as u64);
    let check = |change: &dyn Fn(&mut Payload), len: Option<u64>, told: Result<(), PayloadFault>| {
        let mut payload = envelope(&Payload::seal(&key(), JSON, &data).expect("under the bound"));
        change(&mut payload);
        assert_eq!(payload.layout(len).map(|_| ()), told, "{payload:?}");
    };
    let parts = |count: usize| {
        move |payload: &mut Payload| {
            let part = payload.parts.as_ref().map(|parts| parts[0]);
            payload.parts = part.map(|part| vec![part; count]);
        }
    };
    check(&|_| {}, len, Ok(()));
    check(&|_| {}, None, Ok(()));
    check(&|payload| payload.v = 3, len, Err(PayloadFault::Version));
    check(&|payload| payload.salt.truncate(15), len, Err(PayloadFault::Salt));
    check(&|payload| payload.data = Some(Vec::new()), len, Err(PayloadFault::Content));
    check(&|payload| payload.parts = None, len, Err(PayloadFault::Content));
    for count in [0, 1, PARTS_MAX + 1] {
        check(&parts(count), None, Err(PayloadFault::Count));
    }
    check(&parts(PARTS_MAX), None, Ok(()));
    for wrong in [0, 1, INLINE_MAX as u64, 2 * INLINE_MAX as u64, 3 * INLINE_MAX as u64 + 1, u64::MAX] {
        check(&|_| {}, Some(wrong), Err(PayloadFault::Length));
    }
    let block = Cid::of(Codec::DagCbor, b"");
    let other = |payload: &mut Payload| payload.parts.iter_mut().for_each(|parts| parts[1] = block);
    check(&other, len, Err(PayloadFault::Codec));
    let inline = |v: u64, data: Vec<u8>| {
        move |payload: &mut Payload| {
            (payload.v, payload.parts, payload.data) = (v, None, Some(data.clone()));
        }
    };
    check(&inline(1, vec![0; 5]), Some(5), Ok(()));
    check(&inline(1, vec![0; 5]), Some(6), Err(PayloadFault::Length));
    check(&inline(2, vec![0; 5]), Some(5), Err(PayloadFault::Version));
    check(&inline(1, vec![0; INLINE_MAX + 1]), None, Err(PayloadFault::Inline));
}

#[test]
fn parts_of_another_length_are_not_put_together() {
    let sealed = Payload::seal(&key(), JSON, &content(2 * INLINE_MAX + 5)).expect("under the bound");
    let joined = |at: usize, change: &dyn Fn(&mut Vec<u8>)| {
        let read = |cid: &Cid| {
            let place = sealed.parts.iter().position(|part| part.cid() == *cid)?;
            let mut bytes = sealed.parts[place].bytes().to_vec();
            if place == at {
                change(&mut bytes);
            }
            Some(bytes)
        };
        let read = |cid: &Cid| Ok::<_, Infallible>(read(cid));
        let Ok(content) = envelope(&sealed).content(None, read);
        content.map(|content| content.len())
    };
    let part = |at: usize| sealed.parts[at].cid();
    assert_eq!(joined(0, &|_| {}), Ok(2 * INLINE_MAX + 5));
    assert_eq!(joined(0, &|bytes| bytes.truncate(100)), Err(Gap::Length(part(0))));
    assert_eq!(joined(2, &|bytes| bytes.truncate(SALT_LEN)), Err(Gap::Length(part(2))));
    assert_eq!(joined(2, &|bytes| bytes.resize(SALT_LEN + INLINE_MAX + 1, 0)), Err(Gap::Length(part(2))));
    let Ok(gone) = envelope(&sealed).content(None, |_| Ok::<_, Infallible>(None));
    assert_eq!(gone, Err(Gap::Absent(part(0))));
}
