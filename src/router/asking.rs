//! Questions in mid-call: what a tool's server asks the caller's client, and what it is answered.
//!
//! Invariants:
//! - a question is durable before the client is asked, and its answer before the tool's server gets it;
//! - a client is asked nothing that cannot be on record;
//! - what a question marks as secret is taken out of the answer before anything is hashed, and out of all that the tool
//!   says from then on.

pub mod form;
mod results;

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use serde_bytes::ByteArray;
use serde_json::{Value, value::RawValue};

use self::form::{Form, Forms};
use crate::{
    block::payload::{PAYLOAD_MAX, SealedPayload},
    call::asking::{Answer, Inquiry, To},
    contract::secret::{Bound, Paths, Side, echo::Echoes},
    error::Code,
    event::{
        Role,
        body::{Question, Reaction},
    },
    ledger::{Command, Ledger, Ruling, commit::payload_ref},
    router::{
        BoxFuture, Client, RpcError,
        audience::Audience,
        capture::{self, Capture, Captured, Sieve},
        codes::{INTERNAL_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND},
        ending::seal,
        patience::Patience,
        telling::{error_text, shown},
    },
};

const PROGRESS: &str = "notifications/progress";

/// The caller's client in one call, which records what the client is asked and what it answers.
pub(super) struct Asking {
    client: Arc<dyn Client>,
    ledger: Ledger,
    /// The id of the call.
    id: String,
    sieve: Arc<Sieve>,
    forms: Arc<Forms>,
    /// The number of the next question.
    next: tokio::sync::Mutex<u64>,
    /// Secrets that were taken out of answers.
    taken: Mutex<Echoes>,
    /// The time that the call has, once it runs.
    patience: OnceLock<Arc<Patience>>,
}

impl Asking {
    pub fn new(
        client: Arc<dyn Client>,
        ledger: Ledger,
        id: String,
        sieve: Arc<Sieve>,
        forms: Arc<Forms>,
    ) -> Self {
        let (next, taken, patience) = Default::default();
        Self { client, ledger, id, sieve, forms, next, taken, patience }
    }

    /// Returns the time that the call has, which begins with the first call of this.
    pub fn patience(&self, limit: Duration) -> Arc<Patience> {
        self.patience.get_or_init(|| Arc::new(Patience::new(limit))).clone()
    }

    /// Returns what has to be taken out of anything that the tool says from now on, secrets of answers so far included.
    pub fn sieve(&self) -> Arc<Sieve> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.is_empty() {
            return self.sieve.clone();
        }
        let mut echoes = self.sieve.echoes.clone();
        echoes.join(&taken);
        let Sieve { marked, capture, bound, .. } = &*self.sieve;
        Arc::new(Sieve { echoes, marked: marked.clone(), capture: *capture, bound: bound.clone() })
    }

    async fn ask(&self, method: Question, params: Value) -> Result<Value, RpcError> {
        let _open = self.patience.get().map(|patience| patience.asking());
        let form = Form::of(method, &params);
        let n = self.record_question(method, &params, None).await?;
        let begun = Instant::now();
        let answer = self.client.request(method.as_str(), params).await;
        self.record_answer(n, answer, &form, begun.elapsed()).await
    }

    /// Records a question. Returns its number in the call. Errors: the rules forbid it, and the client must not be
    /// asked.
    async fn record_question(
        &self,
        method: Question,
        params: &Value,
        state: Option<ByteArray<16>>,
    ) -> Result<u64, RpcError> {
        let sieve = self.sieve();
        let question = seal(
            &sieve.bound.key,
            &capture::output(&capture::Answer::new(&params.to_string()), &sieve, true),
        )?;
        let mut next = self.next.lock().await;
        loop {
            let n = *next;
            let wish = Inquiry {
                id: self.id.clone(),
                n,
                method,
                state,
                question: payload_ref(&question, Role::Output),
            };
            match self.submit(Command::Ask { ask: wish, question: question.clone() }).await? {
                Ruling::Done(_) => {
                    *next += 1;
                    return Ok(n);
                }
                // The tool left while its question was being recorded, so nobody counted it.
                Ruling::Denied(refusal) if refusal.code == Code::AlreadyExists => *next += 1,
                Ruling::Denied(refusal) => return Err(RpcError::new(INVALID_REQUEST, refusal.message)),
                _ => return Err(RpcError::internal()),
            }
        }
    }

    /// Records an answer. Returns what the tool's server gets.
    async fn record_answer(
        &self,
        n: u64,
        answer: Result<Value, RpcError>,
        form: &Form,
        took: Duration,
    ) -> Result<Value, RpcError> {
        let (answer, content) = match self.sealed(&answer, form) {
            Ok(content) => (answer, content),
            Err(_) => {
                let message = format!("the client's answer is over the bound of {PAYLOAD_MAX} bytes");
                let instead = Err(RpcError::new(INTERNAL_ERROR, message));
                let content = self.sealed(&instead, form)?;
                (instead, content)
            }
        };
        let (how, role) = match &answer {
            Ok(answer) => (form.reaction(answer), Role::Input),
            Err(_) => (Reaction::Failed, Role::Error),
        };
        let to = To::Question { took_us: took.as_micros() as u64 };
        let wish = Answer { id: self.id.clone(), n, how, answer: payload_ref(&content, role), to };
        match self.submit(Command::Answer { answer: wish, content }).await? {
            Ruling::Done(_) => answer,
            // The call has ended meanwhile, and its tool hears nothing more.
            Ruling::Denied(refusal) => Err(RpcError::new(INVALID_REQUEST, refusal.message)),
            _ => Err(RpcError::internal()),
        }
    }

    /// Seals the recorded form of an answer.
    fn sealed(&self, answer: &Result<Value, RpcError>, form: &Form) -> Result<SealedPayload, RpcError> {
        let text = match answer {
            Ok(answer) => self.kept(answer, form),
            Err(error) => capture::output(&capture::Answer::new(&error_text(error)), &self.sieve(), false),
        };
        seal(&self.sieve.bound.key, &text)
    }

    /// Returns the recorded form of a result, and remembers the secrets in it.
    fn kept(&self, answer: &Value, form: &Form) -> String {
        let bound = Bound { side: Side::Answer, ..self.sieve.bound.clone() };
        let (mode, known) = (self.sieve.capture, form.known(answer));
        let Captured { text, taken } =
            capture::input(&answer.to_string(), answer, form.secrets(), mode, known, &bound);
        {
            let mut all = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            all.join(&taken);
            if known.is_some() {
                all.add(&form::values(answer));
            }
        }
        if mode == Capture::Digest {
            return text;
        }
        // An answer may repeat what was secret in the call's input, or in an answer before it.
        let echoes = self.sieve().echoes.clone();
        let sieve = Sieve { echoes, marked: Paths::default(), capture: Capture::Full, bound };
        capture::output(&capture::Answer::new(&text), &sieve, false)
    }

    async fn submit(&self, command: Command) -> Result<Ruling, RpcError> {
        let ruling = self.ledger.submit(command).await;
        ruling.map_err(|stopped| RpcError::new(INTERNAL_ERROR, stopped.to_string()))
    }
}

impl Client for Asking {
    fn notify(&self, method: &str, params: Value) {
        if method == PROGRESS
            && let Some(patience) = self.patience.get()
        {
            patience.progressed();
        }
        self.client.notify(method, params);
    }

    fn tell(&self, method: &str, params: &RawValue) {
        if method == PROGRESS
            && let Some(patience) = self.patience.get()
        {
            patience.progressed();
        }
        self.client.tell(method, params);
    }

    fn request(&self, method: &str, params: Value) -> BoxFuture<'_, Result<Value, RpcError>> {
        let question = Question::parse(method).ok_or_else(|| {
            RpcError::new(METHOD_NOT_FOUND, format!("the client cannot be asked {}", shown(method)))
        });
        Box::pin(async move { self.ask(question?, params).await })
    }

    fn audience(&self) -> Audience {
        self.client.audience()
    }

    fn takes_handles(&self) -> bool {
        self.client.takes_handles()
    }

    fn abandons(&self) -> bool {
        self.client.abandons()
    }
}
