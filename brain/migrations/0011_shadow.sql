-- Shadows as they were last, as JSON. settled = 1 once one is retired; kept_off = 1 where an operator has said whether its production has one.
CREATE TABLE shadow (
    shadow TEXT NOT NULL PRIMARY KEY,
    production TEXT NOT NULL,
    settled BIGINT NOT NULL,
    kept_off BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX shadow_at ON shadow (at_ms);
