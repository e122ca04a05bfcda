-- Long histories of VMs, in blocks as the core's archive seals them, which alone looks into them. kpi and tier are the archive's
-- numbers; number tells when the block begins, in lengths of a block of its tier. end_ms follows from those two: it is what a block is
-- forgotten by, whether its VM is still there or not.
CREATE TABLE block (
    vm TEXT NOT NULL,
    kpi BIGINT NOT NULL,
    tier BIGINT NOT NULL,
    number BIGINT NOT NULL,
    end_ms BIGINT NOT NULL,
    bytes BYTEA NOT NULL,
    PRIMARY KEY (vm, kpi, tier, number)
);
CREATE INDEX block_end ON block (end_ms);
