-- Writers take turns at this row: whoever writes takes it first, and has it until its transaction ends. The lease's row stays free meanwhile, so that
-- renewing it waits for nobody. writer and batch tell which batch of entries was written last, stale which of those were there before (their places
-- in the batch, with commas between): so a batch whose commit was not answered is known for written.
CREATE TABLE turn (
    only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    writer TEXT NOT NULL,
    batch BIGINT NOT NULL,
    stale TEXT NOT NULL
);
INSERT INTO turn (only_row, writer, batch, stale) VALUES (1, '', 0, '');
