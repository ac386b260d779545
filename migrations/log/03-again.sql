-- Content that is recorded again after its erasure is content again: bytes that are gone may come back, bytes that are there never change.
DROP TRIGGER IF EXISTS block_update;

CREATE TRIGGER block_update BEFORE UPDATE ON block
WHEN (NEW.bytes IS NOT NULL AND OLD.bytes IS NOT NULL)
    OR NEW.id IS NOT OLD.id OR NEW.digest IS NOT OLD.digest OR NEW.codec IS NOT OLD.codec
BEGIN SELECT RAISE(ABORT, 'the log only grows: a block can be erased and recorded again, not changed'); END;
