-- What operators let be done with plans within a scope: "observe", "recommend" or "approve". A scope without a row leaves that to wider ones.
CREATE TABLE mode (
    scope TEXT NOT NULL PRIMARY KEY,
    mode TEXT NOT NULL
);
