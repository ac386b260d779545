//! Claims about nodes that call each other's tools: two or three whole ones, joined by streams.
//!
//! Each has a log of its own, and the claims are read from the logs.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{json, value::to_raw_value};
use tokio::{
    io::duplex,
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{House, house};
use crate::{
    block::Cid,
    caller::{Caller, Scope},
    error::Code,
    event::{Actor, Body, Event, peer::RemoteCalled},
    log::{Reader, sqlite::SqliteReader},
    mcp::{Settings, client::Silent, serve_frames},
    peer::{Counters, Peer, Quarantine, Status, score::Score},
    router::{
        BoxFuture, Invocation, Meta, Method, Offered, Offering, Outcome, Request, Response, Router, RpcError,
        Run, audience::Audience, declared::Declared, metadata::Hints,
    },
    runtime::{
        peers::{Peers, Ties},
        upstream::{Duplex, OpenStream},
    },
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A tool that says of itself what nodes say of calls that they cancel.
const CLAIMS: &str = "claims";

/// Tools that answer with who runs them, or that wait until they are cancelled.
struct Tools {
    who: &'static str,
    waits: bool,
    running: mpsc::UnboundedSender<()>,
}

impl Run for Tools {
    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            // The test may listen no more.
            let _ = self.running.send(());
            if self.waits {
                invocation.cancel.cancelled().await;
                return Outcome::Cancelled;
            }
            if invocation.name == CLAIMS {
                let error = json!({"code": "cancelled", "message": "the call was cancelled"});
                let said = json!({"content": [], "structuredContent": {"success": false, "error": error},
                                  "isError": true, "_meta": {"io.cairn/cancelled": true}});
                return Outcome::of_result(to_raw_value(&said).expect("json"));
            }
            let said = json!({"content": [], "structuredContent": {"who": self.who}, "isError": invocation.name == "fail"});
            Outcome::of_result(to_raw_value(&said).expect("json"))
        })
    }
}

/// A node, and when one of its tools began to run.
struct Node {
    house: House,
    running: mpsc::UnboundedReceiver<()>,
}

/// What a node offers: names, and whether running one twice does no more than once.
const BOTH: &[(&str, bool)] = &[("again", true), ("once", false), ("fail", true)];

async fn node(who: &'static str, seed: u8, tools: &[(&str, bool)], waits: bool) -> Node {
    let house = house(seed);
    let (running_to, running) = mpsc::unbounded_channel();
    let tool = |(name, repeatable): &(&str, bool)| {
        let definition = json!({
            "name": name, "description": "says who runs it", "inputSchema": {"type": "object"},
            "annotations": {"idempotentHint": repeatable},
        });
        let definition = to_raw_value(&definition).expect("json");
        let (inner, name) = ((*name).to_owned(), (*name).to_owned());
        Offered { inner, name, definition, hints: Hints::default(), contract: None }
    };
    let offering = Offering {
        source: "test".into(),
        version: "1".into(),
        rank: 0,
        lane: None,
        tools: tools.iter().map(tool).collect(),
        prompts: Vec::new(),
        resources: Vec::new(),
        templates: Vec::new(),
        views: Vec::new(),
        declared: Declared { tools: true, ..Declared::default() },
        mirrors: false,
        run: Arc::new(Tools { who, waits, running: running_to }),
    };
    house.router.put(offering).await.expect("the ledger runs");
    Node { house, running }
}

impl Node {
    fn router(&self) -> &Arc<Router> {
        &self.house.router
    }

    /// Every event of its log, from the first.
    fn events(&self) -> Vec<Event> {
        let reader = SqliteReader::open(&self.house.dir.path().join("log.db")).expect("reads");
        (0..).map_while(|seq| reader.event_at(seq).expect("reads")).collect()
    }

    fn kinds(&self) -> Vec<String> {
        self.events().iter().map(|event| event.fields().kind.clone()).collect()
    }

    async fn call(&self, name: &str, role: &str) -> Result<Response, RpcError> {
        let actor = Actor { id: "ada".into(), role: role.into(), proof: None };
        let params =
            to_raw_value(&json!({"name": name, "arguments": {}, "_meta": {"io.cairn/token": "hush"}}));
        let request = Request {
            method: Method::ToolsCall,
            name: name.to_owned(),
            params: params.expect("json").into(),
            meta: Meta::default(),
            caller: Caller { actor, scopes: vec![Scope::Call] },
            client: Arc::new(Silent { audience: Audience::default() }),
            cancel: CancellationToken::new(),
            cause: None,
            attempt: None,
            begun: None,
        };
        timeout(PATIENCE, self.router().call(request)).await.expect("in time")
    }

    /// Waits until the tools of other nodes have these names here.
    async fn offers(&self, names: &[&str]) {
        let mut changes = self.router().changes();
        let waiting = async {
            loop {
                let tools = self.router().tools();
                let theirs = tools.iter().map(|entry| entry.tool.name.as_str());
                let theirs: BTreeSet<&str> = theirs.filter(|name| name.starts_with("peers_")).collect();
                if theirs.iter().eq(names) {
                    return;
                }
                changes.recv().await.expect("the router lives");
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never offers {names:?}"));
    }
}

/// The way to a node: every stream is served there, until the way is cut.
struct Way {
    router: Arc<Router>,
    /// None once it is cut.
    serving: Mutex<Option<Vec<AbortHandle>>>,
}

impl Way {
    fn to(node: &Node) -> Arc<Self> {
        Arc::new(Self { router: node.router().clone(), serving: Mutex::new(Some(Vec::new())) })
    }

    fn cut(&self) {
        for serving in self.serving.lock().expect("no panic").take().into_iter().flatten() {
            serving.abort();
        }
    }
}

impl OpenStream for Way {
    fn open(&self) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>> {
        Box::pin(async {
            let (near, far) = duplex(1 << 16);
            let actor = Actor { id: "12D3KooWcaller".into(), role: "peer".into(), proof: None };
            let caller = Caller { actor, scopes: vec![Scope::Call] };
            let settings = Settings { contracts: true, ..Settings::default() };
            let mut serving = self.serving.lock().expect("no panic");
            let serving = serving.as_mut().ok_or("there is no way to it")?;
            let served = tokio::spawn(serve_frames(self.router.clone(), settings, caller, far));
            serving.push(served.abort_handle());
            Ok(Box::new(near) as Box<dyn Duplex>)
        })
    }
}

/// The peers' board of a node, whose contracts come from `sources`.
fn board(node: &Node, sources: &[&Node]) -> (Peers, JoinHandle<()>) {
    let routers: Vec<Arc<Router>> = sources.iter().map(|node| node.router().clone()).collect();
    let fetch = move |_: String, cid: Cid| -> BoxFuture<'static, Result<Vec<u8>, String>> {
        let contract = routers.iter().find_map(|router| router.contract(&cid));
        Box::pin(async move { Ok(contract.ok_or("unknown")?.seal().bytes().to_vec()) })
    };
    Peers::start(Router::clone(node.router()), ties(fetch))
}

fn ties(
    fetch: impl Fn(String, Cid) -> BoxFuture<'static, Result<Vec<u8>, String>> + Send + Sync + 'static,
) -> Ties {
    Ties {
        fetch: Arc::new(fetch),
        facts: Arc::new(|_| None),
        metrics: Arc::default(),
        rank: 100,
        timeout: PATIENCE,
        grace: Duration::ZERO,
    }
}

fn remotes(events: &[Event]) -> Vec<(&Event, RemoteCalled)> {
    let remote = |event| match Event::body(event) {
        Some(Body::RemoteCalled(facts)) => Some((event, facts)),
        _ => None,
    };
    events.iter().filter_map(remote).collect()
}

fn of_kind<'a>(events: &'a [Event], kind: &str) -> Vec<&'a Event> {
    events.iter().filter(|event| event.fields().kind == kind).collect()
}

#[tokio::test]
async fn a_call_stands_in_both_logs_and_each_names_the_others_event() {
    let (a, b) = (node("a", 1, &[], false).await, node("b", 2, BOTH, false).await);
    let (peers, _publishing) = board(&a, &[&b]);
    peers.join("peer-b", Way::to(&b));
    a.offers(&["peers_again", "peers_fail", "peers_once"]).await;
    let answer = a.call("peers_again", "user").await.expect("an answer");
    assert!(answer.result.get().contains(r#""who":"b""#), "{}", answer.result);

    let (here, there) = (a.events(), b.events());
    let (start, start_there) = (of_kind(&here, "call.started")[0], of_kind(&there, "call.started")[0]);
    assert_eq!(start_there.fields().refs, [start.cid()], "it names the event that asked");
    assert_eq!(start_there.fields().actor.id, "12D3KooWcaller");
    let (event, facts) = remotes(&here).remove(0);
    let ending_there = of_kind(&there, "call.succeeded")[0];
    assert_eq!(event.fields().refs, [ending_there.cid()], "it names the peer's ending");
    assert_eq!((event.fields().cause, event.fields().subject.as_str()), (Some(start.cid()), "peer/peer-b"));
    let contract = b.router().tool("again").expect("it is offered").tool.contract;
    assert_eq!((facts.contract, facts.ok, facts.attempt), (contract, true, 1));
    assert!(facts.rule.starts_with("best 1 of 1"), "{}", facts.rule);
    assert_eq!((start.fields().tool, start_there.fields().tool), (Some(contract), Some(contract)));
    let published = here.iter().find_map(|event| match event.body() {
        Some(Body::ContractPublished(facts)) if facts.contract == contract => Some(facts),
        _ => None,
    });
    let published = published.expect("the contract was adopted");
    assert_eq!((published.source.as_str(), published.name.as_str()), ("peers", "peers_again"));

    let by_cid = a.call(&contract.to_string(), "user").await.expect("an answer");
    assert!(by_cid.result.get().contains(r#""who":"b""#), "a contract is a name too: {}", by_cid.result);
    let failed = a.call("peers_fail", "user").await.expect("an answer");
    assert!(failed.result.get().contains(r#""isError":true"#), "{}", failed.result);
    let here = a.events();
    let (_, facts) = remotes(&here).remove(2);
    assert!(facts.ok, "a tool that fails is an answer of its peer");
}

#[tokio::test]
async fn a_peer_that_goes_away_midway_leaves_one_outcome_in_each_log() {
    let (a, mut b) = (node("a", 1, &[], false).await, node("b", 2, BOTH, true).await);
    let (peers, _publishing) = board(&a, &[&b]);
    let way = Way::to(&b);
    peers.join("peer-b", way.clone());
    a.offers(&["peers_again", "peers_fail", "peers_once"]).await;
    let running = async {
        b.running.recv().await.expect("it runs there");
        way.cut();
    };
    let (answer, ()) = tokio::join!(a.call("peers_once", "user"), running);
    let result = answer.expect("a result that says so").result;
    assert!(result.get().contains(r#""code":"unavailable""#), "{result}");
    let here = a.events();
    let remotes = remotes(&here);
    assert_eq!(remotes.len(), 1);
    assert_eq!((remotes[0].1.ok, remotes[0].1.code.as_deref()), (false, Some("died")));
    assert_eq!(of_kind(&here, "call.failed").len(), 1);
    let mut committed = b.router().ledger().committed();
    let cancelled = committed.wait_for(|_| b.kinds().contains(&"call.cancelled".to_owned()));
    timeout(PATIENCE, cancelled).await.expect("in time").expect("the ledger runs");
    assert!(result.get().contains("peer peer-b ended before it answered"), "{result}");
    assert!(result.get().contains(r#""retryable":false"#), "it may have run: {result}");
    let again = a.call("peers_once", "user").await.expect("a result that says so").result;
    assert!(again.get().contains("no peer that offers this tool"), "{again}");
    assert!(again.get().contains(r#""retryable":true"#), "it was not asked: {again}");

    peers.leave("peer-b");
    a.offers(&[]).await;
    assert_eq!(of_kind(&a.events(), "contract.retired").len(), 3);
}

#[tokio::test]
async fn what_may_run_twice_is_asked_of_the_next_peer_and_nothing_else_is() {
    let a = node("a", 1, &[], false).await;
    let (mut b, c) = (node("b", 2, BOTH, true).await, node("c", 3, BOTH, false).await);
    let (peers, _publishing) = board(&a, &[&b]);
    for (tool, attempts) in [("peers_once", 1), ("peers_again", 2)] {
        let (to_b, to_c) = (Way::to(&b), Way::to(&c));
        peers.join("peer-b", to_b.clone());
        a.offers(&["peers_again", "peers_fail", "peers_once"]).await;
        let meanwhile = async {
            b.running.recv().await.expect("it runs there");
            peers.join("peer-c", to_c);
            while peers.offered().iter().filter(|(_, offers)| offers.len() == 3).count() < 2 {
                tokio::task::yield_now().await;
            }
            to_b.cut();
        };
        let (answer, ()) = tokio::join!(a.call(tool, "user"), meanwhile);
        let result = answer.expect("a result").result;
        assert_eq!(result.get().contains(r#""who":"c""#), attempts == 2, "{tool}: {result}");
        let here = a.events();
        let remotes = remotes(&here);
        let last = &remotes[remotes.len() - 1].1;
        assert_eq!((last.attempt, last.ok), (attempts, attempts == 2), "{tool}");
        peers.leave("peer-b");
        peers.leave("peer-c");
        a.offers(&[]).await;
    }
}

#[tokio::test]
async fn a_peer_that_stops_midway_has_failed_and_its_tool_may_have_begun() {
    for (tool, answered) in [("peers_again", true), ("peers_once", false)] {
        let (a, c) = (node("a", 1, &[], false).await, node("c", 3, BOTH, false).await);
        let mut b = node("b", 2, BOTH, true).await;
        let (peers, _publishing) = board(&a, &[&b]);
        peers.join("peer-b", Way::to(&b));
        a.offers(&["peers_again", "peers_fail", "peers_once"]).await;
        let meanwhile = async {
            b.running.recv().await.expect("it runs there");
            peers.join("peer-c", Way::to(&c));
            while peers.offered().iter().filter(|(_, offers)| offers.len() == 3).count() < 2 {
                tokio::task::yield_now().await;
            }
            b.router().drain(Duration::ZERO).await;
        };
        let (answer, ()) = tokio::join!(a.call(tool, "user"), meanwhile);
        let result = answer.expect("a result").result;
        assert_eq!(result.get().contains(r#""who":"c""#), answered, "{tool}: {result}");
        assert_eq!(result.get().contains("peer peer-b stopped before"), !answered, "{tool}: {result}");
        let here = a.events();
        let first = remotes(&here).remove(0);
        assert_eq!((first.1.ok, first.1.code.as_deref()), (false, Some("died")), "{tool}");
        let there = b.events();
        assert_eq!(first.0.fields().refs, [of_kind(&there, "call.cancelled")[0].cid()], "{tool}");
    }
}

#[tokio::test]
async fn what_a_tool_says_of_itself_is_not_taken_for_the_end_of_its_node() {
    let (a, b) = (node("a", 1, &[], false).await, node("b", 2, &[(CLAIMS, true)], false).await);
    let (peers, _publishing) = board(&a, &[&b]);
    peers.join("peer-b", Way::to(&b));
    a.offers(&["peers_claims"]).await;
    let said = a.call("peers_claims", "user").await.expect("a result").result;
    assert!(said.get().contains("the call was cancelled"), "{said}");
    let here = a.events();
    let called: Vec<bool> = remotes(&here).iter().map(|(_, facts)| facts.ok).collect();
    assert_eq!(called, [true]);
}

#[tokio::test]
async fn a_peer_in_quarantine_is_not_asked() {
    let (a, b) = (node("a", 1, &[], false).await, node("b", 2, BOTH, false).await);
    let (sources, contract) =
        (b.router().clone(), b.router().tool("once").expect("it is offered").tool.contract);
    let fetch = move |_: String, cid: Cid| -> BoxFuture<'static, Result<Vec<u8>, String>> {
        let contract = sources.contract(&cid);
        Box::pin(async move { Ok(contract.ok_or("unknown")?.seal().bytes().to_vec()) })
    };
    let facts = Arc::new(Peer {
        id: "peer-b".into(),
        seq: 1,
        last_seq: 2,
        status: Status::Connected,
        addrs: Vec::new(),
        source: None,
        capabilities: None,
        agent: None,
        protocols: Vec::new(),
        discovered_ms: None,
        last_seen_ms: None,
        link: None,
        unreachable: None,
        counters: Counters::default(),
        measure: None,
        success: Score::default(),
        links: Score::default(),
        call_us: None,
        followed: Vec::new(),
        quarantine: Some(Quarantine { event: contract, log: contract, size_a: 1, size_b: 2 }),
    });
    let ties = Ties { facts: Arc::new(move |_| Some(facts.clone())), ..ties(fetch) };
    let (peers, _publishing) = Peers::start(Router::clone(a.router()), ties);
    peers.join("peer-b", Way::to(&b));
    a.offers(&["peers_again", "peers_fail", "peers_once"]).await;
    let refused = a.call("peers_once", "user").await.expect("a result that says so").result;
    assert!(refused.get().contains("no peer that offers this tool"), "{refused}");
    assert_eq!(remotes(&a.events()).len(), 0);
}

#[tokio::test]
async fn a_contract_with_other_bytes_is_not_offered() {
    let (a, b) = (node("a", 1, &[], false).await, node("b", 2, BOTH, false).await);
    let other = b.router().tool("once").expect("it is offered").contract.seal();
    let fetch = move |_: String, _: Cid| -> BoxFuture<'static, Result<Vec<u8>, String>> {
        let bytes = other.bytes().to_vec();
        Box::pin(async move { Ok(bytes) })
    };
    let (peers, _publishing) = Peers::start(Router::clone(a.router()), ties(fetch));
    peers.join("peer-b", Way::to(&b));
    a.offers(&["peers_once"]).await;
}

#[tokio::test]
async fn what_a_node_offers_itself_is_not_offered_again() {
    let (a, b) = (node("a", 1, &BOTH[..1], false).await, node("b", 2, BOTH, false).await);
    let (peers, _publishing) = board(&a, &[&b]);
    peers.join("peer-b", Way::to(&b));
    a.offers(&["peers_fail", "peers_once"]).await;
    let (c, from_a) = (node("c", 3, &[], false).await, Way::to(&a));
    let (next, _publishing) = board(&c, &[&a, &b]);
    next.join("peer-a", from_a);
    c.offers(&["peers_again"]).await;
    let refused = a.call("peers_once", "peer").await.expect("a result that says so").result;
    assert!(refused.get().contains(Code::PermissionDenied.as_str()), "{refused}");
}

#[tokio::test]
async fn two_contracts_of_one_name_have_two_names() {
    let a = node("a", 1, &[], false).await;
    let (b, c) =
        (node("b", 2, &[("tool", true)], false).await, node("c", 3, &[("tool", false)], false).await);
    let (peers, _publishing) = board(&a, &[&b, &c]);
    peers.join("peer-b", Way::to(&b));
    a.offers(&["peers_tool"]).await;
    peers.join("peer-c", Way::to(&c));
    let second = c.router().tool("tool").expect("it is offered").tool.contract.to_string();
    let second = format!("peers_tool_{}", &second[second.len() - 6..]);
    a.offers(&["peers_tool", &second]).await;
    for (name, who) in [("peers_tool", "b"), (second.as_str(), "c")] {
        let answer = a.call(name, "user").await.expect("an answer").result;
        assert!(answer.get().contains(&format!(r#""who":"{who}""#)), "{answer}");
    }
    peers.leave("peer-b");
    a.offers(&[&second]).await;
}
