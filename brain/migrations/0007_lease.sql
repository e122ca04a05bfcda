-- Who leads among the brains of this database: one row, there from the beginning. term is the highest lease term ever used, expires_ms
-- on the clock of the database. Nobody has led yet where the holder is empty.
CREATE TABLE lease (
    only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    holder TEXT NOT NULL,
    term BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);
INSERT INTO lease (only_row, holder, term, expires_ms) SELECT 1, '', COALESCE(MAX(value), 0), 0 FROM meta WHERE key = 'term';
DROP TABLE meta;
