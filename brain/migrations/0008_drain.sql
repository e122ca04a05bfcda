-- Hosts that operators empty: their VMs go elsewhere, and none comes.
CREATE TABLE drain (
    host TEXT NOT NULL PRIMARY KEY,
    since_ms BIGINT NOT NULL
);
