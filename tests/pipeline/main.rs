//! The stages as a library, on a tiny embedded task.

mod composition;
mod decode;
mod degeneracy;
mod dpo;
mod drlc;
mod lens;
mod numerics;
mod parity;
mod spo;
mod stages;
mod support;
mod texts;
mod verdict;
