-- What was expected of commands and what came of it, as JSON. settled = 0 while that is open; at_ms is when it came to the state that it is in.
CREATE TABLE expectation (
    term BIGINT NOT NULL,
    number BIGINT NOT NULL,
    settled BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    expectation TEXT NOT NULL,
    PRIMARY KEY (term, number)
);
CREATE INDEX expectation_at ON expectation (at_ms);
