//! Server-sent events, read piece by piece (WHATWG HTML, section 9.2.6).
//!
//! Invariants:
//! - however the bytes are cut, the same events come out;
//! - no line and no event is larger than the bound.

/// One event with data. Comments and events without data are skipped.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// What the server calls it; mostly nothing.
    pub name: Vec<u8>,
    pub data: Vec<u8>,
}

impl Event {
    /// Returns whether its data is a message: others are pings, greetings and the server's own affairs.
    pub fn is_message(&self) -> bool {
        matches!(&self.name[..], b"" | b"message")
    }

    /// Returns whether it names the endpoint of the older transport.
    pub fn is_endpoint(&self) -> bool {
        self.name == b"endpoint"
    }
}

/// A line or an event over the bound.
#[derive(Debug, PartialEq, Eq)]
pub struct Oversized;

pub struct Parser {
    limit: usize,
    line: Vec<u8>,
    event: Event,
    /// The last byte was a carriage return: a line feed now ends no second line.
    returned: bool,
    last_id: Option<String>,
    retry_ms: Option<u64>,
}

impl Parser {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            event: Event::default(),
            returned: false,
            last_id: None,
            retry_ms: None,
        }
    }

    /// The last event id seen: where a broken stream can be taken up again.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// How long the server asks to wait before the stream is taken up again.
    pub fn retry_ms(&self) -> Option<u64> {
        self.retry_ms
    }

    /// Forgets an unfinished event: the stream has ended midway.
    pub fn cut(&mut self) {
        self.line.clear();
        self.event = Event::default();
        self.returned = false;
    }

    /// Reads on; returns the events that `bytes` completed.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, Oversized> {
        let mut events = Vec::new();
        let mut rest = bytes;
        if std::mem::take(&mut self.returned) {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.extend(&rest[..end])?;
            let returned = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if returned {
                self.returned = rest.is_empty();
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
            events.extend(self.end_line()?);
        }
        self.extend(rest)?;
        Ok(events)
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), Oversized> {
        match self.line.len() + bytes.len() > self.limit {
            true => Err(Oversized),
            false => {
                self.line.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn end_line(&mut self) -> Result<Option<Event>, Oversized> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let mut event = std::mem::take(&mut self.event);
            // Each data line ends in a line feed; the last one is not part of the data.
            return Ok(event.data.pop().map(|_| event));
        }
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (&line[..], &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field.strip_prefix("\u{feff}".as_bytes()).unwrap_or(field) {
            b"data" => {
                if self.event.data.len() + value.len() > self.limit {
                    return Err(Oversized);
                }
                self.event.data.extend_from_slice(value);
                self.event.data.push(b'\n');
            }
            b"event" => self.event.name = value.to_vec(),
            b"id" => self.last_id = String::from_utf8(value.to_vec()).ok(),
            b"retry" => {
                let text = std::str::from_utf8(value).ok();
                self.retry_ms = text.and_then(|text| text.parse().ok()).or(self.retry_ms);
            }
            _ => {}
        }
        Ok(None)
    }
}
