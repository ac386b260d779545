//! The forms of answers: what an answer may hold, and where in it secrets stand.
//!
//! Invariants:
//! - of an answer that is not of its form, or whose form is not known, no value is kept;
//! - forms that wait for answers in later requests are bounded, and the oldest is forgotten first.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;

use crate::{
    contract::secret::{Paths, echo::Echoes, names_in},
    event::body::{Question, Reaction},
};

/// The members of an answer to an elicitation.
const MEMBERS: [&str; 3] = ["action", "content", "_meta"];
/// What such an answer may say, and what that is on record.
const ACTIONS: [(&str, Reaction); 3] =
    [("accept", Reaction::Accepted), ("decline", Reaction::Declined), ("cancel", Reaction::Cancelled)];
/// Forms that are remembered until a later request brings the answers.
const FORMS_MAX: usize = 1024;
/// Bytes of a schema whose form is remembered. Answers to a larger one are kept without values.
const SCHEMA_MAX: usize = 64 * 1024;

/// Identifies a question that a later request answers: a keyed commitment to what both have in common.
pub type Mark = [u8; 16];

/// What an answer to one question may hold, and where in it secrets stand.
pub struct Form {
    /// `None` if the question is not known.
    method: Option<Question>,
    /// The schema that is asked for, if it marks secrets.
    schema: Option<String>,
    secrets: Paths,
    /// The member names that are kept of an answer in which a secret may stand anywhere.
    names: HashSet<String>,
    /// Secrets of answers before it in the same dialogue: the tool may repeat them in its last result.
    pub earlier: Echoes,
}

impl Form {
    /// Returns the form of answers to a question.
    pub fn of(method: Question, params: &Value) -> Self {
        let mut form = Self { method: Some(method), schema: None, names: HashSet::new(), ..Self::unknown() };
        let schema = params.get("requestedSchema").filter(|_| method == Question::Elicitation);
        let marked = schema.map(Paths::of_schema).unwrap_or_default();
        if let Some(schema) = schema.filter(|_| !marked.is_empty()) {
            form.secrets.add(&["content".to_owned()], &marked);
            form.secrets.add(&["_meta".to_owned()], &Paths::everything());
            form.names = names_in(schema);
            form.names.extend(MEMBERS.map(str::to_owned));
            form.schema = Some(schema.to_string());
        }
        form
    }

    /// Returns the form with the secrets of the dialogue so far.
    pub fn after(self, earlier: Echoes) -> Self {
        Self { earlier, ..self }
    }

    /// Returns the form of answers to a question that is not known.
    pub fn unknown() -> Self {
        let names = MEMBERS.map(str::to_owned).into();
        Self { method: None, schema: None, secrets: Paths::default(), names, earlier: Echoes::default() }
    }

    pub fn secrets(&self) -> &Paths {
        &self.secrets
    }

    /// Returns the names that may be kept of an answer whose values may not; `None` if its values may be kept.
    pub fn known(&self, answer: &Value) -> Option<&HashSet<String>> {
        let known = |action: &Value| ACTIONS.iter().any(|(known, _)| action == known);
        let fits = answer.as_object().is_some_and(|members| {
            members.keys().all(|name| MEMBERS.contains(&name.as_str()))
                && members.get("action").is_some_and(known)
        });
        let unsure = self.method.is_none() || (!self.secrets.is_empty() && !fits);
        unsure.then_some(&self.names)
    }

    /// Returns how a result answers the question.
    pub fn reaction(&self, answer: &Value) -> Reaction {
        let elicits = self.method.is_none_or(|method| method == Question::Elicitation);
        let action = answer.get("action").filter(|_| elicits);
        let known = action.and_then(|action| ACTIONS.iter().find(|(known, _)| action == known));
        known.map_or(Reaction::Given, |(_, reaction)| *reaction)
    }
}

/// Returns an answer without an action that answers of every form have.
pub fn values(answer: &Value) -> Value {
    let mut values = answer.clone();
    if let Some(action) = values.get_mut("action")
        && ACTIONS.iter().any(|(known, _)| action == known)
    {
        *action = Value::Null;
    }
    values
}

/// The forms of questions that were asked in results and are answered by later requests.
#[derive(Default)]
pub struct Forms(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    forms: HashMap<Mark, Arc<Form>>,
    oldest: VecDeque<Mark>,
}

impl Forms {
    /// Remembers a form. If another form has the same mark, as with a server that keeps no state, neither counts as
    /// known.
    pub fn put(&self, mark: Mark, form: Form) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let large = form.schema.as_ref().is_some_and(|schema| schema.len() > SCHEMA_MAX);
        let known = waiting.forms.get(&mark).cloned();
        if known.is_none() {
            waiting.oldest.push_back(mark);
        }
        let mut earlier = form.earlier.clone();
        let mut differs = false;
        if let Some(known) = known {
            differs = known.method != form.method || known.schema != form.schema;
            earlier.join(&known.earlier);
        }
        let form = if large || differs { Form::unknown() } else { form };
        let form = Form { earlier, ..form };
        waiting.forms.insert(mark, Arc::new(form));
        if waiting.oldest.len() > FORMS_MAX
            && let Some(oldest) = waiting.oldest.pop_front()
        {
            waiting.forms.remove(&oldest);
        }
    }

    /// Returns the form of answers under a mark: the unknown form, if none is remembered.
    pub fn get(&self, mark: &Mark) -> Arc<Form> {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.forms.get(mark).cloned().unwrap_or_else(|| Arc::new(Form::unknown()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Form, Forms};
    use crate::event::body::Question;

    #[test]
    fn what_was_secret_in_a_dialogue_stays_known_to_its_end() {
        let forms = Forms::default();
        let mut form = Form::of(Question::Roots, &json!({}));
        form.earlier.text("correct-horse");
        forms.put([1; 16], form);
        // Another question under the same mark makes the form unknown, and forgets no secret.
        forms.put([1; 16], Form::of(Question::Elicitation, &json!({})));
        assert!(forms.get(&[1; 16]).earlier.stand_in("it was correct-horse"));
        assert!(forms.get(&[2; 16]).earlier.is_empty());
    }
}
