//! Chat templates: Jinja text, in a checkpoint's tokenizer files, that writes messages as a prompt.
//!
//! Templates are rendered by `minijinja` in the surroundings that transformers gives them: blocks are trimmed
//! (`trim_blocks`, `lstrip_blocks`), there are loop controls, `raise_exception`, `strftime_now`,
//! `{% generation %}`, `tojson` as Python writes it, and the text methods of Python (`strip`, `split`, ...).
//!
//! What Jinja does and this does not: objects other than texts, numbers, lists and mappings; formatting by
//! `%`; the words `True`, `False` and `None` where `~` joins them to a text (they are in lower case).
//!
//! `strftime_now` is the moment at which the template was read, in local time. Where the environment sets
//! SOURCE_DATE_EPOCH (seconds since 1970, UTC) it is that moment, so that a run can be repeated on another day.
//!
//! # Source
//!
//! transformers, `utils/chat_template_utils.py`; SOURCE_DATE_EPOCH:
//! <https://reproducible-builds.org/specs/source-date-epoch/>

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use chrono::{DateTime, Local, NaiveDateTime};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context};

use super::chat::Message;
use super::error::DataError;
use super::python;

/// The most steps that a rendering may take: thousands of messages take fewer.
const MOST_STEPS: u64 = 10_000_000;
/// The deepest nesting, of which a call of a macro takes a few.
const DEEPEST: usize = 100;
/// The template's name within its environment.
const NAME: &str = "chat template";

/// A template that writes messages as text.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// The template `source`, which stands in the file `path`; it may name `special_tokens`, such as
    /// `bos_token`.
    ///
    /// # Errors
    ///
    /// [`DataError::Template`] where it does not compile.
    pub fn new(
        source: &str,
        path: &Path,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(MOST_STEPS));
        environment.set_recursion_limit(DEEPEST);
        python::add_to(&mut environment);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        let now = now();
        environment.add_function("strftime_now", move |format: &str| strftime(now, format));
        for (name, token) in special_tokens {
            environment.add_global(name.clone(), token.clone());
        }
        let source = without_generation(&source.replace("\r\n", "\n").replace('\r', "\n"));
        let added = environment.add_template_owned(NAME, source);
        added.map_err(|error| DataError::Template { path: path.into(), reason: said(&error) })?;
        Ok(Self { environment })
    }

    /// The text of `messages`; with `add_generation_prompt`, up to where the model's response starts.
    ///
    /// # Errors
    ///
    /// [`DataError::Render`] where the template raises an exception, or fails.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{collections::BTreeMap, path::Path};
    /// use segment_rlhf::data::{chat::{Message, Role}, template::ChatTemplate};
    /// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}\
    ///     {% if add_generation_prompt %}<assistant>{% endif %}";
    /// let template = ChatTemplate::new(source, Path::new("chat_template.jinja"), &BTreeMap::new())?;
    /// let question = Message { role: Role::User, content: " Was it clean? ".into() };
    /// assert_eq!(template.render(&[question], true)?, "<user>Was it clean?\n<assistant>");
    /// # Ok::<(), segment_rlhf::data::error::DataError>(())
    /// ```
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, DataError> {
        let none = Value::from(());
        let context = context! {
            messages => messages, add_generation_prompt, tools => none, documents => none
        };
        let template = self.environment.get_template(NAME).expect("it was added when made");
        template.render(context).map_err(|error| DataError::Render { reason: said(&error) })
    }
}

/// What a template's error says, and in which line of the template.
fn said(error: &Error) -> String {
    let text = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("it takes more than {MOST_STEPS} steps"),
        (_, Some(detail)) => detail.to_owned(),
        (kind, None) => kind.to_string(),
    };
    match error.line() {
        Some(line) => format!("{text}, line {line} of the template"),
        None => text,
    }
}

/// The moment that templates see as now.
fn now() -> NaiveDateTime {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
    match epoch.and_then(|seconds| DateTime::from_timestamp(seconds, 0)) {
        Some(moment) => moment.naive_utc(),
        None => Local::now().naive_local(),
    }
}

/// Python's `strftime` of a moment without a time zone.
fn strftime(moment: NaiveDateTime, format: &str) -> Result<String, Error> {
    // Microseconds there, nanoseconds here; a moment without a zone writes neither its name nor its offset.
    let format = format.replace("%f", "%6f").replace("%Z", "").replace("%z", "");
    let mut text = String::new();
    write!(text, "{}", moment.format(&format)).map_err(|_| {
        let text = format!("strftime_now does not know the format {format:?}");
        Error::new(ErrorKind::InvalidOperation, text)
    })?;
    Ok(text)
}

/// `source` with a plain scope for each `{% generation %}`, by which transformers marks the model's own text.
fn without_generation(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let inner = tag.split("%}").next().unwrap_or_default();
        let name = inner.trim_matches(|c: char| c.is_whitespace() || "+-".contains(c));
        let scope = match name {
            "generation" => inner.replace("generation", "with"),
            "endgeneration" => inner.replace("endgeneration", "endwith"),
            _ => inner.to_owned(),
        };
        text.extend([before, "{%", &scope]);
        rest = &tag[inner.len()..];
    }
    text + rest
}
