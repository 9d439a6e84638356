//! The `segment-rlhf` program.

fn main() {}
