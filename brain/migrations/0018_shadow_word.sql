-- Which word of an operator's a shadow has: kept_off = 1 where its production is to have none, asked_for = 1 where it is to have one. Rows from before this have
-- kept_off = 1 in both cases, and stay. wanted_ms says which shadow of a production is the last one, whose word counts; 0 where that is not known.
ALTER TABLE shadow ADD COLUMN asked_for BIGINT NOT NULL DEFAULT 0;
ALTER TABLE shadow ADD COLUMN wanted_ms BIGINT NOT NULL DEFAULT 0;
CREATE INDEX shadow_production ON shadow (production);
