//! To be written: see paper/equations.md.
