//! The fields of a row, with errors that name file, row and key.

use std::path::Path;

use serde_json::{Map, Value};

use super::chat::{Message, Role};
use super::columns::{Columns, DataFile};
use super::error::DataError;
use super::rows::{Row, kind, rows};

/// The most columns that an error lists.
const MOST_COLUMNS: usize = 20;

/// One row of a data file.
pub struct Fields<'a> {
    path: &'a Path,
    /// The line, or the number of the element; from 1.
    pub place: usize,
    layouts: &'static str,
    columns: Option<&'a Columns>,
    object: Map<String, Value>,
}

/// What `read` makes of each row of the file at `path`; `layouts` says in errors what a row is.
///
/// # Errors
///
/// Those of [`rows`] and of `read`; [`DataError::Refused`] for a file without rows.
pub fn read_rows<T, E: From<DataError>>(
    path: &Path,
    layouts: &'static str,
    mut read: impl FnMut(&Fields) -> Result<T, E>,
) -> Result<Vec<T>, E> {
    let mut all = Vec::new();
    for row in rows(path)? {
        all.push(read(&Fields::new(path.into(), row?, layouts))?);
    }
    if all.is_empty() {
        return Err(DataError::no_rows(path, layouts).into());
    }
    Ok(all)
}

impl<'a> Fields<'a> {
    /// The fields of a row of a file; `layouts` says in errors what a row is.
    pub fn new(file: DataFile<'a>, row: Row, layouts: &'static str) -> Self {
        let DataFile { path, columns } = file;
        let object = match columns {
            Some(columns) => columns.rename(row.object),
            None => row.object,
        };
        Self { path, place: row.place, layouts, columns, object }
    }

    /// The file.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// The value of `key`; a null counts as missing.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The value of `key`, which must be there.
    pub fn require(&self, key: &str) -> Result<&Value, DataError> {
        self.get(key).ok_or_else(|| self.missing(key))
    }

    /// The text of `key`.
    pub fn text(&self, key: &str) -> Result<&str, DataError> {
        self.as_text(key, self.require(key)?)
    }

    /// The list of `key`, which holds something.
    pub fn list(&self, key: &str) -> Result<&[Value], DataError> {
        match self.require(key)? {
            Value::Array(list) if !list.is_empty() => Ok(list),
            other => Err(self.wrong_type(key, "a list that is not empty", other)),
        }
    }

    /// The text of the turn `key`: a text itself, or an object with the text `content`.
    pub fn turn<'v>(&self, key: &str, turn: &'v Value) -> Result<&'v str, DataError> {
        match turn {
            Value::Object(object) => {
                let key = format!("{key}.content");
                let content = object.get("content").ok_or_else(|| self.missing(&key))?;
                self.as_text(&key, content)
            }
            other => self.as_text(key, other),
        }
    }

    /// The messages in `key`: a text is one of the user.
    pub fn messages(&self, key: &str) -> Result<Vec<Message>, DataError> {
        match self.require(key)? {
            Value::String(text) => Ok(vec![Message { role: Role::User, content: text.clone() }]),
            list => self.message_list(key, list),
        }
    }

    /// The message list `value`, which `key` holds.
    pub(super) fn message_list(&self, key: &str, value: &Value) -> Result<Vec<Message>, DataError> {
        let Value::Array(list) = value else {
            let expected = match key {
                "messages" => "a list of messages",
                _ => "a text or a list of messages",
            };
            return Err(self.wrong_type(key, expected, value));
        };
        let message = |(i, value)| self.message(&format!("{key}[{i}]"), value);
        list.iter().enumerate().map(message).collect()
    }

    fn message(&self, key: &str, value: &Value) -> Result<Message, DataError> {
        let Value::Object(message) = value else {
            return Err(self.wrong_type(key, "an object", value));
        };
        let text = |name: &str| {
            let key = format!("{key}.{name}");
            let value = message.get(name).filter(|value| !value.is_null());
            self.as_text(&key, value.ok_or_else(|| self.missing(&key))?)
        };
        let name = text("role")?;
        let role = Role::from_name(name)
            .ok_or_else(|| DataError::unknown_role(self.path, self.place, key, name))?;
        Ok(Message { role, content: text("content")?.into() })
    }

    /// The response in `key` and, where it is a conversation, what precedes it.
    pub fn response(&self, key: &str) -> Result<(Option<Vec<Message>>, String), DataError> {
        if let Value::String(text) = self.require(key)? {
            return Ok((None, text.clone()));
        }
        let mut messages = self.messages(key)?;
        match messages.pop() {
            Some(Message { role: Role::Assistant, content }) => {
                Ok((Some(messages).filter(|before| !before.is_empty()), content))
            }
            _ => {
                let (path, line) = (self.path, self.place);
                Err(DataError::no_response(path, line, key))
            }
        }
    }

    /// The error of a row that lacks `key`.
    pub fn missing(&self, key: &str) -> DataError {
        let (path, line, layouts) = (self.path, self.place, self.layouts);
        let column = self.columns.and_then(|columns| columns.of(key));
        let named = column.map(|column| format!(" (--columns {key}={column})")).unwrap_or_default();
        let mut there = String::new();
        if self.columns.is_some() && !key.contains(['.', '[']) {
            let names: Vec<&str> =
                self.object.keys().map(String::as_str).take(MOST_COLUMNS).collect();
            there = format!(
                "; this one has {}: --columns says what they are, as in --columns prompt=question,chosen=good,rejected=bad",
                names.join(", ")
            );
        }
        DataError::missing_key(path, line, key, named, layouts, there)
    }

    /// The error of a value in `key` that is not what was expected.
    pub fn wrong_type(&self, key: &str, expected: &'static str, value: &Value) -> DataError {
        let empty = value.as_array().is_some_and(Vec::is_empty);
        let found = if empty { "an empty list" } else { kind(value) };
        let key = format!("`{key}`");
        DataError::wrong_type(self.path, self.place, key, expected, found)
    }

    fn as_text<'v>(&self, key: &str, value: &'v Value) -> Result<&'v str, DataError> {
        value.as_str().ok_or_else(|| self.wrong_type(key, "a text", value))
    }
}
