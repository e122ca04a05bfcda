-- Since when the holder of the lease has had it, on the brain's clock; 0 where that was not written yet.
ALTER TABLE lease ADD COLUMN since_ms BIGINT NOT NULL DEFAULT 0;
