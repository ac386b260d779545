-- Derived state: a fold of the log and nothing else. Deleting the file changes no answer.
CREATE TABLE progress (
    -- Fold 2. Tables of another text are derived anew, so this number changes whenever the fold gives other rows.
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

-- The contracts that were called under each public name, which may be another than their publication's.
CREATE TABLE called (
    name  INTEGER NOT NULL,            -- word
    block INTEGER NOT NULL,
    PRIMARY KEY (name, block)
) WITHOUT ROWID;

-- The latest call of each idempotency key.
CREATE TABLE call_key (
    actor INTEGER NOT NULL,            -- word
    name  INTEGER NOT NULL,            -- word
    key   BLOB NOT NULL,
    call  INTEGER NOT NULL,
    PRIMARY KEY (actor, name, key)
) WITHOUT ROWID;

-- The latest question with each commitment to a request state.
CREATE TABLE asked (
    state BLOB PRIMARY KEY,
    seq   INTEGER NOT NULL
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

-- Erasures that hold: a row goes when a later event names the payload again.
CREATE TABLE erased (
    cid BLOB PRIMARY KEY,
    seq INTEGER NOT NULL
) WITHOUT ROWID;

-- Tasks by the seq of their submission, which is also their subject's number.
CREATE TABLE task (
    id              INTEGER PRIMARY KEY,
    status          INTEGER NOT NULL,  -- 0 queued, 1 running, 2 succeeded, 3 failed, 4 dead, 5 cancelled, 6 timed_out
    cleared         INTEGER NOT NULL,  -- 1: left the lists
    priority        INTEGER NOT NULL,
    class           INTEGER NOT NULL,  -- word: the type and what it requires, parted by spaces
    ord             INTEGER NOT NULL,  -- its place in the line: lower first, then id
    ready_ms        INTEGER NOT NULL,
    attempt         INTEGER NOT NULL,
    retries         INTEGER NOT NULL,  -- times it was revived
    held            INTEGER NOT NULL,  -- 1: no worker does it; while it waits it counts as running
    part            INTEGER NOT NULL,  -- 0 a whole step, 1 one of many, 2 what takes a step back
    worker          INTEGER,           -- word: who has it or had it last; null while it waits
    started_ms      INTEGER,           -- of the last attempt
    ended_ms        INTEGER,
    run             INTEGER,           -- workflow
    tool            INTEGER,           -- the contract's block number
    input           INTEGER,           -- the payload's block number
    concurrency_key TEXT,
    rate_key        TEXT,
    unique_key      TEXT,
    tags            TEXT               -- words, parted by spaces; null where there are none
);
CREATE INDEX task_worker ON task (worker, status) WHERE worker IS NOT NULL AND cleared = 0;
CREATE INDEX task_run ON task (run) WHERE run IS NOT NULL;
CREATE INDEX task_unique ON task (unique_key) WHERE unique_key IS NOT NULL AND status < 2;

-- The tasks of each tag that are not cleared; tag 0 stands for every task. A list is a merge of ranges of this table.
CREATE TABLE task_listed (
    tag      INTEGER NOT NULL,         -- word
    status   INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    task     INTEGER NOT NULL,
    PRIMARY KEY (tag, status, priority, task)
) WITHOUT ROWID;

-- How long each of those ranges is.
CREATE TABLE task_tally (
    tag      INTEGER NOT NULL,
    status   INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    n        INTEGER NOT NULL,
    PRIMARY KEY (tag, status, priority)
) WITHOUT ROWID;

-- The last success of a contract with an input that a worker had.
CREATE TABLE outcome (
    tool  INTEGER NOT NULL,            -- the contract's block number
    input INTEGER NOT NULL,            -- the payload's block number
    seq   INTEGER NOT NULL,
    PRIMARY KEY (tool, input)
) WITHOUT ROWID;

-- Runs by the seq of their submission, which is also their subject's number.
CREATE TABLE workflow (
    id         INTEGER PRIMARY KEY,
    status     INTEGER NOT NULL,       -- 0 submitted, 1 waiting, 2 running, 3 succeeded, 4 failed, 5 cancelled, 6 timed_out
    name       TEXT,                   -- from the plan
    priority   INTEGER NOT NULL,
    plan       INTEGER,                -- the plan's block number
    steps      INTEGER NOT NULL,
    done       INTEGER NOT NULL,       -- steps that succeeded, or that their condition skipped
    started_ms INTEGER,
    ended_ms   INTEGER,
    peer       INTEGER                 -- word; the peer that the run is carried to
);
CREATE INDEX workflow_status ON workflow (status);
CREATE INDEX workflow_peer ON workflow (peer) WHERE peer IS NOT NULL;

CREATE TABLE workflow_tag (
    tag      INTEGER NOT NULL,         -- word
    workflow INTEGER NOT NULL,
    PRIMARY KEY (tag, workflow)
) WITHOUT ROWID;

CREATE TABLE workflow_tally (
    status INTEGER PRIMARY KEY,
    n      INTEGER NOT NULL
);

-- Workers by their subject's number; what the node's own executor does needs no row.
CREATE TABLE worker (
    id             INTEGER PRIMARY KEY,
    name           INTEGER NOT NULL,   -- word
    status         INTEGER NOT NULL,   -- 0 active, 1 draining, 2 offline
    capabilities   TEXT NOT NULL,      -- JSON array
    max_concurrent INTEGER NOT NULL,
    registered_ms  INTEGER NOT NULL,
    until_ms       INTEGER,            -- when draining ends
    seq            INTEGER NOT NULL    -- the event its status is from
);

-- What came of the tasks each worker claimed.
CREATE TABLE worker_tally (
    worker       INTEGER PRIMARY KEY,  -- word
    running      INTEGER NOT NULL,
    succeeded    INTEGER NOT NULL,
    failed       INTEGER NOT NULL,
    execution_ms INTEGER NOT NULL
);

CREATE TABLE queue (
    id     INTEGER PRIMARY KEY CHECK (id = 0),
    paused INTEGER                     -- seq of `queue.paused`; null while it is active
);
INSERT INTO queue (id, paused) VALUES (0, NULL);

-- Keys of bounded rates that were used.
CREATE TABLE rate (
    key      TEXT PRIMARY KEY,
    until_ms INTEGER NOT NULL          -- when the last claim under it allowed the next one
);

-- Schedules by their subject's number.
CREATE TABLE schedule (
    id       INTEGER PRIMARY KEY,
    name     INTEGER NOT NULL,         -- word
    created  INTEGER NOT NULL,         -- seq of the `schedule.created` that holds
    cron     TEXT,
    every_ms INTEGER,
    makes    TEXT NOT NULL,
    next_ms  INTEGER NOT NULL,
    last_ms  INTEGER,                  -- the tick that fired last
    fired    INTEGER NOT NULL,         -- ticks that made something
    missed   INTEGER NOT NULL,         -- ticks that were passed over
    skipped  INTEGER NOT NULL,         -- ticks that could make nothing
    deleted  INTEGER NOT NULL
);

-- What happened in each minute of the last day in which something did.
CREATE TABLE minute (
    minute         INTEGER PRIMARY KEY, -- since the epoch
    submitted      INTEGER NOT NULL,
    started        INTEGER NOT NULL,
    succeeded      INTEGER NOT NULL,
    failed         INTEGER NOT NULL,
    executed       INTEGER NOT NULL,   -- attempts that ended with an outcome, of which `execution_ms` is the sum
    wait_ms        INTEGER NOT NULL,   -- the sum over `started`
    execution_ms   INTEGER NOT NULL,
    runs_ended     INTEGER NOT NULL,
    runs_failed    INTEGER NOT NULL
);

-- Other nodes by their subject's number, each as its last event left it.
CREATE TABLE peer (
    id           INTEGER PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    status       INTEGER NOT NULL,     -- 0 connected, 1 disconnected, 2 unreachable
    last_seen_ms INTEGER,
    latency_us   INTEGER,
    bandwidth    INTEGER,              -- bytes a second
    reliability  INTEGER,              -- parts per million
    entity       BLOB NOT NULL         -- the whole of it, as DAG-CBOR
);
CREATE INDEX peer_status ON peer (status);

CREATE TABLE peer_capability (
    peer       INTEGER NOT NULL,
    capability TEXT NOT NULL,
    PRIMARY KEY (peer, capability)
) WITHOUT ROWID;
CREATE INDEX peer_able ON peer_capability (capability, peer);
