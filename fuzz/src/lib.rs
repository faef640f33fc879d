//! Nothing: the targets are in `tests/targets.rs`, their corpora beside them.
