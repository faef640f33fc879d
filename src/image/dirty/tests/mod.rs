//! Tests of the whole map, over real files.
