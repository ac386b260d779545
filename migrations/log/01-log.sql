-- Ground state: events by arrival, and the blocks they link to. Nothing here is ever changed.
CREATE TABLE event (
    seq    INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    bytes  BLOB NOT NULL
);

-- Keys in append order: content-keyed tables measured ten times slower. `bytes` is null once erased.
CREATE TABLE block (
    id     INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    codec  INTEGER NOT NULL,
    bytes  BLOB
);

CREATE TRIGGER event_update BEFORE UPDATE ON event
BEGIN SELECT RAISE(ABORT, 'the log only grows: events are never changed'); END;

CREATE TRIGGER event_delete BEFORE DELETE ON event
BEGIN SELECT RAISE(ABORT, 'the log only grows: events are never removed'); END;

CREATE TRIGGER block_delete BEFORE DELETE ON block
BEGIN SELECT RAISE(ABORT, 'the log only grows: blocks are never removed'); END;

CREATE TRIGGER block_update BEFORE UPDATE ON block
WHEN NEW.bytes IS NOT NULL OR NEW.id IS NOT OLD.id OR NEW.digest IS NOT OLD.digest OR NEW.codec IS NOT OLD.codec
BEGIN SELECT RAISE(ABORT, 'the log only grows: a block can be erased, not changed'); END;
