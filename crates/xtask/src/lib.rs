//! The repository's own tools.
#![forbid(unsafe_code)]
