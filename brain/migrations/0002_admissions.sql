-- Who may connect: tokens that let a host in, the certificates given out, and hosts whose certificates no longer count.

-- Of a token's secret only the hash is kept: who reads this file cannot join with it.
CREATE TABLE token (
    id TEXT NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    secret_sha256 BYTEA NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    spent_ms BIGINT,
    revoked_ms BIGINT
);
CREATE INDEX token_host ON token (host);

-- Certificates issued by a running brain; those issued by hand are in no list.
CREATE TABLE certificate (
    serial TEXT NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    issued_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);
CREATE INDEX certificate_host ON certificate (host, issued_ms);

-- A host's certificates that were issued up to at_ms, or are in no list, count no more. The row stays for ever: so does a
-- copied key. turned_away_ms tells that the first refusal is in the audit log.
CREATE TABLE revocation (
    host TEXT NOT NULL PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    turned_away_ms BIGINT
);
