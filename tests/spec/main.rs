//! The equations of the paper, as tests: one module an equation.
