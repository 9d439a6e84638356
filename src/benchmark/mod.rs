//! Public benchmarks: answers in the format of their judges, and what can be judged here: RewardBench, and win rates
//! by a reward model or the embedded task's gold reward.
//!
//! | module | reads | gives |
//! | --- | --- | --- |
//! | [`alpaca_eval`] | `alpaca_eval.json` | `model_outputs.json` |
//! | [`arena_hard`] | `question.jsonl`, of v0.1 and of v2 | one answer JSONL a model, of the same version |
//! | [`mt_bench`] | `question.jsonl` | one answer JSONL a model, two turns a question |
//! | [`reward_bench`] | preference pairs with their subsets | accuracy a subset and a section |
//! | [`win_rate`] | two answer files | win rate, plain and length-controlled ([`length_control`](crate::statistics::length_control)) |
//!
//! The first three share [`answering`]: it asks a question's turns in the model's own prompt format, and keeps the
//! answers of a stopped run.

pub mod alpaca_eval;
pub mod answering;
pub mod arena_hard;
pub mod error;
pub mod mt_bench;
pub mod reward_bench;
pub mod win_rate;

pub use error::BenchmarkError;
