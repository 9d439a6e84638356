//! Rows of data files, preference pairs, prompts, tokenizers, chat templates, role formats, and the
//! embedded task.

mod allowance;
pub mod chat;
pub mod diagnostics;
pub mod error;
pub mod fields;
mod layouts;
pub mod letters;
#[cfg(feature = "parquet")]
mod pages;
pub mod pairs;
mod python;
pub mod rows;
pub mod store;
pub mod template;
pub mod tokenizer;
mod tokenizer_files;
