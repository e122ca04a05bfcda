-- Planned actions that an operator is asked about, as JSON. settled = 0 while one waits; at_ms is when it came to the state that it is in.
CREATE TABLE proposal (
    term BIGINT NOT NULL,
    number BIGINT NOT NULL,
    settled BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    proposal TEXT NOT NULL,
    PRIMARY KEY (term, number)
);
CREATE INDEX proposal_at ON proposal (at_ms);
