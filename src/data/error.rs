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
    /// What a file holds, or what was asked for, is refused: the file and line, what is wrong, and what to do.
    #[error("{0}")]
    Refused(String),
}

/// Every fault of content, each with its file and, in a file of rows, its line or row from 1.
impl DataError {
    fn row(path: impl AsRef<Path>, line: usize, problem: impl fmt::Display) -> Self {
        Self::Refused(format!("{}:{line}: {problem}", path.as_ref().display()))
    }

    fn file(path: impl AsRef<Path>, problem: impl fmt::Display) -> Self {
        Self::Refused(format!("{}: {problem}", path.as_ref().display()))
    }

    pub(crate) fn utf8(path: impl AsRef<Path>, line: usize, byte: usize) -> Self {
        Self::row(
            path,
            line,
            format!("not UTF-8 (byte {byte} of the line); save the file as UTF-8"),
        )
    }

    pub(crate) fn not_json(
        path: impl AsRef<Path>,
        line: usize,
        column: usize,
        reason: impl fmt::Display,
    ) -> Self {
        Self::row(
            path,
            line,
            format!("not JSON ({reason}, column {column}); expected one JSON object"),
        )
    }

    pub(crate) fn not_parquet(path: impl AsRef<Path>) -> Self {
        Self::file(
            path,
            "not a Parquet file (no PAR1 at its start), though its name says so; download it again, or rename it if it is JSON Lines",
        )
    }

    pub(crate) fn parquet(path: impl AsRef<Path>, reason: impl fmt::Display) -> Self {
        Self::file(
            path,
            format!("not a Parquet file that can be read ({reason}); copy or write it again"),
        )
    }

    pub(crate) fn compression(path: impl AsRef<Path>, codec: impl fmt::Display) -> Self {
        Self::file(
            path,
            format!(
                "compressed with {codec}; this program reads Parquet with SNAPPY, GZIP or no compression: write the file again with one of these, or as JSON Lines"
            ),
        )
    }

    #[cfg(not(feature = "parquet"))]
    pub(crate) fn without_parquet(path: impl AsRef<Path>) -> Self {
        Self::file(
            path,
            "a Parquet file, and this program was built without the cargo feature `parquet`; build it with the feature, or give JSON Lines",
        )
    }

    pub(crate) fn wrong_type(
        path: impl AsRef<Path>,
        line: usize,
        key: impl fmt::Display,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::row(path, line, format!("{key} is {found}; expected {expected}"))
    }

    pub(crate) fn missing_key(
        path: impl AsRef<Path>,
        line: usize,
        key: impl fmt::Display,
        layouts: impl fmt::Display,
    ) -> Self {
        Self::row(path, line, format!("the key `{key}` is missing; a row is {layouts}"))
    }

    pub(crate) fn unknown_role(
        path: impl AsRef<Path>,
        line: usize,
        key: impl fmt::Display,
        role: impl fmt::Debug,
    ) -> Self {
        Self::row(
            path,
            line,
            format!("the role of `{key}` is {role:?}; expected system, user or assistant"),
        )
    }

    pub(crate) fn no_response(
        path: impl AsRef<Path>,
        line: usize,
        which: impl fmt::Display,
    ) -> Self {
        Self::row(
            path,
            line,
            format!("`{which}` must end with a message of the assistant: the response"),
        )
    }

    pub(crate) fn empty_prompt(path: impl AsRef<Path>, line: usize) -> Self {
        Self::row(path, line, "the prompt is empty; a model needs at least one token to start from")
    }

    pub(crate) fn prompt_mismatch(
        path: impl AsRef<Path>,
        line: usize,
        left: impl fmt::Display,
        right: impl fmt::Display,
    ) -> Self {
        Self::row(
            path,
            line,
            format!("`{left}` and `{right}` have different prompts; both must answer the same one"),
        )
    }

    pub(crate) fn encode_line(
        path: impl AsRef<Path>,
        line: usize,
        source: impl fmt::Display,
    ) -> Self {
        Self::row(path, line, format!("{source}"))
    }

    pub(crate) fn no_pairs(path: impl AsRef<Path>, skipped: impl fmt::Display) -> Self {
        Self::file(
            path,
            format!("no preference pairs{skipped}; expected one a row, in JSON Lines or Parquet"),
        )
    }

    pub(crate) fn no_prompts(path: impl AsRef<Path>, skipped: impl fmt::Display) -> Self {
        Self::file(
            path,
            format!("no prompts{skipped}; expected one a row, in JSON Lines or Parquet"),
        )
    }

    pub(crate) fn no_conversations(path: impl AsRef<Path>, skipped: impl fmt::Display) -> Self {
        Self::file(
            path,
            format!("no conversations{skipped}; expected one a row, in JSON Lines or Parquet"),
        )
    }

    pub(crate) fn nothing_to_hold_out(path: impl AsRef<Path>, what: impl fmt::Display) -> Self {
        Self::file(
            path,
            format!(
                "all {what} are the same one, so that none can be held out; give at least two different ones"
            ),
        )
    }

    pub(crate) fn no_rows(path: impl AsRef<Path>, expected: impl fmt::Display) -> Self {
        Self::file(path, format!("no rows; expected {expected}"))
    }

    pub(crate) fn no_files(path: impl AsRef<Path>) -> Self {
        Self::file(
            path,
            "a folder without .parquet, .jsonl or .json files; name a file, or the folder of its parts",
        )
    }

    pub(crate) fn limit(name: impl fmt::Display, value: usize, least: usize) -> Self {
        Self::Refused(format!("the limit of {name} is {value}; it must be at least {least}"))
    }

    pub(crate) fn tokenizer(path: impl AsRef<Path>, reason: impl fmt::Display) -> Self {
        Self::file(
            path,
            format!("not a tokenizer ({reason}); expected a Hugging Face tokenizer.json"),
        )
    }

    pub(crate) fn tokenizer_setting(
        path: impl AsRef<Path>,
        key: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Self {
        Self::file(path, format!("`{key}` must be {expected}"))
    }

    pub(crate) fn unknown_token(
        path: impl AsRef<Path>,
        key: impl fmt::Display,
        token: impl fmt::Display,
    ) -> Self {
        Self::file(
            path,
            format!("`{key}` is {token}, which the tokenizer's vocabulary does not hold"),
        )
    }

    pub(crate) fn no_eos(path: impl AsRef<Path>) -> Self {
        Self::file(
            path,
            "no end-of-sequence token; name one as `eos_token` in tokenizer_config.json or `eos_token_id` in generation_config.json or config.json",
        )
    }

    pub(crate) fn role_format(role: impl fmt::Display, format: impl fmt::Debug) -> Self {
        Self::Refused(format!(
            "the format of the role {role} is {format:?}; it must hold exactly one {{}}, the content's place"
        ))
    }

    pub(crate) fn template(path: impl AsRef<Path>, reason: impl fmt::Display) -> Self {
        Self::file(
            path,
            format!(
                "the chat template does not compile ({reason}); mend it, or give a `role_format` in tokenizer_config.json instead"
            ),
        )
    }

    pub(crate) fn render(path: impl AsRef<Path>, reason: impl fmt::Display) -> Self {
        Self::file(path, format!("the chat template does not write these messages ({reason})"))
    }

    pub(crate) fn not_a_prefix(
        common: impl fmt::Debug,
        prompt: impl fmt::Debug,
        conversation: impl fmt::Debug,
    ) -> Self {
        Self::Refused(format!(
            "the chat template does not begin a conversation with its prompt: after {common:?} the prompt has {prompt:?}, the conversation {conversation:?}; give a template or a `role_format` that does"
        ))
    }

    pub(crate) fn encode(reason: impl fmt::Display) -> Self {
        Self::Refused(format!("the tokenizer cannot encode the text ({reason})"))
    }

    /// The error for a JSON fault in the text that starts at line `first` of `path`.
    pub(crate) fn json(path: &Path, first: usize, error: &serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let reason = error.to_string();
        let place = format!(" at line {line} column {column}");
        let reason = reason.strip_suffix(&place).unwrap_or(&reason).to_owned();
        Self::not_json(path, first + line.max(1) - 1, column, reason)
    }
}
