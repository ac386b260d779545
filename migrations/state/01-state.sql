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

-- A subject is numbered by the seq of its first event. Call ids are kept as 16 bytes.
CREATE TABLE subject (
    id   INTEGER PRIMARY KEY,
    name BLOB NOT NULL UNIQUE
);

CREATE TABLE entry (
    seq     INTEGER PRIMARY KEY,
    kind    INTEGER NOT NULL,          -- word
    subject INTEGER NOT NULL,
    actor   INTEGER NOT NULL,          -- word
    tool    INTEGER,                   -- the contract's block number
    ts      INTEGER NOT NULL           -- microseconds; grows with seq, so it needs no index
);
CREATE INDEX entry_kind ON entry (kind);
CREATE INDEX entry_subject ON entry (subject);
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

-- Hash tiles of the RFC 6962 tree: id is level << 48 | index.
CREATE TABLE tile (
    id     INTEGER PRIMARY KEY,
    hashes BLOB NOT NULL
);

CREATE TABLE tally (
    kind INTEGER PRIMARY KEY,          -- word
    n    INTEGER NOT NULL
);

-- Calls by the seq of their start.
CREATE TABLE call (
    id     INTEGER PRIMARY KEY,
    runner INTEGER NOT NULL,           -- word
    ended  INTEGER                     -- seq of the ending
);
CREATE INDEX call_open ON call (id) WHERE ended IS NULL;

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
