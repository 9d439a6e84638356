//! The files of a tokenizer, and what they say of its special tokens.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::normalizers::Precompiled;

use super::chat::RoleFormat;
use super::error::DataError;
use crate::file_error::FileError;

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const GENERATION: &str = "generation_config.json";
pub(super) const TEMPLATE: &str = "chat_template.jinja";
/// The key of `tokenizer_config.json` where older checkpoints have their template.
pub(super) const CHAT_TEMPLATE: &str = "chat_template";
/// Our own key of `tokenizer_config.json`.
pub(super) const ROLE_FORMAT: &str = "role_format";

/// The role format in `value`, which the key [`ROLE_FORMAT`] of `path` holds.
pub(super) fn read_role_format(value: &Value, path: &Path) -> Result<RoleFormat, DataError> {
    serde_json::from_value(value.clone()).map_err(|error| {
        DataError::tokenizer_setting(
            path,
            ROLE_FORMAT,
            format!("an object of the texts system, user and assistant ({error})"),
        )
    })
}

/// The tokenizer in `text`, which came from `path`; it neither cuts nor pads, whatever the file
/// says.
pub(super) fn parse(path: &Path, text: &[u8]) -> Result<tokenizers::Tokenizer, DataError> {
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    // tokenizers 0.23.2 panics at a fault of syntax within a decoder, and at a broken precompiled normalizer.
    let value = serde_json::from_slice(text).map_err(|error| DataError::json(path, 1, &error))?;
    check_precompiled(&value).map_err(|error| not_a_tokenizer(path, &error.into()))?;
    let mut inner =
        tokenizers::Tokenizer::from_bytes(text).map_err(|error| not_a_tokenizer(path, &error))?;
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|error| not_a_tokenizer(path, &error))?;
    Ok(inner)
}

/// Tries each precompiled normalizer within `value`.
pub(super) fn check_precompiled(value: &Value) -> serde_json::Result<()> {
    match value {
        Value::Array(values) => values.iter().try_for_each(check_precompiled),
        Value::Object(object) => {
            if object.get("type").is_some_and(|kind| kind == "Precompiled") {
                serde_json::from_str::<Precompiled>(&value.to_string())?;
            }
            object.values().try_for_each(check_precompiled)
        }
        _ => Ok(()),
    }
}

pub(super) fn not_a_tokenizer(path: &Path, error: &tokenizers::Error) -> DataError {
    DataError::tokenizer(path, error.to_string())
}

/// The object in a settings file, or `None` if there is no such file.
pub(super) fn read_settings(path: &Path) -> Result<Option<Map<String, Value>>, DataError> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&text))
            .map(Some)
            .map_err(|error| DataError::json(path, 1, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::reading(path)(source).into()),
    }
}

/// The text of a template file, or `None` if there is none.
pub(super) fn read_template(path: &Path) -> Result<Option<String>, DataError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::reading(path)(source).into()),
    }
}

/// The template in `value`, which the key [`CHAT_TEMPLATE`] of `path` holds: a text, or of a list of
/// named ones the default.
pub(super) fn default_template<'a>(
    value: Option<&'a Value>,
    path: &Path,
) -> Result<Option<&'a str>, DataError> {
    let text = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|template| template["name"] == "default");
            default.and_then(|template| template["template"].as_str())
        }
        Some(value) => value.as_str(),
    };
    let expected = "a text, or a list of {\"name\", \"template\"} with the name \"default\"";
    text.map(Some).ok_or_else(|| setting(path, CHAT_TEMPLATE, expected))
}

pub(super) fn setting(path: &Path, key: &str, expected: &str) -> DataError {
    DataError::tokenizer_setting(path, key, expected)
}

/// A special token as settings write it: a text, or an object with `content`.
pub(super) fn token_text(value: &Value) -> Option<&str> {
    value.get("content").unwrap_or(value).as_str()
}

/// The id of the special token that the settings in `path` call `key`, such as `eos_token`.
pub(super) fn named_token(
    path: &Path,
    config: &Map<String, Value>,
    inner: &tokenizers::Tokenizer,
    key: &str,
) -> Result<Option<u32>, DataError> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let token = token_text(value)
                .ok_or_else(|| setting(path, key, "a text, or an object with `content`"))?;
            id_of(inner, token, path, key).map(Some)
        }
    }
}

/// The token ids that these files give as `key`, such as `eos_token_id`, in their order.
pub(super) fn token_ids(
    files: &[(PathBuf, &Map<String, Value>)],
    inner: &tokenizers::Tokenizer,
    key: &str,
) -> Result<Vec<u32>, DataError> {
    let mut found = Vec::new();
    for (path, settings) in files {
        let ids = match settings.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => ids.clone(),
            Some(value) => vec![value.clone()],
        };
        let wrong = || setting(path, key, "a token id, or a list of token ids");
        if ids.is_empty() {
            return Err(wrong());
        }
        for id in ids {
            let id = id.as_u64().ok_or_else(wrong)?;
            match u32::try_from(id).ok().filter(|&id| inner.id_to_token(id).is_some()) {
                Some(id) => found.push(id),
                None => {
                    let (path, key) = (path.clone(), key.to_owned());
                    return Err(DataError::unknown_token(path, key, id.to_string()));
                }
            }
        }
    }
    Ok(found)
}

/// The id of `token`, which the key `key` of `path` names.
pub(super) fn id_of(
    inner: &tokenizers::Tokenizer,
    token: &str,
    path: &Path,
    key: &str,
) -> Result<u32, DataError> {
    inner
        .token_to_id(token)
        .ok_or_else(|| DataError::unknown_token(path, key, format!("{token:?}")))
}
