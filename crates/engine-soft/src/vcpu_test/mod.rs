//! Small guests, through the interface of `umbra-engine`.
