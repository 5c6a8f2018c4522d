//! Guest loaders and firmware tables of machine type `umbra-1`.
#![forbid(unsafe_code)]
