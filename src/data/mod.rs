//! Preference pairs, prompts, tokenizers, chat templates, role formats, and the embedded task.

pub mod chat;
pub mod diagnostics;
pub mod error;
pub mod letters;
pub mod pairs;
mod python;
pub mod template;
pub mod tokenizer;
