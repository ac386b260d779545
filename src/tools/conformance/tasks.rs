//! The fixtures that run as tasks, as the suite's scenarios of the tasks extension name them.
//!
//! Invariant: all but one are tools like any other, which the queue runs; that one hands over a task of its own, as
//! another server's tool may.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{Answered, PAUSE, dialogue::question, error, text};
use crate::router::{Client, Invocation, codes::INTERNAL_ERROR};

/// The tool that hands over a task of its own.
pub const HANDS_OVER: &str = "test_tool_with_task";
/// How long the failing ones take.
const FAILS_AFTER: Duration = Duration::from_secs(1);
/// The longest that one computes.
const SECONDS_MAX: f64 = 3_600.0;

/// Every tool's name, input schema, and what it says of tasks.
pub fn tools() -> Vec<(&'static str, Value, Option<&'static str>)> {
    let object = |properties: Value| json!({"type": "object", "properties": properties});
    let string = json!({"type": "string"});
    vec![
        ("greet", object(json!({"name": string})), None),
        ("slow_compute", object(json!({"seconds": {"type": "number"}, "label": string})), Some("optional")),
        ("failing_job", object(json!({})), Some("required")),
        ("protocol_error_job", object(json!({})), Some("optional")),
        ("confirm_delete", object(json!({"filename": string})), Some("optional")),
        ("multi_input", object(json!({})), Some("optional")),
        (HANDS_OVER, object(json!({})), Some("required")),
    ]
}

/// Answers a call of one of these tools; `None` for any other.
pub async fn answer(name: &str, params: &Value, invocation: &Invocation) -> Option<Answered> {
    let arguments = &params["arguments"];
    let client = invocation.client.as_ref();
    Some(match name {
        "greet" => Ok(text(&format!("Hello, {}!", arguments["name"].as_str().unwrap_or_default()))),
        "slow_compute" => {
            let seconds = arguments["seconds"].as_f64().unwrap_or_default().clamp(0.0, SECONDS_MAX);
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            Ok(text(&format!("Computed {}.", arguments["label"].as_str().unwrap_or("nothing"))))
        }
        "failing_job" => {
            tokio::time::sleep(FAILS_AFTER).await;
            Ok(json!({"content": [{"type": "text", "text": "The job failed."}], "isError": true}))
        }
        "protocol_error_job" => {
            tokio::time::sleep(PAUSE).await;
            Err(error(INTERNAL_ERROR, "The job broke.", None))
        }
        "confirm_delete" => confirm(client, arguments).await,
        "multi_input" => both(client).await,
        HANDS_OVER => Ok(hand_over(params, invocation).await),
        _ => return None,
    })
}

async fn confirm(client: &dyn Client, arguments: &Value) -> Answered {
    let file = arguments["filename"].as_str().unwrap_or_default();
    let schema = json!({"type": "object", "properties": {"confirm": {"type": "boolean"}}});
    let params = json!({"mode": "form", "message": format!("Delete {file}?"), "requestedSchema": schema});
    let answer = client.request("elicitation/create", params).await?;
    let confirmed = answer["action"] == "accept" && answer["content"]["confirm"] == true;
    Ok(text(&format!("{file} is {}.", if confirmed { "deleted" } else { "kept" })))
}

async fn both(client: &dyn Client) -> Answered {
    let ask = |key: &str| client.request("elicitation/create", question(key)["params"].clone());
    let (first, second) = tokio::join!(ask("user_name"), ask("confirm"));
    Ok(text(&format!("{} {}", first?["action"], second?["action"])))
}

/// Asks for a name, and then hands over a task that greets; or greets, if it is followed or nobody takes a task.
async fn hand_over(params: &Value, invocation: &Invocation) -> Value {
    let greeting = |name: &str| text(&format!("Hello, {name}! The task is done."));
    if let Some(task) = &invocation.follows {
        tokio::time::sleep(PAUSE).await;
        let name = URL_SAFE_NO_PAD.decode(task).ok().and_then(|name| String::from_utf8(name).ok());
        return greeting(&name.unwrap_or_default());
    }
    let Some(name) = params["inputResponses"]["user_name"]["content"]["name"].as_str() else {
        let asked = json!({"user_name": question("user_name")});
        return json!({"resultType": "input_required", "inputRequests": asked});
    };
    if !invocation.client.takes_handles() {
        return greeting(name);
    }
    json!({"resultType": "task", "taskId": URL_SAFE_NO_PAD.encode(name), "status": "working"})
}
