//! Public benchmarks: their questions answered in the format that their judges read, and what can be judged
//! here: RewardBench, and win rates by a reward model or the embedded task's gold reward.
//!
//! | module | reads | gives |
//! | --- | --- | --- |
//! | [`alpaca_eval`] | `alpaca_eval.json` | `model_outputs.json` |
//! | [`arena_hard`] | `question.jsonl`, of v0.1 and of v2 | one answer JSONL a model, of the same version |
//! | [`mt_bench`] | `question.jsonl` | one answer JSONL a model, two turns a question |
//! | [`reward_bench`] | preference pairs with their subsets | accuracy a subset and a section |
//! | [`win_rate`] | two answer files | win rate, plain and length-controlled ([`length_control`](crate::statistics::length_control)) |
//!
//! [`answering`] is what the first three share: a question's turns are asked in the model's own prompt format,
//! and answers that are written stay written when a run is stopped.

pub mod alpaca_eval;
pub mod answering;
pub mod arena_hard;
pub mod error;
pub mod mt_bench;
pub mod reward_bench;
pub mod win_rate;

pub use error::BenchmarkError;
