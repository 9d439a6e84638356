//! Rows of data files, preference pairs, prompts, tokenizers, chat templates, role formats, the embedded
//! task, and a task small enough to enumerate.

mod allowance;
pub mod chat;
pub mod columns;
pub mod diagnostics;
pub mod error;
pub mod fields;
pub mod files;
mod layouts;
pub mod letters;
#[cfg(feature = "parquet")]
mod pages;
pub mod pairs;
mod python;
pub mod rows;
pub mod spans;
pub mod store;
pub mod tabular;
pub mod template;
pub mod tokenizer;
mod tokenizer_files;
