//! Questions in mid-call, at the door: what a tool's server asks the client, and what it is answered, is on record.
//!
//! Invariant: every log here verifies, its state too.

use std::path::Path;

use cairn::event::{
    Event, Role,
    body::{Body, Question, Reaction},
};
use serde_json::{Value, json};

use crate::{
    harness::{Server, cairn, run, temp, text},
    record,
    speech::{Connection, LEGACY, ask, call},
};

/// The request whose answers are waited for.
const CALL: u64 = 7;

/// A client of the session era that can be asked.
struct Client {
    url: String,
    /// A new one for each call: a stream is not read beyond the answer.
    calls: Connection,
    /// Answers go over another connection than the call that waits for them.
    answers: Connection,
}

impl Client {
    fn new(server: &Server) -> Self {
        let open = || Connection::open(&server.url).expect("the server listens");
        let (mut calls, mut answers) = (open(), open());
        let params = json!({
            "protocolVersion": LEGACY,
            "capabilities": {"elicitation": {}, "sampling": {}, "roots": {}},
            "clientInfo": {"name": "tests", "version": "1"},
        });
        let message = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
        let reply = calls.ask(&message).expect("the server answers");
        calls.session = reply.header("mcp-session-id").map(str::to_owned);
        answers.session.clone_from(&calls.session);
        let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        calls.ask(&note).expect("the server answers");
        Self { url: server.url.clone(), calls, answers }
    }

    /// Calls a tool. Returns what its server asks meanwhile.
    fn asked(&mut self, tool: &str, arguments: &Value) -> Value {
        let message =
            json!({"jsonrpc": "2.0", "id": CALL, "method": "tools/call", "params": call(tool, arguments)});
        self.calls = Connection::open(&self.url).expect("the server listens");
        self.calls.session.clone_from(&self.answers.session);
        self.calls.send(&message).expect("the server listens");
        self.calls.head().expect("the server answers");
        heard(&mut self.calls, |message| message["method"].is_string())
    }

    /// Answers a question. Returns what comes of the call.
    fn answer(&mut self, question: &Value, answer: &Value) -> Value {
        let mut message = answer.clone();
        message["jsonrpc"] = json!("2.0");
        message["id"] = question["id"].clone();
        self.answers.ask(&message).expect("the server answers");
        heard(&mut self.calls, |message| message["id"] == CALL)
    }

    /// Calls a tool and answers what it asks.
    fn converse(&mut self, tool: &str, arguments: &Value, answer: &Value) -> Value {
        let question = self.asked(tool, arguments);
        self.answer(&question, answer)
    }
}

/// Reads a stream to the first message that is like this.
fn heard(stream: &mut Connection, like: impl Fn(&Value) -> bool) -> Value {
    let mut said = String::new();
    loop {
        said += &stream.until("\n\n");
        let messages = said.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?).ok());
        if let Some(message) = messages.into_iter().find(|message| like(message)) {
            return message;
        }
    }
}

fn start(data: &Path, extra: &[&str]) -> Server {
    Server::start(data, &[&["--conformance-fixtures"], extra].concat())
}

/// The events of the last call, from its start on.
fn last_call(data: &Path) -> Vec<Event> {
    let mut events = record::events(data);
    let begun = events.iter().rposition(|event| record::kind(event) == "call.started");
    events.split_off(begun.expect("there is a call"))
}

fn content(data: &Path, event: &Event, role: Role) -> Value {
    let payload = event.fields().payload(role).expect("the event has a payload in this role");
    serde_json::from_str(&record::content(data, &payload.cid)).expect("payloads are JSON")
}

fn verified(server: Server, data: &Path) {
    assert!(server.stop().success());
    record::check(data);
    let (code, report) = record::verify(data);
    assert_eq!(code, Some(0), "{report}");
}

fn holds(data: &Path, secret: &str) -> bool {
    crate::secrets::all_bytes(data).windows(secret.len()).any(|window| window == secret.as_bytes())
}

#[test]
fn what_a_person_answers_is_on_record_before_the_tool_hears_it() {
    let data = temp();
    let server = start(data.path(), &[]);
    let mut client = Client::new(&server);
    let form = json!({"username": "ada", "email": "ada@example.org"});
    let accepted = json!({"result": {"action": "accept", "content": form}});
    let question = client.asked("test_elicitation", &json!({"message": "Who are you?"}));
    // It is asked only once the question is durable.
    let kinds: Vec<String> =
        last_call(data.path()).iter().map(|event| record::kind(event).to_owned()).collect();
    assert_eq!(kinds, ["call.started", "call.asked"]);
    let told = client.answer(&question, &accepted);
    assert!(told["result"].to_string().contains("ada@example.org"), "{told}");

    let events = last_call(data.path());
    let [started, asked, answered, ended] = &events[..] else { panic!("{events:?}") };
    assert_eq!(record::kind(ended), "call.succeeded");
    let Some(Body::CallAsked(facts)) = asked.body() else { panic!("{asked:?}") };
    assert_eq!((facts.method, facts.n, facts.state), (Question::Elicitation, 0, None));
    let Some(Body::CallAnswered(facts)) = answered.body() else { panic!("{answered:?}") };
    assert_eq!((facts.n, facts.how, facts.took_us.is_some()), (0, Reaction::Accepted, true));
    let mut params = question["params"].clone();
    // The session adds this on the way to its client.
    params.as_object_mut().expect("an object").remove("_meta");
    assert_eq!(content(data.path(), asked, Role::Output), params);
    assert_eq!(content(data.path(), answered, Role::Input), accepted["result"]);
    assert_eq!(asked.fields().cause, Some(started.cid()));
    assert_eq!(answered.fields().cause, Some(asked.cid()));
    assert_eq!(
        (ended.fields().cause, &ended.fields().refs[..]),
        (Some(started.cid()), &[answered.cid()][..])
    );
    for event in [asked, answered] {
        assert_eq!(event.fields().subject, started.fields().subject);
        assert_eq!(event.fields().tool, started.fields().tool);
    }

    // Whoever asks where a result comes from finds the answer; the list of events has both.
    let trace = run(cairn(&["trace", &ended.cid().to_string(), "--url", &server.url])).succeeded();
    assert!(trace.contains("call.asked") && trace.contains("call.answered"), "{trace}");
    let listed = server.get("/v1/events?kind=call.answered").json();
    assert_eq!(listed["events"].as_array().map(Vec::len), Some(1), "{listed}");
    verified(server, data.path());
}

#[test]
fn every_way_to_answer_is_told_apart() {
    let data = temp();
    let server = start(data.path(), &[]);
    let mut client = Client::new(&server);
    let sampled = json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": "Paris"}});
    let (elicit, sample) = (json!({"message": "?"}), json!({"prompt": "Capital of France?"}));
    for (tool, arguments, answer, how) in [
        ("test_elicitation", &elicit, json!({"result": {"action": "decline"}}), Reaction::Declined),
        ("test_elicitation", &elicit, json!({"result": {"action": "cancel"}}), Reaction::Cancelled),
        ("test_elicitation", &elicit, json!({"result": {"action": "shrug"}}), Reaction::Given),
        ("test_sampling", &sample, json!({"result": sampled}), Reaction::Given),
        (
            "test_sampling",
            &sample,
            json!({"error": {"code": -1, "message": "User rejected"}}),
            Reaction::Failed,
        ),
    ] {
        client.converse(tool, arguments, &answer);
        let events = last_call(data.path());
        let Some(Body::CallAnswered(facts)) = events[2].body() else { panic!("{events:?}") };
        assert_eq!(facts.how, how, "{answer}");
        let role = if how == Reaction::Failed { Role::Error } else { Role::Input };
        let kept = content(data.path(), &events[2], role);
        match how {
            Reaction::Failed => {
                assert_eq!((&kept["code"], &kept["message"]), (&json!(-1), &json!("User rejected")))
            }
            _ => assert_eq!(kept, answer["result"]),
        }
    }
    verified(server, data.path());
}

#[test]
fn a_client_that_cannot_be_asked_has_failed_to_answer() {
    let data = temp();
    let server = start(data.path(), &[]);
    let mut connection = Connection::open(&server.url).expect("the server listens");
    connection.initialize();
    let answer = connection.request(CALL, "tools/call", call("test_sampling", &json!({"prompt": "?"})));
    assert_eq!(answer["error"]["code"], -32601, "{answer}");
    let events = last_call(data.path());
    let Some(Body::CallAnswered(facts)) = events[2].body() else { panic!("{events:?}") };
    assert_eq!(facts.how, Reaction::Failed);
    verified(server, data.path());
}

#[test]
fn a_kill_between_question_and_answer_leaves_an_interrupted_call() {
    let data = temp();
    let server = start(data.path(), &[]);
    let mut client = Client::new(&server);
    client.asked("test_elicitation", &json!({"message": "Who are you?"}));
    server.kill();
    let server = start(data.path(), &[]);
    let events = last_call(data.path());
    let kinds: Vec<&str> = events.iter().map(record::kind).filter(|kind| kind.starts_with("call.")).collect();
    assert_eq!(kinds, ["call.started", "call.asked", "call.interrupted"]);
    verified(server, data.path());
}

#[test]
fn a_secret_that_a_question_asks_for_is_nowhere_in_the_log() {
    let data = temp();
    let server = start(data.path(), &[]);
    let mut client = Client::new(&server);
    let secret = "correct-horse-battery";
    let form = json!({"username": "ada", "password": secret});
    let answer = json!({"result": {"action": "accept", "content": form}});
    let told = client.converse("test_elicitation_secret", &json!({}), &answer);
    assert!(told.to_string().contains(secret), "the tool got it, and says it again: {told}");
    let events = last_call(data.path());
    let kept = content(data.path(), &events[2], Role::Input);
    assert_eq!(kept["content"]["username"], "ada");
    let commitment = kept["content"]["password"]["$redacted"].as_str().expect("a commitment");
    assert!(commitment.starts_with("v2:"), "{kept}");
    // What is not of the form may hold a secret anywhere.
    let answer = json!({"result": {"action": "accept", "contents": form, "content": secret}});
    client.converse("test_elicitation_secret", &json!({}), &answer);
    let answer = json!({"result": {"action": secret}});
    client.converse("test_elicitation_secret", &json!({}), &answer);
    verified(server, data.path());
    assert!(!holds(data.path(), secret));
}

#[test]
fn a_tool_whose_values_are_not_kept_keeps_none_of_its_questions_and_answers() {
    for mode in ["redacted", "digest"] {
        let data = temp();
        let config = data.path().join("config.toml");
        std::fs::write(&config, format!("[capture]\ndefault = \"{mode}\"\n")).expect("writes");
        let server = start(data.path(), &["--config", text(&config)]);
        let mut client = Client::new(&server);
        let form = json!({"username": "ada-of-london", "email": "ada@example.org"});
        let answer = json!({"result": {"action": "accept", "content": form}});
        client.converse("test_elicitation", &json!({"message": "Which one are you?"}), &answer);
        client.converse(
            "test_elicitation",
            &json!({"message": "?"}),
            &json!({"error": {"code": -1, "message": "I-will-not-say"}}),
        );
        verified(server, data.path());
        for said in ["ada-of-london", "ada@example.org", "Which one are you?", "I-will-not-say"] {
            assert!(!holds(data.path(), said), "{mode}: {said}");
        }
    }
}

/// One request of 2026-07-28, with the answers to what the one before has asked. Returns its result.
fn turn(server: &Server, tool: &str, answers: Value, before: &Value) -> Value {
    let mut params = call(tool, &json!({}));
    if answers.is_object() {
        params["inputResponses"] = answers;
    }
    if before["requestState"].is_string() {
        params["requestState"] = before["requestState"].clone();
    }
    let answer = ask(server, "tools/call", params);
    assert!(answer["result"].is_object(), "{answer}");
    answer["result"].clone()
}

fn accepted(content: &Value) -> Value {
    json!({"action": "accept", "content": content})
}

#[test]
fn a_question_in_a_result_and_the_answer_in_the_next_request_are_tied_by_its_state() {
    let data = temp();
    let server = start(data.path(), &[]);
    let tool = "test_input_required_result_request_state";
    let first = turn(&server, tool, Value::Null, &Value::Null);
    let events = last_call(data.path());
    let [_, asked, ended] = &events[..] else { panic!("{events:?}") };
    let Some(Body::CallAsked(facts)) = asked.body() else { panic!("{asked:?}") };
    assert_eq!((facts.method, facts.n, facts.state.is_some()), (Question::Elicitation, 0, true));
    assert_eq!(content(data.path(), asked, Role::Output), first["inputRequests"]["confirm"]["params"]);
    assert!(matches!(ended.body(), Some(Body::CallSucceeded(facts)) if facts.input_required));

    let answer = accepted(&json!({"ok": true}));
    let second = turn(&server, tool, json!({"confirm": answer}), &first);
    assert!(second.to_string().contains("state-ok"), "{second}");
    let events = last_call(data.path());
    let [started, answered, ended] = &events[..] else { panic!("{events:?}") };
    let Some(Body::CallAnswered(facts)) = answered.body() else { panic!("{answered:?}") };
    assert_eq!((facts.n, facts.how, facts.took_us), (0, Reaction::Accepted, None));
    assert_eq!(content(data.path(), answered, Role::Input), answer);
    assert_eq!(answered.fields().cause, Some(started.cid()));
    assert_eq!(answered.fields().refs, [asked.cid()]);
    assert_eq!(ended.fields().refs, [answered.cid()]);
    let trace = run(cairn(&["trace", &ended.cid().to_string(), "--url", &server.url])).succeeded();
    assert!(trace.contains("call.asked"), "{trace}");
    verified(server, data.path());
}

#[test]
fn every_question_of_a_result_is_on_record() {
    let data = temp();
    let server = start(data.path(), &[]);
    let tool = "test_input_required_result_multiple_inputs";
    let first = turn(&server, tool, Value::Null, &Value::Null);
    let sampled = json!({"role": "assistant", "model": "m", "content": {"type": "text", "text": "Hello"}});
    let answers = json!({
        "user_name": accepted(&json!({"name": "Ada"})),
        "greeting": sampled,
        "client_roots": {"roots": []},
    });
    let kinds =
        || last_call(data.path()).iter().map(|event| record::kind(event).to_owned()).collect::<Vec<_>>();
    assert_eq!(kinds(), ["call.started", "call.asked", "call.asked", "call.asked", "call.succeeded"]);
    let asked: Vec<Event> = last_call(data.path()).drain(1..4).collect();
    turn(&server, tool, answers, &first);
    let answered: Vec<Event> = last_call(data.path()).drain(1..4).collect();
    let mut named: Vec<_> = answered.iter().flat_map(|event| event.fields().refs.clone()).collect();
    let mut expected: Vec<_> = asked.iter().map(Event::cid).collect();
    named.sort_unstable();
    expected.sort_unstable();
    assert_eq!(named, expected);
    verified(server, data.path());
}

/// Without a state nothing ties an answer to a question, and nothing is guessed. Of an answer to a question that this
/// process has not heard, it is not known where secrets stand.
#[test]
fn an_answer_to_a_question_that_is_not_known_is_kept_without_its_values() {
    let data = temp();
    let server = start(data.path(), &[]);
    let tool = "test_input_required_result_elicitation";
    let answer = || json!({"user_name": accepted(&json!({"name": "Ada Lovelace"}))});
    let first = turn(&server, tool, Value::Null, &Value::Null);
    turn(&server, tool, answer(), &first);
    let events = last_call(data.path());
    assert_eq!(content(data.path(), &events[1], Role::Input), answer()["user_name"]);
    assert!(events[1].fields().refs.is_empty());
    assert!(server.stop().success());

    let server = start(data.path(), &[]);
    let told = turn(&server, tool, answer(), &Value::Null);
    assert!(told.to_string().contains("Ada Lovelace"), "{told}");
    let events = last_call(data.path());
    for (at, role) in [(1, Role::Input), (2, Role::Output)] {
        let kept = content(data.path(), &events[at], role).to_string();
        assert!(!kept.contains("Ada") && kept.contains("$redacted"), "{kept}");
    }
    verified(server, data.path());
}

#[test]
fn a_secret_that_a_result_asks_for_is_nowhere_in_the_log() {
    let data = temp();
    let server = start(data.path(), &[]);
    let (tool, secret) = ("test_input_required_result_secret", "correct-horse-battery");
    let first = turn(&server, tool, Value::Null, &Value::Null);
    let answers = json!({"user_secret": accepted(&json!({"password": secret}))});
    let told = turn(&server, tool, answers, &first);
    assert!(told.to_string().contains(secret), "the tool got it, and says it again: {told}");
    verified(server, data.path());
    assert!(!holds(data.path(), secret));
}

#[test]
fn a_request_with_too_many_answers_is_refused() {
    let data = temp();
    let server = start(data.path(), &[]);
    let answers: serde_json::Map<String, Value> =
        (0..33).map(|n| (format!("q{n}"), accepted(&json!({})))).collect();
    let told = turn(&server, "test_input_required_result_elicitation", answers.into(), &Value::Null);
    assert_eq!(told["_meta"]["io.cairn/error"]["code"], "resource_exhausted", "{told}");
    verified(server, data.path());
}
