-- What operators set by hand: that means of that VM is left alone until the VM is resumed or released.
CREATE TABLE setting (
    vm TEXT NOT NULL,
    means TEXT NOT NULL,
    setting TEXT NOT NULL,
    PRIMARY KEY (vm, means)
);

-- Outcomes of term 0 are what agents did of their own accord: no command tells whether the core has drawn their consequences,
-- so this does. Until then a restart brings them in again.
ALTER TABLE outcome ADD COLUMN taken_in BIGINT NOT NULL DEFAULT 0;
CREATE INDEX outcome_to_take_in ON outcome (host, number) WHERE term = 0 AND taken_in = 0;
