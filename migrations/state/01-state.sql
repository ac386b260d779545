-- Derived state: a fold of the log and nothing else. Deleting the file changes no answer.
CREATE TABLE progress (
    id      INTEGER PRIMARY KEY CHECK (id = 0),
    applied INTEGER NOT NULL,          -- events folded: the next seq to fold
    last    BLOB                       -- digest of the last folded event
);
INSERT INTO progress (id, applied, last) VALUES (0, 0, NULL);

-- Words that many events share, numbered in the order they were first seen.
CREATE TABLE word (
    id   INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
);
INSERT INTO word (id, text) VALUES (1, 'call.started'), (2, 'call.succeeded');

-- A subject is numbered by the seq of its first event. Call ids are kept as 16 bytes.
CREATE TABLE subject (
    name BLOB PRIMARY KEY,
    id   INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE entry (
    seq     INTEGER PRIMARY KEY,
    kind    INTEGER NOT NULL,          -- word
    subject INTEGER NOT NULL,
    actor   INTEGER NOT NULL,          -- word
    tool    INTEGER,                   -- the contract's block number
    ts      INTEGER NOT NULL           -- microseconds; grows with seq, so it needs no index
);
-- The first two words are the kinds of almost every event: reading those in order beats an index of half the log.
CREATE INDEX entry_kind ON entry (kind) WHERE kind > 2;
-- A subject's first event is named by its number; the index is for those that follow.
CREATE INDEX entry_subject ON entry (subject) WHERE subject <> seq;
CREATE INDEX entry_actor ON entry (actor);
CREATE INDEX entry_tool ON entry (tool) WHERE tool IS NOT NULL;

-- Causal links: cause and refs. A parent in another log has the negative of its number in `foreign_event`.
CREATE TABLE edge (
    child  INTEGER NOT NULL,
    parent INTEGER NOT NULL,
    PRIMARY KEY (child, parent)
) WITHOUT ROWID;
CREATE INDEX edge_parent ON edge (parent, child);

CREATE TABLE foreign_event (
    id  INTEGER PRIMARY KEY,
    cid BLOB NOT NULL UNIQUE
);

-- Which events hold which payload.
CREATE TABLE holds (
    block INTEGER NOT NULL,
    seq   INTEGER NOT NULL,
    PRIMARY KEY (block, seq)
) WITHOUT ROWID;

-- Hash tiles of the RFC 6962 tree from level 1 up: id is level << 48 | index. Level 0 is the events' own digests.
CREATE TABLE tile (
    id     INTEGER PRIMARY KEY,
    hashes BLOB NOT NULL
);

CREATE TABLE tally (
    kind INTEGER PRIMARY KEY,          -- word
    n    INTEGER NOT NULL
);

-- Running calls by the seq of their start. An ended call is its start and the child that ended it.
CREATE TABLE running (
    id     INTEGER PRIMARY KEY,
    runner INTEGER NOT NULL            -- word
);

-- The latest call of each idempotency key.
CREATE TABLE call_key (
    actor INTEGER NOT NULL,            -- word
    name  INTEGER NOT NULL,            -- word
    key   BLOB NOT NULL,
    call  INTEGER NOT NULL,
    PRIMARY KEY (actor, name, key)
) WITHOUT ROWID;

-- Contracts by the seq of the event that published them last.
CREATE TABLE contract (
    source  INTEGER NOT NULL,          -- word
    name    INTEGER NOT NULL,          -- word
    block   INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    offered INTEGER NOT NULL,
    PRIMARY KEY (source, name)
) WITHOUT ROWID;

CREATE TABLE erased (
    block INTEGER PRIMARY KEY,
    seq   INTEGER NOT NULL
);
