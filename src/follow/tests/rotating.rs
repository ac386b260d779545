//! Following a log whose keys change: on across the change, and not past what the owner never signed.
//!
//! Invariant: the owners of these logs are honest where they are not said to lie.

use serde_bytes::ByteBuf;

use super::{
    Refused, check, content, forked, held,
    owner::{Owner, once, temp},
};
use crate::{
    follow::{
        copy::Followed,
        driver::FollowError,
        evidence::{Evidence, NoFork},
        rules::{Ending, followed_by},
    },
    ledger::rotating::rotate,
    log::home::Home,
    query::View,
    verify::Verdict,
};

fn turned(owner: Owner, seed: u8) -> Owner {
    let dir = owner.stop();
    let home = Home::open(dir.path()).expect("a home");
    let lock = home.lock("a test").expect("nobody has it");
    rotate(&home, &[seed; 32], &mut |_| {}).expect("the key changes");
    drop(lock);
    Owner::reopen(dir, 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_goes_on_across_a_change_of_keys_and_one_that_comes_later_follows_it_too() {
    let owner = Owner::new(1);
    let first = owner.ledger.about().vkey.clone();
    owner.calls(None, "before", 5, false).await;
    let (one, two) = (temp(), temp());
    let homes = [one.path(), two.path()].map(|dir| Home::open(dir).expect("a home"));
    once(&owner.server(), &homes[0]).await.expect("followed");
    let owner = turned(owner, 40);
    owner.calls(None, "after", 5, false).await;
    let owner = turned(owner, 41);
    for home in &homes {
        let outcome = once(&owner.server(), home).await.expect("it goes on");
        assert_eq!((outcome.ending, outcome.held), (Ending::Current, owner.head().size));
        assert_eq!(outcome.vkey, first, "a log is named by its first key");
        let followed = Followed::open(home, &owner.log()).expect("held");
        assert!(content(followed.home()) == content(&owner.home), "the bytes differ");
        for vkey in [&first, &owner.ledger.about().vkey] {
            let report = check(followed.home(), vkey);
            assert_eq!(report.verdict, Verdict::Verified, "{:?}", report.faults);
        }
        let again = once(&owner.server(), home).await.expect("nothing is new");
        assert_eq!(again.ending, Ending::Current);
        assert_eq!(followed.shown().expect("a summary")["key"], owner.ledger.about().vkey);
    }
}

/// Two changes at one place, each signed by the key before, cannot both be the log's.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_were_seen_are_not_taken_back() {
    let owner = Owner::new(1);
    owner.calls(None, "shared", 5, false).await;
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    let (one, other) = owner.twin();
    let (one, other) = (turned(one, 40), turned(other, 41));
    other.calls(None, "more", 3, false).await;
    once(&one.server(), &home).await.expect("followed");
    let refused = once(&other.server(), &home).await.expect_err("another change at the same place");
    assert!(matches!(refused, FollowError::Refused(Refused::Keys)), "{refused}");
    let followed = Followed::open(&home, &one.log()).expect("held");
    assert!(content(followed.home()) == content(&one.home), "what is held stays");
}

/// The key of before signs what lies before the change, and that it cannot take back either.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_a_former_key_signed_where_it_was_in_force_is_proven() {
    let owner = Owner::new(1);
    owner.calls(None, "shared", 5, false).await;
    let (mut ours, theirs) = owner.twin();
    ours.calls(None, "ours", 10, false).await;
    theirs.calls(None, "theirs", 2, false).await;
    // One change, then one more: the fork is under the first of three keys, then.
    for seed in [40, 41] {
        ours = turned(ours, seed);
        ours.calls(None, "after", 3, false).await;
        for (first, second) in [(&ours, &theirs), (&theirs, &ours)] {
            let dir = temp();
            let home = Home::open(dir.path()).expect("a home");
            once(&first.server(), &home).await.expect("followed");
            let evidence = forked(once(&second.server(), &home).await);
            let sizes = evidence.check().expect("it proves itself");
            assert_eq!((sizes.held, sizes.told), (first.head().size, second.head().size));
            assert_eq!(held(&home, &ours.log()), first.head().size, "nothing of the other branch is kept");
            let followed = Followed::open(&home, &ours.log()).expect("held");
            assert_eq!(followed.evidence().expect("read"), Some(*evidence.clone()));
            // Its keys are part of it: without the change, the larger head is under no key of this log.
            let keyless = Evidence { rotations: Vec::new(), ..*evidence };
            assert_eq!(keyless.check(), Err(NoFork::Head));
        }
    }
}

/// What a former key signs past the change is nobody's word: neither followed nor evidence.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_a_former_key_signed_past_the_change_is_refused() {
    let owner = Owner::new(1);
    owner.calls(None, "shared", 5, false).await;
    let (ours, theirs) = owner.twin();
    let ours = turned(ours, 40);
    ours.calls(None, "ours", 3, false).await;
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    once(&ours.server(), &home).await.expect("followed");
    // Fewer events than are held, then more.
    for calls in [1, 10] {
        theirs.calls(None, "theirs", calls, false).await;
        let refused = once(&theirs.server(), &home).await.expect_err("its key was given up");
        assert!(matches!(refused, FollowError::Refused(Refused::Head(_))), "{refused}");
        let followed = Followed::open(&home, &ours.log()).expect("held");
        assert!(content(followed.home()) == content(&ours.home), "what is held stays");
        assert_eq!(followed.evidence().expect("read"), None);
    }
    assert_eq!(once(&ours.server(), &home).await.expect("it goes on").ending, Ending::Current);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_change_of_this_logs_keys_is_refused() {
    let owner = turned(Owner::new(1), 40);
    let view = View::open(&owner.home).expect("a view");
    let first = crate::identity::rotation::Keys::new(
        owner.log(),
        view.keys(&owner.log()).expect("keys").first().clone(),
    );
    let told = view.key_changes(u64::MAX).expect("one change").remove(0);
    let whole = ByteBuf::from(told.bytes());
    assert!(followed_by(first.clone(), std::slice::from_ref(&whole)).is_ok());
    let opened = view.event(&told.fields().prev.expect("an event before")).expect("reads").expect("there");
    // One bit of the signature, which stands behind its name and its length.
    let mut flipped = told.bytes().to_vec();
    let name = b"signature";
    let at = flipped.windows(name.len()).position(|bytes| bytes == name).expect("it is signed");
    flipped[at + name.len() + 2] ^= 1;
    for bad in [
        vec![ByteBuf::from(opened.bytes())],
        vec![ByteBuf::from(flipped)],
        vec![whole.clone(), whole.clone()],
        vec![ByteBuf::from(vec![0xa0])],
    ] {
        assert!(matches!(followed_by(first.clone(), &bad), Err(Refused::Keys)), "{bad:?}");
    }
}
