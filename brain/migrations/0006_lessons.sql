-- What the brain has learnt from how well it did, as JSON: of a VM ('vm UUID'), or of all together ('fleet'). The latest is all that is kept.
CREATE TABLE lesson (
    subject TEXT NOT NULL PRIMARY KEY,
    lesson TEXT NOT NULL,
    at_ms BIGINT NOT NULL
);
CREATE INDEX lesson_at ON lesson (at_ms);
