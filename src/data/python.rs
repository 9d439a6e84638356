//! What chat templates expect of Python: its methods of texts, and how it writes values.

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::pycompat;

use super::allowance;

/// Makes values behave as they do in Python.
pub(super) fn add_to(environment: &mut Environment) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| {
        let owned;
        let text = match value.as_str() {
            Some(text) => text,
            None => {
                owned = text(value);
                &owned
            }
        };
        allowance::pay_written(state, text)?;
        Ok(out.write_str(text)?)
    });
    environment.add_filter("string", |value: &Value| text(value));
    environment.add_filter("trim", |value: &Value, marks: Option<&str>| {
        trimmed(&text(value), marks, true, true).to_owned()
    });
    environment.add_filter("int", |state: &State, value: &Value, default: Option<Value>| {
        let number = filters::int(state, &stripped(value));
        number.unwrap_or_else(|_| default.unwrap_or_else(|| Value::from(0)))
    });
    environment.add_filter("float", |state: &State, value: &Value, default: Option<Value>| {
        let number = filters::float(state, &stripped(value));
        number.unwrap_or_else(|_| default.unwrap_or_else(|| Value::from(0.0)))
    });
    environment.add_filter("round", |value: Value, digits: Option<i32>| -> Result<Value, Error> {
        if value.is_integer() {
            return Ok(value);
        }
        let unit = 10f64.powi(digits.unwrap_or(0));
        Ok(Value::from((f64::try_from(value)? * unit).round_ties_even() / unit))
    });
    environment.add_filter("tojson", tojson);
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_test("callable", |_: &Value| false);
}

/// A text without white space around it; another value as it is.
fn stripped(value: &Value) -> Value {
    let text = value.as_str().map(|text| Value::from(trimmed(text, None, true, true)));
    text.unwrap_or_else(|| value.clone())
}

/// A value as `str` writes it.
fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => literal(value),
    }
}

/// A value as `repr` writes it.
fn literal(value: &Value) -> String {
    let list = |values: Vec<String>| values.join(", ");
    match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            let mut quoted = String::from(quote);
            for c in text.chars() {
                match c {
                    '\n' => quoted += "\\n",
                    '\r' => quoted += "\\r",
                    '\t' => quoted += "\\t",
                    '\\' => quoted += "\\\\",
                    c if c == quote => quoted.extend(['\\', c]),
                    c if c.is_ascii_control() => quoted += &format!("\\x{:02x}", u32::from(c)),
                    c => quoted.push(c),
                }
            }
            quoted.push(quote);
            quoted
        }
        ValueKind::Seq => match value.try_iter() {
            Ok(values) => format!("[{}]", list(values.map(|value| literal(&value)).collect())),
            Err(_) => value.to_string(),
        },
        ValueKind::Map => match value.try_iter() {
            Ok(keys) => {
                let entry = |key: Value| {
                    let value = value.get_item(&key).unwrap_or_default();
                    format!("{}: {}", literal(&key), literal(&value))
                };
                format!("{{{}}}", list(keys.map(entry).collect()))
            }
            Err(_) => value.to_string(),
        },
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
        }
        _ => value.to_string(),
    }
}

/// A float as `repr` writes it: an exponent from 1e16 up and below 1e-4, of two digits at least.
fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    match scientific.split_once('e').map(|(digits, exponent)| (digits, exponent.parse::<i32>())) {
        Some((digits, Ok(exponent))) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ if value.is_finite() => format!("{value:?}"),
        _ => value.to_string().to_lowercase(),
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}

/// `json.dumps`, as transformers offers it to templates.
fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let json = serde_json::to_value(value)
        .map_err(|error| invalid(format!("tojson: the value is not JSON ({error})")))?;
    let indent: Option<Value> = options.get("indent")?;
    let indent = indent.filter(|value| !value.is_none());
    let indent = match &indent {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(spaces) => {
            let spaces = usize::try_from(spaces.clone())?;
            allowance::pay(state, spaces)?;
            Some(" ".repeat(spaces))
        }
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(invalid("tojson: separators are two texts")),
    };
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let style = Style { indent, item: item.into(), key: key.into(), sort_keys };
    let mut text = String::new();
    style.write(&json, 0, &mut text)?;
    if ensure_ascii == Some(true) {
        text = ascii(&text);
    }
    allowance::pay(state, text.len())?;
    Ok(text)
}

/// How `json.dumps` separates things.
struct Style {
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Style {
    fn write(
        &self,
        value: &serde_json::Value,
        depth: usize,
        text: &mut String,
    ) -> Result<(), Error> {
        match value {
            serde_json::Value::Array(values) => {
                let write = |value: &_, text: &mut _| self.write(value, depth + 1, text);
                self.group("[]", values, write, depth, text)
            }
            serde_json::Value::Object(entries) => {
                let mut entries: Vec<_> = entries.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                let write = |(key, value): (&String, &_), text: &mut _| {
                    push(text, &serde_json::Value::from(key.as_str()).to_string())?;
                    push(text, &self.key)?;
                    self.write(value, depth + 1, text)
                };
                self.group("{}", entries, write, depth, text)
            }
            serde_json::Value::Number(number) if number.is_f64() => {
                push(text, &number.as_f64().map_or_else(|| number.to_string(), float))
            }
            other => push(text, &other.to_string()),
        }
    }

    fn group<I: IntoIterator>(
        &self,
        brackets: &str,
        items: I,
        write: impl Fn(I::Item, &mut String) -> Result<(), Error>,
        depth: usize,
        text: &mut String,
    ) -> Result<(), Error> {
        let line = |depth: usize, text: &mut String| -> Result<(), Error> {
            let Some(indent) = &self.indent else { return Ok(()) };
            push(text, "\n")?;
            (0..depth).try_for_each(|_| push(text, indent))
        };
        push(text, &brackets[..1])?;
        let mut empty = true;
        for item in items {
            if !empty {
                push(text, &self.item)?;
            }
            empty = false;
            line(depth + 1, text)?;
            write(item, text)?;
        }
        if !empty {
            line(depth, text)?;
        }
        push(text, &brackets[1..])
    }
}

/// Appends to a text that a template makes.
fn push(text: &mut String, part: &str) -> Result<(), Error> {
    allowance::fits(text.len() + part.len())?;
    text.push_str(part);
    Ok(())
}

/// JSON with each character outside ASCII escaped.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c.is_ascii() {
            true => text.push(c),
            false => {
                let units = c.encode_utf16(&mut [0; 2]).to_vec();
                text.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
    text
}

/// White space by `str.isspace`: Unicode's, and four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `text` without the `marks` (white space, if there are none) at its ends.
fn trimmed<'a>(text: &'a str, marks: Option<&str>, left: bool, right: bool) -> &'a str {
    let mut sorted: Vec<char> = marks.unwrap_or_default().chars().collect();
    sorted.sort_unstable();
    let goes = |c: char| match marks {
        None => is_space(c),
        Some(_) => sorted.binary_search(&c).is_ok(),
    };
    let text = if left { text.trim_start_matches(goes) } else { text };
    if right { text.trim_end_matches(goes) } else { text }
}

/// A method of a value that Python has.
///
/// Those of texts that `pycompat` lacks, or takes by bytes, white space and empty texts otherwise than Python
/// does, are here.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => match text_method(state, text, name, args)? {
            Some(result) => Ok(result),
            None => pycompat::unknown_method_callback(state, value, name, args),
        },
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn text_method(
    state: &State,
    text: &str,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let all = |test: fn(char) -> bool| -> Result<Value, Error> {
        let () = from_args(args)?;
        Ok(Value::from(!text.is_empty() && text.chars().all(test)))
    };
    let cased = |is: fn(char) -> bool, is_not: fn(char) -> bool| -> Result<Value, Error> {
        let () = from_args(args)?;
        Ok(Value::from(text.chars().any(is) && !text.chars().any(is_not)))
    };
    let result = match name {
        "strip" | "lstrip" | "rstrip" => {
            let (marks,): (Option<&str>,) = from_args(args)?;
            Value::from(trimmed(text, marks, name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => {
            let (mark, most, options): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let mark = match mark.filter(|mark| !mark.is_none()) {
                Some(mark) => Some(mark),
                None => options.get::<Option<Value>>("sep")?.filter(|mark| !mark.is_none()),
            };
            let most = most.or(options.get("maxsplit")?);
            options.assert_all_used()?;
            let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            let mark = match &mark {
                None => None,
                Some(mark) => Some(mark.as_str().ok_or_else(|| invalid("split: not a text"))?),
            };
            split(text, mark, most, name == "rsplit")?.into_iter().collect()
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            lines(text, keep.unwrap_or(false))?.into_iter().collect()
        }
        "partition" | "rpartition" => {
            let (mark,): (&str,) = from_args(args)?;
            if mark.is_empty() {
                return Err(invalid("empty separator"));
            }
            let parts = match name {
                "partition" => text.split_once(mark),
                _ => text.rsplit_once(mark),
            };
            let parts = match (parts, name) {
                (Some((before, after)), _) => [before, mark, after],
                (None, "partition") => [text, "", ""],
                (None, _) => ["", "", text],
            };
            parts.into_iter().collect()
        }
        "replace" => {
            let (from, to, most): (&str, &str, Option<i32>) = from_args(args)?;
            let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            allowance::pay_replaced(state, text, from, to, most)?;
            return Ok(None);
        }
        "join" => {
            let (list,): (&Value,) = from_args(args)?;
            allowance::pay_joined(state, list, text)?;
            return Ok(None);
        }
        "format" => {
            allowance::pay_formatted(state, text, args)?;
            return Ok(None);
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if name.starts_with('r') { text.rfind(part) } else { text.find(part) };
            match at {
                Some(byte) => Value::from(text[..byte].chars().count()),
                None if name.ends_with("find") => Value::from(-1),
                None => return Err(invalid("substring not found")),
            }
        }
        "count" => {
            let (part,): (&str,) = from_args(args)?;
            Value::from(text.matches(part).count())
        }
        "isspace" => all(is_space)?,
        "isdigit" | "isnumeric" | "isdecimal" => all(char::is_numeric)?,
        "isalpha" => all(char::is_alphabetic)?,
        "isalnum" => all(char::is_alphanumeric)?,
        "islower" => cased(char::is_lowercase, char::is_uppercase)?,
        "isupper" => cased(char::is_uppercase, char::is_lowercase)?,
        _ => return Ok(None),
    };
    Ok(Some(result))
}

/// `str.split`, or from the right `str.rsplit`: at each `mark`, or at white space if there is none.
fn split(
    text: &str,
    mark: Option<&str>,
    most: usize,
    from_right: bool,
) -> Result<Vec<String>, Error> {
    if mark == Some("") {
        return Err(invalid("empty separator"));
    }
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        allowance::fits_list(parts.len())?;
        if mark.is_none() {
            rest = trimmed(rest, None, !from_right, from_right);
            if rest.is_empty() {
                break;
            }
        }
        let cut = match (mark, from_right) {
            _ if parts.len() == most => None,
            (Some(mark), false) => rest.split_once(mark),
            (Some(mark), true) => rest.rsplit_once(mark).map(|(left, right)| (right, left)),
            (None, false) => rest.split_once(is_space),
            (None, true) => rest.rsplit_once(is_space).map(|(left, right)| (right, left)),
        };
        match cut {
            Some((part, remaining)) => {
                parts.push(part.to_owned());
                rest = remaining;
            }
            None => {
                parts.push(rest.to_owned());
                break;
            }
        }
    }
    if from_right {
        parts.reverse();
    }
    Ok(parts)
}

/// `str.splitlines`.
fn lines(text: &str, keep: bool) -> Result<Vec<String>, Error> {
    let ends = |c| {
        matches!(
            c,
            '\n' | '\x0b' | '\x0c' | '\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ends) {
        allowance::fits_list(lines.len())?;
        let end = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => rest[at..].chars().next().map_or(0, char::len_utf8),
        };
        lines.push(rest[..if keep { at + end } else { at }].to_owned());
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        lines.push(rest.to_owned());
    }
    Ok(lines)
}
