//! Everything that is run from the source tree: setup, lab, demo, test, bench.
