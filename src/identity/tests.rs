//! Checks that other programs read signed heads, and that a head with any damage is refused.

use super::*;

const ORIGIN: &str = "cairn.example/log1";
const SEED: [u8; 32] = [7; 32];

fn signer() -> Signer {
    Signer::new(ORIGIN, SEED).expect("the origin is a key name")
}

fn other() -> Signer {
    Signer::new("witness.example/w1", [8; 32]).expect("the origin is a key name")
}

fn signature_of(note: &str) -> &str {
    note.split_once("\n\n").expect("a note has a blank line").1
}

/// Returns a note over any text with a valid signature.
fn note(text: &str, signer: &Signer) -> String {
    let id = signer.verifier.id.to_be_bytes();
    let signature = signer.key.sign(text.as_bytes()).to_bytes();
    let signed = BASE64_STANDARD.encode([&id[..], &signature].concat());
    format!("{text}\n\u{2014} {} {signed}\n", signer.origin())
}

fn check(note: &str, expected: Result<u64, CheckpointError>) {
    let opened = open_checkpoint(note, signer().verifier());
    assert_eq!(opened.map(|head| head.size), expected, "{note}");
}

#[test]
fn a_signed_head_opens_under_its_verifier_key_and_no_other() {
    let root = [9; 32];
    let head = signer().sign_checkpoint(600, &root);
    let expected = Checkpoint { origin: ORIGIN.to_owned(), size: 600, root };
    let from_text = Verifier::from_vkey(&signer().vkey()).expect("our own text");
    assert_eq!(open_checkpoint(&head, &from_text), Ok(expected));
    let (of_another_key, of_another_name) = (
        Signer::new(ORIGIN, [1; 32]).expect("the origin is a key name"),
        Signer::new("cairn.example/log2", SEED).expect("the origin is a key name"),
    );
    for stranger in [of_another_key, of_another_name] {
        let opened = open_checkpoint(&head, stranger.verifier());
        assert_eq!(opened, Err(CheckpointError::Unsigned));
    }
}

#[test]
fn another_make_verifies_what_we_sign() {
    let head = signer().sign_checkpoint(u64::MAX, &[9; 32]);
    let verifier = signed_note::StandardVerifier::new(&signer().vkey()).expect("a verifier key");
    let known = signed_note::VerifierList::new(vec![Box::new(verifier)]);
    let note = Note::from_bytes(head.as_bytes()).expect("a note");
    let (verified, unknown) = note.verify(&known).expect("signed by the known key");
    assert_eq!((verified.len(), unknown.len()), (1, 0));
    let text = tlog_tiles::Checkpoint::from_bytes(note.text()).expect("a checkpoint");
    assert_eq!((text.origin(), text.size()), (ORIGIN, u64::MAX));
}

#[test]
fn the_rules_of_signed_note_are_kept() {
    let head = signer().sign_checkpoint(600, &[9; 32]);
    let ours = signature_of(&head);
    let text = head.strip_suffix(ours).expect("the signature ends the note");
    let others = note(text.strip_suffix('\n').expect("a blank line"), &other());
    let theirs = signature_of(&others);
    let elsewhere = signer().sign_checkpoint(601, &[9; 32]);
    let wrong = signature_of(&elsewhere);

    check(&head, Ok(600));
    check(&format!("{text}{theirs}{ours}"), Ok(600));
    check(&format!("{text}{ours}{theirs}"), Ok(600));
    check(&format!("{text}{theirs}"), Err(CheckpointError::Unsigned));
    check(&format!("{text}{wrong}"), Err(CheckpointError::Signature));
    check(&format!("{text}{ours}{wrong}"), Err(CheckpointError::Signature));
    check(&format!("{text}{ours}{}", theirs.repeat(15)), Ok(600));
    check(&format!("{text}{ours}{}", theirs.repeat(16)), Err(CheckpointError::Note));
    check(&head.replace("600", "601"), Err(CheckpointError::Signature));
    for malformed in [
        String::new(),
        "\n\n".to_owned(),
        text.to_owned(),
        head.trim_end().to_owned(),
        format!("{head}\n"),
        format!("{text}{ours}not a signature\n"),
        head.replace("600", "600\r"),
        head.replace("600", "600\0"),
        format!("{}{head}", "x".repeat(CHECKPOINT_MAX)),
    ] {
        check(&malformed, Err(CheckpointError::Note));
    }
}

#[test]
fn a_head_of_the_largest_size_is_a_head_and_its_form_is_checked_without_a_key() {
    let root = BASE64_STANDARD.encode([9; 32]);
    let of_len = |len: usize| note(&format!("{ORIGIN}\n5\n{root}\n{}\n", "x".repeat(len)), &signer());
    let room = CHECKPOINT_MAX - of_len(0).len();
    let (largest, over) = (of_len(room), of_len(room + 1));
    check(&largest, Ok(5));
    check(&over, Err(CheckpointError::Note));
    assert_eq!(check_form(&largest), Ok(()));
    assert_eq!(check_form(&over), Err(CheckpointError::Note));
    let head = other().sign_checkpoint(5, &[9; 32]);
    assert_eq!(check_form(&head), Ok(()));
    let theirs = signature_of(&head);
    assert_eq!(check_form(&format!("{head}{}", theirs.repeat(15))), Ok(()));
    assert_eq!(check_form(&format!("{head}{}", theirs.repeat(16))), Err(CheckpointError::Note));
    assert_eq!(check_form(&note("no head\n", &signer())), Err(CheckpointError::Malformed));
}

#[test]
fn a_signature_of_another_key_has_a_name_of_any_length_and_at_least_one_byte() {
    let head = signer().sign_checkpoint(600, &[9; 32]);
    let line =
        |name: &str, bytes: &[u8]| format!("{head}\u{2014} {name} {}\n", BASE64_STANDARD.encode(bytes));
    check(&line(&"n".repeat(300), &[0; 5]), Ok(600));
    check(&line("n", &[0; 76]), Ok(600));
    for bad in [line("n", &[0; 4]), line("a+b", &[0; 5]), line("a b", &[0; 5]), line("", &[0; 5])] {
        check(&bad, Err(CheckpointError::Note));
    }
    check(&line("n", &[0; 5]).replace("AAAAAAA=", "AAAAAAB="), Err(CheckpointError::Note));
}

#[test]
fn a_signed_text_that_is_no_checkpoint_of_ours_is_refused() {
    let root = BASE64_STANDARD.encode([9; 32]);
    let short = BASE64_STANDARD.encode([9; 31]);
    check(&note(&format!("{ORIGIN}\n5\n{root}\nextension\n"), &signer()), Ok(5));
    for text in [
        format!("{ORIGIN}\n"),
        format!("{ORIGIN}\n5\n"),
        format!("{ORIGIN}\n05\n{root}\n"),
        format!("{ORIGIN}\n+5\n{root}\n"),
        format!("{ORIGIN}\n-5\n{root}\n"),
        format!("{ORIGIN}\n18446744073709551616\n{root}\n"),
        format!("{ORIGIN}\n5\n{short}\n"),
        format!("{ORIGIN}\n5\n{}\n", root.trim_end_matches('=')),
        format!("{ORIGIN}\n5\n{root}\n\nextension\n"),
        format!("\n5\n{root}\n"),
    ] {
        check(&note(&text, &signer()), Err(CheckpointError::Malformed));
    }
    let origin = "cairn.example/log2".to_owned();
    let text = format!("{origin}\n5\n{root}\n");
    check(&note(&text, &signer()), Err(CheckpointError::Origin { origin }));
}

#[test]
fn a_verifier_key_has_one_text() {
    // The key of Go's checksum database.
    let known = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
    let verifier = Verifier::from_vkey(known).expect("a verifier key");
    assert_eq!(verifier.vkey(), known);
    let vkey = signer().vkey();
    let (_, tail) = vkey.split_once('+').expect("a verifier key");
    for bad in [
        String::new(),
        vkey.to_uppercase(),
        vkey.replace("log1", "log2"),
        format!("{vkey}="),
        format!("{vkey} "),
        format!("{vkey}\n"),
        format!("a b+{tail}"),
        tail.to_owned(),
        "cairn.example/log1+00000000+AQ==".to_owned(),
    ] {
        assert!(Verifier::from_vkey(&bad).is_err(), "{bad:?}");
    }
    let long = "x".repeat(ORIGIN_MAX + 1);
    for origin in ["", "a b", "a+b", "a\u{a0}b", "a\nb", "a\u{1}b", long.as_str()] {
        assert_eq!(Signer::new(origin, SEED).err(), Some(KeyError::Origin));
    }
    // The neutral element is a key of small order.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    assert_eq!(Verifier::from_key(ORIGIN, neutral), Err(KeyError::Key));
    // A key has a second encoding, y + p, for the few y that leave room for it.
    for low in 0xed..=0xff {
        let mut second = [0xff; 32];
        (second[0], second[31]) = (low, 0x7f);
        assert_eq!(Verifier::from_key(ORIGIN, second), Err(KeyError::Key), "{low:x}");
    }
}

#[test]
fn debug_shows_no_seed() {
    let shown = format!("{:?}", signer());
    assert_eq!(shown, format!("Signer({:?})", signer().vkey()));
}
