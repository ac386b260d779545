-- The signed head over exactly the events that are here: one row, replaced in the transaction that adds events.
CREATE TABLE head (
    id   INTEGER PRIMARY KEY CHECK (id = 0),
    note TEXT NOT NULL             -- a C2SP checkpoint in a signed note
);
