//! Behaviours of the real binary.
