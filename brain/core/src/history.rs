//! Demand history.
