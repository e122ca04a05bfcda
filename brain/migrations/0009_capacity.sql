-- Requests for capacity, as JSON. settled = 0 while something may still become of one; at_ms is when it came to the state that it is in.
CREATE TABLE capacity (
    term BIGINT NOT NULL,
    number BIGINT NOT NULL,
    settled BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    request TEXT NOT NULL,
    PRIMARY KEY (term, number)
);
CREATE INDEX capacity_at ON capacity (at_ms);
