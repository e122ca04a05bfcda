-- What is forgotten by age is found by age: without these, each look reads the whole table.
CREATE INDEX plan_at ON plan (at_ms);
CREATE INDEX outcome_at ON outcome (at_ms);
CREATE INDEX allocation_at ON allocation (at_ms);
CREATE INDEX token_expires ON token (expires_ms);
CREATE INDEX certificate_expires ON certificate (expires_ms);
