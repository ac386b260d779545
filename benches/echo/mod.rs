//! One recorded echo, as every benchmark of the log alone writes it: a start with its input, an ending with its output.

use cairn::{
    block::{
        Cid,
        payload::{JSON, Payload, SaltKey},
    },
    call::{End, EndOutcome, Fit, Start},
    event::{Actor, Role, body::CallStarted},
    ledger::{Command, Ledger, Ruling, commit::payload_ref},
};

/// Records the call and gives the event of its start, once both its events are durable.
pub async fn record(ledger: &Ledger, id: String, said: &str, cause: Option<Cid>) -> Cid {
    let key = SaltKey::new([3; 32]);
    let seal = |text: String| Payload::seal(&key, JSON, text.as_bytes()).expect("small");
    let input = seal(format!(r#"{{"message":"echo {said}"}}"#));
    let output = seal(format!(r#"{{"content":[{{"type":"text","text":"echo {said}"}}]}}"#));
    let facts = CallStarted {
        method: "tools/call".into(),
        name: "echo".into(),
        source: "builtin".into(),
        runtime: "builtin".into(),
        rule: "source".into(),
        runner: "bench".into(),
        key: None,
        trace: None,
        input_unchecked: None,
    };
    let start = Start {
        id: id.clone(),
        actor: Actor { id: "bench".into(), role: "client".into(), proof: None },
        tool: None,
        input: Some(payload_ref(&input, Role::Input)),
        facts,
        former_key: None,
        cause,
        refs: Vec::new(),
        repeatable: true,
        refusal: None,
    };
    let start = Command::Start { start: Box::new(start), input: Some(input), refused: None };
    let Ok(Ruling::Run(started)) = ledger.submit(start).await else {
        panic!("an echo is never refused");
    };
    let end = End {
        id,
        outcome: EndOutcome::Succeeded { input_required: false, fit: Fit::Fits },
        output: Some(payload_ref(&output, Role::Output)),
        took_us: 1,
        remote: Vec::new(),
    };
    let ended = ledger.submit(Command::End { end, output: Some(output), attempt: None }).await;
    assert!(matches!(ended, Ok(Ruling::Done(_))), "a running call ends");
    started.cid
}
