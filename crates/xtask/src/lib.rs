//! The repository's own tools, and the parts of them that tests use.
//!
//! The binary (`cargo xtask`) is the face; what lives here is what other crates' tests call too: the prepared
//! guests of [`guests`] and the nested host of [`nest`].
#![forbid(unsafe_code)]

pub mod lint;
