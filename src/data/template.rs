//! Chat templates: Jinja text, in a checkpoint's tokenizer files, that writes messages as a prompt.
//!
//! Templates are rendered by `minijinja` in the surroundings that transformers gives them: blocks are trimmed
//! (`trim_blocks`, `lstrip_blocks`), there are loop controls, `raise_exception`, `strftime_now`,
//! `{% generation %}`, `tojson` as Python writes it, and the text methods of Python (`strip`, `split`, ...).
//!
//! Known differences from Jinja: `%` does not format a text (an error); a tuple prints as a list; `~` joins the
//! words true, false and none in lower case; the newline behind `{% raw %}` is dropped;
//! `{% autoescape %}` escapes nothing. How much a template may make is in `allowance.rs`: beyond it, rendering is an error.
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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use chrono::{DateTime, Local, NaiveDateTime};
use minijinja::machinery::{
    CompiledTemplate, TemplateConfig, Vm, WhitespaceConfig, make_string_output,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::allowance;
use super::chat::Message;
use super::error::DataError;
use super::python;

/// The most bytes of a template: several times those of real ones.
const MOST_BYTES: usize = 1 << 17;
/// The most steps that a rendering may take: thousands of messages take fewer.
const MOST_STEPS: u64 = 4_000_000;
/// The deepest nesting of calls, of which one of a macro counts as a few.
const DEEPEST: usize = 100;
/// The stack, in bytes, for what the engine nests without a limit (`not not ...`, lists in lists); the two
/// limits above keep it within.
const STACK: usize = 1 << 28;
/// The template's name in the engine.
const NAME: &str = "chat template";
/// The most characters of an exception that a template raises.
const MOST_SAID: usize = 1000;

/// A template that writes messages as text.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: Arc<str>,
    path: PathBuf,
}

impl ChatTemplate {
    /// The template `source` of the file `path`; it may name `special_tokens`, such as
    /// `bos_token`.
    ///
    /// # Errors
    ///
    /// [`DataError::Refused`] if it does not compile.
    pub fn new(
        source: &str,
        path: &Path,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<Self, DataError> {
        Self::at(now(), source, path, special_tokens)
    }

    /// The template that is read at the moment `now`.
    fn at(
        now: NaiveDateTime,
        source: &str,
        path: &Path,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(MOST_STEPS));
        environment.set_recursion_limit(DEEPEST);
        python::add_to(&mut environment);
        allowance::add_to(&mut environment);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |format: &str| strftime(now, format));
        for (name, token) in special_tokens {
            environment.add_global(name.clone(), token.clone());
        }
        let source = without_generation(&source.replace("\r\n", "\n").replace('\r', "\n"));
        let refused = |reason| DataError::template(path, reason);
        if source.len() > MOST_BYTES {
            return Err(refused(format!("it is longer than {MOST_BYTES} bytes")));
        }
        let source = allowance::without_constant_products(&source, &config()).map_err(refused)?;
        on_deep_stack(|| compiled(&source).map(drop)).map_err(refused)?;
        Ok(Self { environment, source: source.into(), path: path.into() })
    }

    /// The text of `messages`; with `add_generation_prompt`, up to where the model's response starts.
    ///
    /// # Errors
    ///
    /// [`DataError::Refused`] if the template raises an exception, fails, or makes more text than it may.
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
        on_deep_stack(|| {
            let template = compiled(&self.source)?;
            let mut text = String::new();
            let mut output = make_string_output(&mut text);
            let CompiledTemplate { instructions, blocks, .. } = &template;
            Vm::new(&self.environment)
                .eval(instructions, context, blocks, &mut output, AutoEscape::None)
                .map(drop)?;
            Ok(text)
        })
        .map_err(|reason| DataError::render(self.path.clone(), reason))
    }
}

/// The instructions of the template `source`: they take about as long as a rendering, and cannot outlive it.
fn compiled(source: &str) -> Result<CompiledTemplate<'_>, Error> {
    CompiledTemplate::new(NAME, source, &config()).map(allowance::weighed)
}

fn config() -> TemplateConfig {
    TemplateConfig {
        syntax_config: SyntaxConfig,
        ws_config: WhitespaceConfig {
            keep_trailing_newline: false,
            lstrip_blocks: true,
            trim_blocks: true,
        },
        default_auto_escape: Arc::new(|_| AutoEscape::None),
    }
}

/// What `work` gives, or what its error says, from a thread with a stack of [`STACK`] bytes.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, String> {
    static THREAD: LazyLock<Result<ThreadPool, ThreadPoolBuildError>> =
        LazyLock::new(|| ThreadPoolBuilder::new().num_threads(1).stack_size(STACK).build());
    // minijinja 2.24.0 panics at `loop.cycle()`, for one.
    let caught = || match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| said(&error)),
        Err(_) => Err("the template engine failed".into()),
    };
    match &*THREAD {
        Ok(thread) => thread.install(caught),
        Err(error) => Err(format!("there is no memory for its stack: {error}")),
    }
}

/// What a template's error says, and in which line of the template.
fn said(error: &Error) -> String {
    let text = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("it takes more than {MOST_STEPS} steps"),
        (_, Some(detail)) => detail.chars().take(MOST_SAID).collect(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::chat::Role;
    use crate::data::tokenizer::Tokenizer;
    use serde::Deserialize;
    use std::fs;
    use std::path::PathBuf;

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer")
    }

    fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
        serde_json::from_str(&fs::read_to_string(fixture().join(name)).unwrap()).unwrap()
    }

    fn message(role: Role, content: &str) -> Message {
        Message { role, content: content.into() }
    }

    /// The template among the fixture's special tokens, at the moment of its expected texts.
    fn template(source: &str) -> Result<ChatTemplate, DataError> {
        let names = [("bos_token", "<|bos|>"), ("eos_token", "<|eos|>"), ("pad_token", "<|pad|>")];
        let tokens = names.map(|(name, token)| (name.into(), token.into()));
        let now = "2024-07-05T14:03:09.123456".parse().unwrap();
        ChatTemplate::at(now, source, Path::new(TEMPLATE), &BTreeMap::from(tokens))
    }

    const TEMPLATE: &str = "chat_template.jinja";

    /// What transformers makes of a template.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Outcome {
        Text { text: String },
        Error { error: String },
    }

    #[derive(Deserialize)]
    struct Snippet {
        source: String,
        #[serde(flatten)]
        outcome: Outcome,
    }

    #[test]
    fn jinja_means_what_it_means_to_transformers() {
        let messages = [
            message(Role::User, " Was it clean?\n"),
            message(Role::Assistant, "Spotless. "),
            message(Role::User, "And breakfast?"),
        ];
        let mut different = Vec::new();
        for Snippet { source, outcome } in read::<Vec<Snippet>>("snippets.json") {
            let found = template(&source).and_then(|template| template.render(&messages, false));
            match (&outcome, &found) {
                (Outcome::Text { text }, Ok(found)) if text == found => {}
                (Outcome::Error { .. }, Err(_)) => {}
                (Outcome::Text { text }, _) => {
                    different.push(format!("{source}\n  {text:?}\n  {found:?}"))
                }
                (Outcome::Error { error }, _) => {
                    different.push(format!("{source}\n  {error}\n  {found:?}"))
                }
            }
        }
        assert!(different.is_empty(), "{}", different.join("\n"));
    }

    #[derive(Deserialize)]
    struct Case {
        template: String,
        messages: Vec<Message>,
        add_generation_prompt: bool,
        #[serde(flatten)]
        outcome: Outcome,
        #[serde(default)]
        ids: Vec<u32>,
    }

    #[test]
    fn templates_like_those_of_checkpoints_write_what_transformers_writes() {
        let tokenizer = Tokenizer::from_dir(&fixture()).unwrap();
        let cases = read::<Vec<Case>>("templates.json");
        assert!(cases.len() >= 8 * 10 * 2, "{} cases", cases.len());
        for case in cases {
            let path = fixture().join("templates").join(&case.template).with_extension("jinja");
            let template = template(&fs::read_to_string(path).unwrap()).unwrap();
            let found = template.render(&case.messages, case.add_generation_prompt);
            let name = format!("{} of {:?}", case.template, case.messages);
            match case.outcome {
                Outcome::Text { text } => {
                    let found = found.unwrap();
                    assert_eq!(found, text, "{name}");
                    assert_eq!(tokenizer.encode(&found).unwrap(), case.ids, "{name}");
                }
                Outcome::Error { error } => {
                    let found = found.unwrap_err().to_string();
                    assert!(found.contains(&format!("({error}, line ")), "{name}: {found}");
                }
            }
        }
    }

    fn refused(source: &str) -> String {
        let question = [message(Role::User, "u")];
        let rendered = template(source).and_then(|template| template.render(&question, true));
        rendered.unwrap_err().to_string()
    }

    #[test]
    fn a_template_that_does_not_compile_names_its_file_and_line() {
        let text = refused("a\n{% if messages %}b");
        assert!(
            text.starts_with("chat_template.jinja: the chat template does not compile ("),
            "{text}"
        );
        assert!(
            text.contains(", line 2 of the template); mend it, or give a `role_format`"),
            "{text}"
        );
        assert!(refused(&" ".repeat(MOST_BYTES + 1)).contains("longer than 131072 bytes"));
        let sum = |terms| format!("{{{{ 1{} }}}}", "+1".repeat(terms));
        assert!(refused(&sum(10_001)).contains("(it has more than 10000 operators)"));
        assert_eq!(template(&sum(10_000)).unwrap().render(&[], true).unwrap(), "10001");
    }

    #[test]
    fn a_template_that_fails_says_where() {
        assert_eq!(
            refused("\n{{ raise_exception('Only in French') }}"),
            "chat_template.jinja: the chat template does not write these messages (Only in French, line 2 of \
             the template)"
        );
        assert!(refused("{{ '%d' % 1 }}").contains("tried to use % operator"));
        assert!(refused("{{ strftime_now('%Q') }}").contains("does not know the format \"%Q\""));
        assert!(
            refused("{{ [1] | tojson(separators=['a']) }}").contains("separators are two texts")
        );
        assert!(refused("{{ [1] | tojson(unheard=1) }}").contains("unheard"));
    }

    #[test]
    fn no_template_hangs_or_overflows_the_stack() {
        let nested = "{% for i in range(99999) %}".repeat(3) + &"{% endfor %}".repeat(3);
        assert!(refused(&nested).contains("it takes more than 4000000 steps"));
        let itself = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        assert!(refused(itself).contains("recursion limit exceeded"));
        for (part, rest) in [("{% if true %}", ""), ("{{ (", ""), ("{% if a %}{% else %}", "")] {
            refused(&(part.repeat(MOST_BYTES / part.len() - 1) + rest));
        }
        for part in ["not ", "-", "1+", "1 if 1 else ", "[", "a.", "(1)*"] {
            let deep = format!("{{{{ {}1 }}}}", part.repeat((MOST_BYTES - 7) / part.len()));
            let _ = template(&deep).and_then(|template| template.render(&[], true));
        }
        let elif = "{% if a %}".to_owned() + &"{% elif a %}".repeat(10_000) + "{% endif %}";
        assert_eq!(template(&elif).unwrap().render(&[], true).unwrap(), "");
        let lists = "{% set ns = namespace(x=[]) %}{% for i in range(40000) %}{% set ns.x = [ns.x] %}\
                     {% endfor %}";
        for end in
            ["", "{{ ns.x }}", "{{ ns.x | tojson }}", "{{ ns.x == [ns.x] }}", "{{ '' ~ ns.x }}"]
        {
            let _ = template(&(lists.to_owned() + end)).unwrap().render(&[], true);
        }
        let loops = "{% for a in [[]] recursive %}{{ loop([[]]) }}{% endfor %}";
        assert!(refused(loops).contains("recursion limit exceeded"));
    }

    #[derive(Deserialize)]
    struct Bomb {
        source: String,
        says: String,
    }

    #[test]
    fn no_template_makes_more_than_it_may() {
        for Bomb { source, says } in read::<Vec<Bomb>>("bombs.json") {
            println!("{source}");
            let refused = refused(&source);
            let expected = format!(
                "chat_template.jinja: the chat template does not write these messages ({says}"
            );
            assert!(refused.starts_with(&expected), "{source}\n  {says}\n  {refused}");
        }
    }

    #[test]
    fn a_conversation_of_many_tokens_passes() {
        let messages: Vec<Message> = (0..512)
            .map(|i| {
                let role = if i % 2 == 0 { Role::User } else { Role::Assistant };
                message(role, &"1234 é ".repeat(1 << 8))
            })
            .collect();
        let content: usize = messages.iter().map(|message| message.content.len()).sum();
        assert!(content > 7 << 17);
        let joined = "{% set ns = namespace(text='') %}{% for m in messages %}{% if loop.index % 16 == 0 \
            %}{% set ns.text = ns.text ~ m.content %}{% endif %}{% endfor %}{{ ns.text }}";
        let captured = "{% macro turn(m) %}<{{ m.role }}>{{ m.content.strip() }}{% endmacro %}{% set all %}\
            {% for m in messages %}{{ turn(m) }}{{ messages | length }}{% endfor %}{% endset %}{{ all }}";
        template(joined).unwrap().render(&messages, true).unwrap();
        let text = template(captured).unwrap().render(&messages, true).unwrap();
        assert!(text.len() > content);
        for entry in fs::read_dir(fixture().join("templates")).unwrap() {
            let template = template(&fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap();
            template.render(&messages[..511], true).unwrap();
        }
    }

    #[test]
    fn nothing_is_escaped() {
        let source =
            "{% autoescape true %}{{ '<' | replace(';', 'x') }}{{ '<' }}{% endautoescape %}";
        assert_eq!(template(source).unwrap().render(&[], true).unwrap(), "<<");
    }

    #[test]
    fn the_moment_is_that_of_reading() {
        let template =
            ChatTemplate::new("{{ strftime_now('%s.%f') }}", Path::new(""), &BTreeMap::new());
        let template = template.unwrap();
        let first = template.render(&[], true).unwrap();
        assert_eq!(first, template.render(&[], true).unwrap());
    }
}
