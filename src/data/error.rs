//! What can be wrong with data and tokenizer files: which file, which line, what was expected, what
//! to do.

use std::io;
use std::path::PathBuf;

use crate::stop::Interrupted;

/// A fault in a data file, a tokenizer, or what was asked of them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A stop was asked for while data were read.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A file cannot be read.
    #[error("{path}: cannot be read ({source}); check the path and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error(
        "{path}: cannot be written ({source}); free space or mend what the system names, then run the same \
         command again"
    )]
    Write {
        /// The file or its folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A line is not UTF-8.
    #[error("{path}:{line}: not UTF-8 (byte {byte} of the line); save the file as UTF-8")]
    Utf8 {
        /// The data file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The first byte that is not UTF-8, from 1.
        byte: usize,
    },
    /// A line of a data file, or a whole JSON file, is not JSON.
    #[error("{path}:{line}: not JSON ({reason}, column {column}); expected one JSON object")]
    Json {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A file whose name ends in `.parquet` does not start as Parquet does.
    #[error(
        "{path}: not a Parquet file (no PAR1 at its start), though its name says so; download it again, or \
         rename it if it is JSON Lines"
    )]
    NotParquet {
        /// The file.
        path: PathBuf,
    },
    /// A Parquet file is damaged, or holds what cannot be read.
    #[error("{path}: not a Parquet file that can be read ({reason}); copy or write it again")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the Parquet library says.
        reason: String,
    },
    /// A Parquet file is compressed in a way that this program does not read.
    #[error(
        "{path}: compressed with {codec}; this program reads Parquet with SNAPPY, GZIP or no \
         compression: write the file again with one of these, or as JSON Lines"
    )]
    Compression {
        /// The file.
        path: PathBuf,
        /// The compression.
        codec: String,
    },
    /// A Parquet file met a program built without Parquet.
    #[error(
        "{path}: a Parquet file, and this program was built without the cargo feature `parquet`; \
         build it with the feature, or give JSON Lines"
    )]
    WithoutParquet {
        /// The file.
        path: PathBuf,
    },
    /// A value has the wrong JSON type.
    #[error("{path}:{line}: {key} is {found}; expected {expected}")]
    WrongType {
        /// The data file.
        path: PathBuf,
        /// The line, or the row of Parquet or of an array, from 1.
        line: usize,
        /// Where in the line, such as `` `chosen[1].content` ``.
        key: String,
        /// The type that was expected.
        expected: &'static str,
        /// The type that was found.
        found: &'static str,
    },
    /// A row lacks a key (a null counts as missing).
    #[error("{path}:{line}: the key `{key}` is missing; a row is {layouts}")]
    MissingKey {
        /// The data file.
        path: PathBuf,
        /// The line, or the row of Parquet or of an array, from 1.
        line: usize,
        /// The missing key.
        key: String,
        /// The layouts that a row may have.
        layouts: &'static str,
    },
    /// A message has a role other than system, user or assistant.
    #[error("{path}:{line}: the role of `{key}` is {role:?}; expected system, user or assistant")]
    UnknownRole {
        /// The data file.
        path: PathBuf,
        /// The line, or the row of Parquet or of an array, from 1.
        line: usize,
        /// The message, such as `chosen[1]`.
        key: String,
        /// The role found.
        role: String,
    },
    /// A message list that holds a response does not end with the assistant's.
    #[error("{path}:{line}: `{which}` must end with a message of the assistant: the response")]
    NoResponse {
        /// The data file.
        path: PathBuf,
        /// The line, or the row of Parquet or of an array, from 1.
        line: usize,
        /// The key of the list.
        which: String,
    },
    /// A prompt holds no message or no token.
    #[error("{path}:{line}: the prompt is empty; a model needs at least one token to start from")]
    EmptyPrompt {
        /// The data file.
        path: PathBuf,
        /// The line, or the row of Parquet or of an array, from 1.
        line: usize,
    },
    /// Two places in a row that must hold the same prompt do not.
    #[error(
        "{path}:{line}: `{left}` and `{right}` have different prompts; both must answer the same \
         one"
    )]
    PromptMismatch {
        /// The data file.
        path: PathBuf,
        /// The line, or the row of Parquet or of an array, from 1.
        line: usize,
        /// One key.
        left: &'static str,
        /// The other key.
        right: &'static str,
    },
    /// The tokenizer cannot encode a text of this row.
    #[error("{path}:{line}: {source}")]
    EncodeLine {
        /// The data file.
        path: PathBuf,
        /// The line, or the row of Parquet or of an array, from 1.
        line: usize,
        /// What the tokenizer says.
        source: Box<DataError>,
    },
    /// A file of preference pairs holds none.
    #[error("{path}: no preference pairs{skipped}; expected one a row, in JSON Lines or Parquet")]
    NoPairs {
        /// The data file.
        path: PathBuf,
        /// Which rows were skipped, in brackets.
        skipped: String,
    },
    /// A file of prompts holds none.
    #[error("{path}: no prompts{skipped}; expected one a row, in JSON Lines or Parquet")]
    NoPrompts {
        /// The data file.
        path: PathBuf,
        /// Which rows were skipped, in brackets.
        skipped: String,
    },
    /// A file of conversations holds none.
    #[error("{path}: no conversations{skipped}; expected one a row, in JSON Lines or Parquet")]
    NoConversations {
        /// The data file.
        path: PathBuf,
        /// Which rows were skipped, in brackets.
        skipped: String,
    },
    /// All rows of a data file are the same one, so that none can be held out.
    #[error(
        "{path}: all {what} are the same one, so that none can be held out; give at least two different ones"
    )]
    NothingToHoldOut {
        /// The data file.
        path: PathBuf,
        /// What its rows are.
        what: &'static str,
    },
    /// Another data file holds nothing.
    #[error("{path}: no rows; expected {expected}")]
    NoRows {
        /// The data file.
        path: PathBuf,
        /// What a row is.
        expected: &'static str,
    },
    /// A folder given as data holds none.
    #[error(
        "{path}: a folder without .parquet, .jsonl or .json files; name a file, or the folder of its parts"
    )]
    NoFiles {
        /// The folder.
        path: PathBuf,
    },
    /// A token limit is too small to hold anything.
    #[error("the limit of {name} is {value}; it must be at least {least}")]
    Limit {
        /// Which limit.
        name: &'static str,
        /// Its value.
        value: usize,
        /// The least value.
        least: usize,
    },
    /// A tokenizer file is no tokenizer.
    #[error("{path}: not a tokenizer ({reason}); expected a Hugging Face tokenizer.json")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizer library says.
        reason: String,
    },
    /// A tokenizer's settings hold a value of the wrong kind.
    #[error("{path}: `{key}` must be {expected}")]
    TokenizerSetting {
        /// The settings file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it must be.
        expected: String,
    },
    /// The end-of-sequence or padding token is not in the vocabulary.
    #[error("{path}: `{key}` is {token}, which the tokenizer's vocabulary does not hold")]
    UnknownToken {
        /// The file that names the token.
        path: PathBuf,
        /// The key that names it.
        key: String,
        /// The token or its id.
        token: String,
    },
    /// No file says which token ends a sequence.
    #[error(
        "{path}: no end-of-sequence token; name one as `eos_token` in tokenizer_config.json or \
         `eos_token_id` in generation_config.json or config.json"
    )]
    NoEos {
        /// The tokenizer's folder.
        path: PathBuf,
    },
    /// A role's format does not hold exactly one `{}`.
    #[error(
        "the format of the role {role} is {format:?}; it must hold exactly one {{}}, the content's \
         place"
    )]
    RoleFormat {
        /// The role.
        role: &'static str,
        /// Its format.
        format: String,
    },
    /// A chat template does not compile.
    #[error(
        "{path}: the chat template does not compile ({reason}); mend it, or give a `role_format` in \
         tokenizer_config.json instead"
    )]
    Template {
        /// The file that holds the template.
        path: PathBuf,
        /// What the template engine says.
        reason: String,
    },
    /// A chat template raises an exception for these messages, or fails.
    #[error("{path}: the chat template does not write these messages ({reason})")]
    Render {
        /// The file that holds the template.
        path: PathBuf,
        /// What the template says, or the template engine.
        reason: String,
    },
    /// A chat template writes a prompt otherwise once a response follows it.
    #[error(
        "the chat template does not begin a conversation with its prompt: after {common:?} the prompt has \
         {prompt:?}, the conversation {conversation:?}; give a template or a `role_format` that does"
    )]
    NotAPrefix {
        /// The end of what both begin with.
        common: String,
        /// How the prompt goes on.
        prompt: String,
        /// How the conversation goes on.
        conversation: String,
    },
    /// The tokenizer cannot encode a text.
    #[error("the tokenizer cannot encode the text ({reason})")]
    Encode {
        /// What the tokenizer library says.
        reason: String,
    },
}

impl DataError {
    /// The error for a JSON fault in the text that starts at line `first` of `path`.
    pub(crate) fn json(path: &std::path::Path, first: usize, error: &serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let reason = error.to_string();
        let place = format!(" at line {line} column {column}");
        let reason = reason.strip_suffix(&place).unwrap_or(&reason).to_owned();
        Self::Json { path: path.into(), line: first + line.max(1) - 1, column, reason }
    }
}
