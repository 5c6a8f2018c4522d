//! The machine's interrupt controllers and interval timer.
#![forbid(unsafe_code)]
