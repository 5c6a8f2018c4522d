//! What tests of several crates share, and test programs of their own.

pub mod conformance;
pub mod diff;
