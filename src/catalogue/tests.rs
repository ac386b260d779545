//! The catalogue's rules as data: what publishing and retiring come to.

use serde_json::{json, value::to_raw_value};

use super::*;

const ADD: (&str, &str) = ("everything", "add");

fn actor() -> Actor {
    Actor { id: "cairn".into(), role: "system".into(), proof: None }
}

fn draft(description: &str) -> Contract {
    let definition = json!({
        "name": "add", "description": description, "inputSchema": {"type": "object"},
        "annotations": {"readOnlyHint": true},
    });
    let raw = to_raw_value(&definition).expect("json is json");
    Contract::of_definition("everything", "1.0", &raw).expect("a whole definition")
}

fn published(entry: Option<&Entry>, draft: Contract) -> (Entry, Fact) {
    match publish(entry, draft, &actor()) {
        Published::New { fact, block, contract } => {
            (Entry { cid: block.cid(), contract: *contract, offered: true }, *fact)
        }
        Published::Known(cid) => panic!("already known as {cid}"),
    }
}

#[test]
fn the_same_promise_is_published_once() {
    let (entry, fact) = published(None, draft("adds"));
    assert_eq!(fact.subject, "contract/everything/add");
    assert_eq!(publish(Some(&entry), draft("adds"), &actor()), Published::Known(entry.cid));
}

#[test]
fn a_changed_promise_names_the_one_it_replaces() {
    let (first, _) = published(None, draft("adds"));
    let (second, fact) = published(Some(&first), draft("adds, and sends you an invoice"));
    assert_ne!(second.cid, first.cid);
    assert_eq!(second.contract.prev, Some(first.cid));
    assert!(matches!(fact.body, Body::ContractPublished(facts) if facts.prev == Some(first.cid)));
}

#[test]
fn a_tool_that_comes_back_unchanged_keeps_its_contract() {
    let (mut entry, _) = published(None, draft("adds"));
    let gone = retire(ADD, Some(&entry), &actor()).expect("it was offered");
    assert!(matches!(gone.body, Body::ContractRetired(facts) if facts.contract == entry.cid));
    entry.offered = false;
    assert_eq!(retire(ADD, Some(&entry), &actor()), None, "it is not offered any more");
    let (back, _) = published(Some(&entry), draft("adds"));
    assert_eq!(back.cid, entry.cid);
}

#[test]
fn a_contract_of_another_node_is_adopted_as_it_is() {
    let theirs = Contract { prev: Some(draft("older").seal().cid()), ..draft("adds") };
    let cid = theirs.seal().cid();
    let Published::New { fact, block, contract } = adopt(None, "peers_add", theirs.clone(), &actor()) else {
        panic!("nobody offered it");
    };
    assert_eq!((block.cid(), fact.tool, fact.subject.as_str()), (cid, Some(cid), "contract/peers/peers_add"));
    assert!(matches!(fact.body, Body::ContractPublished(facts)
        if facts.prev.is_none() && facts.source == PEERS && facts.name == "peers_add"));
    let mut entry = Entry { cid, contract: *contract, offered: true };
    assert_eq!(adopt(Some(&entry), "peers_add", theirs.clone(), &actor()), Published::Known(cid));
    let gone = retire((PEERS, "peers_add"), Some(&entry), &actor()).expect("it was offered");
    assert_eq!(gone.subject, "contract/peers/peers_add");
    entry.offered = false;
    let Published::New { fact, block, .. } = adopt(Some(&entry), "peers_add", draft("subtracts"), &actor())
    else {
        panic!("another contract took its name");
    };
    assert_ne!(block.cid(), cid);
    assert!(matches!(fact.body, Body::ContractPublished(facts) if facts.prev == Some(cid)));
}
