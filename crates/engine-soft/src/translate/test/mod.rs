//! Translations of small programs.
