//! Checks that the head file keeps every head that may be signed, and what earlier builds left in it.

use super::*;

fn home() -> (Home, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    (Home::of(dir.path()), dir)
}

fn heads(home: &Home) -> Vec<String> {
    home.signed_heads().expect("it is read")
}

/// Returns a head file of the slots that earlier builds wrote.
fn narrow(notes: &[&str]) -> Vec<u8> {
    let slot = |note: &&str| {
        let mut slot = note.as_bytes().to_vec();
        slot.resize(FORMER_SLOT, 0);
        slot
    };
    notes.iter().flat_map(slot).collect()
}

#[test]
fn a_head_of_every_length_is_kept() {
    let (home, _dir) = home();
    let mut file = home.head().expect("it is opened");
    let notes = [1, 200, 1024, 1025, 2048, 2049, CHECKPOINT_MAX, 200, 1].map(|len| "n".repeat(len));
    for pair in notes.windows(2) {
        pair.iter().for_each(|note| file.write(note, false).expect("it is written"));
        assert_eq!(heads(&home).len(), 2);
        assert!(pair.iter().all(|note| heads(&home).contains(note)), "{:?}", pair[1].len());
    }
    assert!(file.write(&"n".repeat(CHECKPOINT_MAX + 1), false).is_err());
    for note in &notes {
        home.replace_head(note).expect("it is written");
        assert_eq!(heads(&home), [note.as_str()]);
    }
}

#[test]
fn the_heads_that_an_earlier_build_left_are_read_and_outlast_the_first_write() {
    for (left, expected) in [
        (narrow(&["one", "two"]), vec!["one", "two"]),
        (narrow(&["one"]), vec!["one"]),
        (b"one".to_vec(), vec!["one"]),
        (narrow(&["", "two"]), vec!["two"]),
        (Vec::new(), vec![]),
    ] {
        let (home, _dir) = home();
        fs::write(home.dir().join("head"), &left).expect("writes");
        assert_eq!(heads(&home), expected, "as it was left");
        let mut file = home.head().expect("it is opened");
        assert_eq!(heads(&home), expected, "as it was opened");
        file.write("three", true).expect("it is written");
        let mut kept = vec!["three"];
        kept.extend(expected.iter().filter(|note| **note == "two"));
        assert_eq!(heads(&home), kept);
    }
}
