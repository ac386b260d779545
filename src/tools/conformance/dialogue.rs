//! Dialogues: the fixtures that ask for input before they answer, and what they ask.
//!
//! Only data: which inputs each round needs, how each is asked for, and what an answer to it looks like.

use serde_json::{Value, json};

/// A tool that asks before it answers: the inputs of each round, by key.
pub struct Dialogue {
    pub name: &'static str,
    pub rounds: &'static [&'static [&'static str]],
    /// Whether the round is carried in a sealed `requestState`.
    pub sealed: bool,
    pub done: fn(&Value) -> String,
}

pub const ROUNDS: &[Dialogue] = &[
    Dialogue {
        name: "test_input_required_result_elicitation",
        rounds: &[&["user_name"]],
        sealed: false,
        done: |inputs| {
            format!("Hello, {}!", inputs["user_name"]["content"]["name"].as_str().unwrap_or_default())
        },
    },
    Dialogue {
        name: "test_streaming_elicitation",
        rounds: &[&["user_name"]],
        sealed: false,
        done: |_| "Elicited.".to_owned(),
    },
    Dialogue {
        name: "test_input_required_result_sampling",
        rounds: &[&["capital_question"]],
        sealed: false,
        done: |inputs| inputs["capital_question"]["content"]["text"].as_str().unwrap_or_default().to_owned(),
    },
    Dialogue {
        name: "test_input_required_result_list_roots",
        rounds: &[&["client_roots"]],
        sealed: false,
        done: |inputs| format!("Roots: {}", inputs["client_roots"]["roots"]),
    },
    Dialogue {
        name: "test_input_required_result_request_state",
        rounds: &[&["confirm"]],
        sealed: true,
        done: |_| "state-ok".to_owned(),
    },
    Dialogue {
        name: "test_input_required_result_tampered_state",
        rounds: &[&["confirm"]],
        sealed: true,
        done: |_| "state-ok".to_owned(),
    },
    Dialogue {
        name: "test_input_required_result_multiple_inputs",
        rounds: &[&["user_name", "greeting", "client_roots"]],
        sealed: true,
        done: |_| "All inputs received.".to_owned(),
    },
    // The suite has no scenario for this one.
    Dialogue {
        name: "test_input_required_result_secret",
        rounds: &[&["user_secret"]],
        sealed: true,
        done: |inputs| format!("Your password is {}", inputs["user_secret"]["content"]["password"]),
    },
    Dialogue {
        name: "test_input_required_result_multi_round",
        rounds: &[&["step1"], &["step2"]],
        sealed: true,
        done: |_| "All rounds completed.".to_owned(),
    },
];

/// What is asked under `key`.
pub fn question(key: &str) -> Value {
    let form = |message: &str, field: &str, kind: &str| {
        json!({"method": "elicitation/create", "params": {
            "mode": "form",
            "message": message,
            "requestedSchema": {
                "type": "object",
                "properties": {field: {"type": kind}},
                "required": [field],
            },
        }})
    };
    let sample = |prompt, max| json!({"method": "sampling/createMessage", "params": sampling(prompt, max)});
    match key {
        "user_name" => form("What is your name?", "name", "string"),
        "step1" => form("Step 1: What is your name?", "name", "string"),
        "step2" => form("Step 2: What is your favorite color?", "color", "string"),
        "confirm" => form("Please confirm", "ok", "boolean"),
        "user_context" => form("What context should the prompt use?", "context", "string"),
        "user_secret" => {
            let mut form = form("What is your password?", "password", "string");
            form["params"]["requestedSchema"]["properties"]["password"]["format"] = json!("password");
            form
        }
        "capital_question" => sample("What is the capital of France?", 100),
        "greeting" => sample("Generate a greeting", 50),
        _ => json!({"method": "roots/list", "params": {}}),
    }
}

/// Whether `input` has the shape of an answer to what was asked under `key`.
pub fn answers(key: &str, input: &Value) -> bool {
    match key {
        "capital_question" | "greeting" => input["content"].is_object(),
        "client_roots" => input["roots"].is_array(),
        _ => input["action"].is_string(),
    }
}

pub fn sampling(prompt: &str, tokens_max: u64) -> Value {
    let message = json!({"role": "user", "content": {"type": "text", "text": prompt}});
    json!({"messages": [message], "maxTokens": tokens_max})
}
