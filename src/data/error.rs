//! What can be wrong with data and tokenizer files: which file, which line, what was expected, what
//! to do.

use std::fmt;
use std::path::Path;

use crate::file_error::FileError;
use crate::stop::Interrupted;

/// A fault in a data file, a tokenizer, or what was asked of them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A stop was asked for while data were read.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A file cannot be read or written.
    #[error("{0}; {advice}", advice = .0.advice("check the path and its permissions"))]
    File(#[from] FileError),
    /// What a file holds, or what was asked for, is rejected: the file and line, what is wrong, and what to do.
    #[error("{0}")]
    Refused(String),
}

/// Faults of content, each with what it says: of a `row` of a file (its line, or its place in Parquet or in an array,
/// from 1), of a whole `file`, or of a `text` that is in none.
macro_rules! faults {
    (row $name:ident($($field:ident),*): $text:literal) => {
        pub(crate) fn $name(
            path: impl AsRef<Path>,
            line: usize,
            $($field: impl fmt::Display + fmt::Debug),*
        ) -> Self {
            Self::Refused(format!("{}:{line}: {}", path.as_ref().display(), format_args!($text)))
        }
    };
    (file $name:ident($($field:ident),*): $text:literal) => {
        pub(crate) fn $name(
            path: impl AsRef<Path>,
            $($field: impl fmt::Display + fmt::Debug),*
        ) -> Self {
            Self::Refused(format!("{}: {}", path.as_ref().display(), format_args!($text)))
        }
    };
    (text $name:ident($($field:ident),*): $text:literal) => {
        pub(crate) fn $name($($field: impl fmt::Display + fmt::Debug),*) -> Self {
            Self::Refused(format!($text))
        }
    };
    ($($(#[$cfg:meta])* $kind:ident $name:ident($($field:ident),*): $text:literal,)*) => {
        impl DataError {
            $($(#[$cfg])* faults!($kind $name($($field),*): $text);)*
        }
    };
}

faults! {
    row utf8(byte): "not UTF-8 (byte {byte} of the line); save the file as UTF-8",
    row not_json(column, reason): "not JSON ({reason}, column {column}); expected one JSON object",
    file not_parquet():
        "not a Parquet file (no PAR1 at its start), though its name says so; download it again, or rename it if it \
         is JSON Lines",
    file parquet(reason): "not a Parquet file that can be read ({reason}); copy or write it again",
    file compression(codec):
        "compressed with {codec}; this program reads Parquet with SNAPPY, GZIP, ZSTD, LZ4 or no compression: write it \
         again with one of these, or as JSON Lines",
    file format(what, remedy): "{what}, which this program does not read; {remedy}",
    file gzip(reason): "not a whole gzip file ({reason}); download or compress it again",
    #[cfg(not(feature = "parquet"))]
    file without_parquet():
        "a Parquet file, and this program was built without the cargo feature `parquet`; build it with the \
         feature, or give JSON Lines",
    row wrong_type(key, expected, found): "{key} is {found}; expected {expected}",
    row missing_key(key, named, layouts, there): "the key `{key}`{named} is missing; a row is {layouts}{there}",
    row unknown_role(key, role): "the role of `{key}` is {role:?}; expected system, user or assistant",
    row no_response(which): "`{which}` must end with a message of the assistant: the response",
    row empty_prompt(): "the prompt is empty; a model needs at least one token to start from",
    row prompt_mismatch(left, right): "`{left}` and `{right}` have different prompts; both must answer the same one",
    row encode_line(source): "{source}",
    file no_pairs(skipped): "no preference pairs{skipped}; expected one a row, in JSON Lines or Parquet",
    file no_prompts(skipped): "no prompts{skipped}; expected one a row, in JSON Lines or Parquet",
    file no_conversations(skipped): "no conversations{skipped}; expected one a row, in JSON Lines or Parquet",
    file nothing_to_hold_out(what):
        "all {what} are the same one, so that none can be held out; give at least two different ones",
    file no_rows(expected): "no rows; expected {expected}",
    file no_files(): "a folder without .parquet, .jsonl or .json files; name a file, or the folder of its parts (a table in \
         CSV must be converted, its error says how)",
    file splits(problem): "{problem}",
    row unknown_prompt():
        "the prompt is none of the run's; take the row out, or name the file with its prompts as --prompts",
    row span_outside(span, text, length):
        "{span} in a {text} of {length} characters; expected 0 <= start < end <= {length}",
    row span_label(key, i, label): "the label of {key}[{i}] is {label}; expected -1, 0 or 1",
    row span_overlap(key, i, j): "{key}[{i}] and {key}[{j}] overlap; part them, or take one of them out",
    row response_again(first): "the same prompt and response as in row {first}; put all its spans into one row",
    text limit(name, value, least): "the limit of {name} is {value}; it must be at least {least}",
    file tokenizer(reason): "not a tokenizer ({reason}); expected a Hugging Face tokenizer.json",
    file tokenizer_setting(key, expected): "`{key}` must be {expected}",
    file unknown_token(key, token): "`{key}` is {token}, which the tokenizer's vocabulary does not hold",
    file no_eos():
        "no end-of-sequence token; name one as `eos_token` in tokenizer_config.json or `eos_token_id` in \
         generation_config.json or config.json",
    text role_format(role, format):
        "the format of the role {role} is {format:?}; it must hold exactly one {{}}, the content's place",
    file template(reason):
        "the chat template does not compile ({reason}); mend it, or give a `role_format` in tokenizer_config.json \
         instead",
    file render(reason): "the chat template does not write these messages ({reason})",
    text not_a_prefix(common, prompt, conversation):
        "the chat template does not begin a conversation with its prompt: after {common:?} the prompt has \
         {prompt:?}, the conversation {conversation:?}; give a template or a `role_format` that does",
    text encode(reason): "the tokenizer cannot encode the text ({reason})",
}

impl DataError {
    /// The error for a JSON fault in the text that starts at line `first` of `path`.
    pub(crate) fn json(path: &Path, first: usize, error: &serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let reason = error.to_string();
        let place = format!(" at line {line} column {column}");
        let reason = reason.strip_suffix(&place).unwrap_or(&reason).to_owned();
        Self::not_json(path, first + line.max(1) - 1, column, reason)
    }
}
