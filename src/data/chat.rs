//! Messages, and how their roles are written out as text.

use serde::{Deserialize, Serialize};

use super::error::DataError;

/// The place of the content in a role's format.
const PLACE: &str = "{}";

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The instructions that hold for the whole conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The role of that name, in lower case.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "system" => Some(Self::System),
            "user" => Some(Self::User),
            "assistant" => Some(Self::Assistant),
            _ => None,
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// The text around each role's content; each format holds exactly one `{}`, which the content
/// replaces.
///
/// Checked by [`RoleFormat::new`] and when read from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct RoleFormat {
    /// The system's format.
    pub system: String,
    /// The user's format.
    pub user: String,
    /// The assistant's format; a prompt ends with the part before its `{}`.
    pub assistant: String,
}

/// A role format as a file holds it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    system: String,
    user: String,
    assistant: String,
}

impl TryFrom<Unchecked> for RoleFormat {
    type Error = DataError;

    fn try_from(format: Unchecked) -> Result<Self, DataError> {
        Self::new(format.system, format.user, format.assistant)
    }
}

impl Default for RoleFormat {
    /// `System: {}`, `User: {}` and `Assistant: {}`, each followed by an empty line.
    fn default() -> Self {
        let format = |name| format!("{name}: {PLACE}\n\n");
        Self { system: format("System"), user: format("User"), assistant: format("Assistant") }
    }
}

impl RoleFormat {
    /// The format of these three texts.
    ///
    /// # Errors
    ///
    /// [`DataError::Refused`] if one does not hold exactly one `{}`.
    pub fn new(
        system: impl Into<String>,
        user: impl Into<String>,
        assistant: impl Into<String>,
    ) -> Result<Self, DataError> {
        let checked = |role, format: String| match format.matches(PLACE).count() {
            1 => Ok(format),
            _ => Err(DataError::role_format(role, format)),
        };
        Ok(Self {
            system: checked("system", system.into())?,
            user: checked("user", user.into())?,
            assistant: checked("assistant", assistant.into())?,
        })
    }

    /// The text that a response continues: every message in its role's format, then the assistant's
    /// format up to its `{}`.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::data::chat::{Message, Role, RoleFormat};
    /// let question = Message { role: Role::User, content: "Was it clean?".into() };
    /// let prompt = RoleFormat::default().prompt(&[question]);
    /// assert_eq!(prompt, "User: Was it clean?\n\nAssistant: ");
    /// ```
    pub fn prompt(&self, messages: &[Message]) -> String {
        let mut text = String::new();
        for message in messages {
            let format = match message.role {
                Role::System => &self.system,
                Role::User => &self.user,
                Role::Assistant => &self.assistant,
            };
            text += &format.replacen(PLACE, &message.content, 1);
        }
        text + self.assistant.split(PLACE).next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: Role, content: &str) -> Message {
        Message { role, content: content.into() }
    }

    #[test]
    fn every_role_is_rendered_and_the_prompt_stops_where_the_response_starts() {
        let format = RoleFormat::new("<s>{}</s>", "Q {}\n", "A\t {}\n").unwrap();
        let messages = [
            message(Role::System, "Be brief."),
            message(Role::User, "a {} b"),
            message(Role::Assistant, "c"),
            message(Role::User, ""),
        ];
        assert_eq!(format.prompt(&messages), "<s>Be brief.</s>Q a {} b\nA\t c\nQ \nA\t ");
        assert_eq!(format.prompt(&[]), "A\t ");
    }

    #[test]
    fn the_default_names_the_roles() {
        let messages = [message(Role::System, "s"), message(Role::User, "u")];
        let prompt = RoleFormat::default().prompt(&messages);
        assert_eq!(prompt, "System: s\n\nUser: u\n\nAssistant: ");
        let default = RoleFormat::default();
        let checked =
            RoleFormat::new(&*default.system, &*default.user, &*default.assistant).unwrap();
        assert_eq!(checked, default);
    }

    #[test]
    fn a_format_holds_exactly_one_place() {
        for bad in ["", "User:", "{}{}"] {
            let error = RoleFormat::new("{}", bad, "{}").unwrap_err();
            assert!(matches!(&error, DataError::Refused(_)));
            assert_eq!(
                error.to_string(),
                format!(
                    "the format of the role user is {bad:?}; it must hold exactly one {{}}, the \
                     content's place"
                )
            );
        }
    }

    #[test]
    fn a_format_is_checked_when_read() {
        let good = r#"{"system":"{}","user":"u{}","assistant":"{}a"}"#;
        let format: RoleFormat = serde_json::from_str(good).unwrap();
        assert_eq!(format, RoleFormat::new("{}", "u{}", "{}a").unwrap());
        assert_eq!(serde_json::to_string(&format).unwrap(), good);
        for bad in [
            r#"{"system":"{}","user":"u","assistant":"{}"}"#,
            r#"{"system":"{}","user":"{}","assistant":"{}","tool":"{}"}"#,
            r#"{"system":"{}","user":"{}"}"#,
        ] {
            serde_json::from_str::<RoleFormat>(bad).unwrap_err();
        }
    }
}
