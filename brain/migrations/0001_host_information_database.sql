-- The host information database. Types are those SQLite and PostgreSQL share by name: BIGINT, TEXT, BYTEA (SQLite keeps blobs
-- in a column of any name). Times are milliseconds since the Unix epoch, UTC. JSON is text: nothing here asks the
-- database to look into it.

-- Single numbers: 'term' is the highest lease term ever used.
CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);

CREATE TABLE host (
    host TEXT NOT NULL PRIMARY KEY,
    facts TEXT NOT NULL,
    connected BIGINT NOT NULL,
    at_ms BIGINT NOT NULL
);

CREATE TABLE vm (
    vm TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    host TEXT,
    state TEXT NOT NULL,
    at_ms BIGINT NOT NULL
);

CREATE TABLE allocation (
    vm TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    allocation TEXT NOT NULL,
    PRIMARY KEY (vm, at_ms)
);

-- Raw report payloads, as they came: what a restarted brain refills its history from.
CREATE TABLE report (
    host TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    start_ms BIGINT NOT NULL,
    received_ms BIGINT NOT NULL,
    payload BYTEA NOT NULL,
    PRIMARY KEY (host, epoch, sequence)
);
CREATE INDEX report_start ON report (start_ms);
CREATE INDEX report_received ON report (received_ms);

CREATE TABLE plan (
    term BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    plan TEXT NOT NULL,
    PRIMARY KEY (term, generation)
);

-- settled = 0 while an answer may still come.
CREATE TABLE command (
    term BIGINT NOT NULL,
    number BIGINT NOT NULL,
    host TEXT NOT NULL,
    vm TEXT NOT NULL,
    issued_ms BIGINT NOT NULL,
    settled BIGINT NOT NULL,
    command TEXT NOT NULL,
    PRIMARY KEY (term, number)
);
CREATE INDEX command_issued ON command (issued_ms);

-- The host is part of the key: no agent can answer for another.
CREATE TABLE outcome (
    host TEXT NOT NULL,
    term BIGINT NOT NULL,
    number BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (host, term, number)
);

CREATE TABLE hold (
    scope TEXT NOT NULL PRIMARY KEY,
    hold TEXT NOT NULL
);

-- (term, line) orders the log; terms are never used twice.
CREATE TABLE audit (
    term BIGINT NOT NULL,
    line BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    actor TEXT NOT NULL,
    verb TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (term, line)
);
CREATE INDEX audit_at ON audit (at_ms);
