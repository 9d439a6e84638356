//! How much text a chat template may make.
//!
//! The engine's fuel bounds the steps of a rendering, not its bytes: forty doublings of a text ask for 2^40 of
//! them. So each instruction that makes a value is followed by one that weighs it; filters and methods that can make
//! much of little are weighed before they start.
//!
//! | at most | of what |
//! | ---: | --- |
//! | 8 MiB | a value: its texts, and 64 bytes for each element of a list or a map |
//! | 32 MiB | all that is written: the prompt, and what macros and blocks capture |
//! | 256 MiB | all values that are made, one after another |
//! | 100 | lists within lists |
//!
//! A conversation of 2^17 tokens takes about half a MiB. The engine may hold some eight times a value while it
//! makes one, so that a rendering takes less than half a GiB, whatever the template.
//!
//! Namespaces and loops cannot be elements: they grow after their list was weighed. Nothing escapes HTML:
//! `{% autoescape %}` has no effect. The filters that minijinja adds to those of Jinja (`bool`, `chain`, `lines`,
//! `split`, `zip`), `pprint` and `debug()` are unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::machinery::{
    CompiledTemplate, Instruction, Instructions, TemplateConfig, Token, tokenize,
};
use minijinja::value::{DynObject, Object, ObjectRepr, Rest, StringInput};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, tests};

/// The most bytes of a value.
const MOST_VALUE: usize = 1 << 23;
/// The most bytes that a rendering writes.
const MOST_WRITTEN: usize = 1 << 25;
/// The most bytes of all values that a rendering makes.
const MOST_MADE: usize = 1 << 28;
/// Bytes of an element of a list or a map, beside those of its text.
const ELEMENT: usize = 64;
/// The most elements of a list.
const MOST_ELEMENTS: usize = MOST_VALUE / ELEMENT;
/// The deepest nesting of lists.
const DEEPEST: usize = 100;
/// The most operators of a template.
const MOST_OPERATORS: usize = 10_000;
/// Searching this many bytes costs as much as making one.
const LOOKED_THROUGH: usize = 16;
/// The most bytes in which a value is written, for each that it weighs: a control character within a list takes
/// six.
const WRITTEN_OUT: usize = 6;

/// The filters that weigh, by names that no template can write.
const MADE: &str = "made!";
const REPEATED: &str = "repeated!";
const KEPT: &str = "kept!";

/// A variable that is 1.
const ONE: &str = "__one";

/// What a rendering has made and written so far.
#[derive(Debug, Default)]
struct Spent {
    made: AtomicUsize,
    written: AtomicUsize,
}

impl Object for Spent {}

fn spent(state: &State) -> Arc<Spent> {
    state.get_or_set_temp_object("spent", Spent::default)
}

fn refused(text: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

fn add(counter: &AtomicUsize, bytes: usize, most: usize, what: &str) -> Result<(), Error> {
    match counter.fetch_add(bytes, Ordering::Relaxed) + bytes <= most {
        true => Ok(()),
        false => Err(refused(format!("{what} more than {most} bytes"))),
    }
}

/// Whether a value may have this many bytes.
pub(super) fn fits(bytes: usize) -> Result<usize, Error> {
    match bytes <= MOST_VALUE {
        true => Ok(bytes),
        false => Err(refused(format!("it makes a value of more than {MOST_VALUE} bytes"))),
    }
}

/// Whether a list may have this many elements.
pub(super) fn fits_list(elements: usize) -> Result<usize, Error> {
    fits(elements.saturating_mul(ELEMENT))
}

/// Pays for a value of this many bytes, before or after it is made.
pub(super) fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    add(&spent(state).made, fits(bytes)?, MOST_MADE, "its values take")
}

/// Pays for what is written.
pub(super) fn pay_written(state: &State, text: &str) -> Result<(), Error> {
    add(&spent(state).written, text.len(), MOST_WRITTEN, "it writes")
}

/// The bytes of a value, each element as often as it is reached.
fn weight(value: &Value, depth: usize) -> Result<usize, Error> {
    let mut bytes = ELEMENT + value.as_bytes().map_or(0, <[u8]>::len);
    let Some(object) = value.as_object() else { return Ok(bytes) };
    if depth > DEEPEST {
        return Err(refused(format!("it nests lists deeper than {DEEPEST}")));
    }
    if depth > 0 && grows(object) {
        return Err(refused("a namespace or a loop cannot be within a list or a namespace".into()));
    }
    let mut element = |value: &Value| -> Result<(), Error> {
        bytes = fits(bytes + weight(value, depth + 1)?)?;
        Ok(())
    };
    match object.repr() {
        ObjectRepr::Map => {
            for (key, value) in object.try_iter_pairs().into_iter().flatten() {
                element(&key)?;
                element(&value)?;
            }
        }
        ObjectRepr::Seq | ObjectRepr::Iterable => {
            object.try_iter().into_iter().flatten().try_for_each(|value| element(&value))?;
        }
        _ => {}
    }
    Ok(bytes)
}

/// Whether the object is one whose elements change.
fn grows(object: &DynObject) -> bool {
    ["::Namespace", "::Loop"].iter().any(|name| object.type_name().ends_with(name))
}

/// A value that was made, once it is paid for. What would be computed anew at each use becomes a list.
fn made(state: &State, value: Value) -> Result<Value, Error> {
    let Some(object) = value.as_object() else {
        pay(state, value.as_bytes().map_or(0, <[u8]>::len))?;
        return Ok(value);
    };
    let value = match object.repr() {
        ObjectRepr::Iterable => value.try_iter()?.take(MOST_ELEMENTS + 1).collect(),
        _ => value,
    };
    pay(state, fits_list(value.len().unwrap_or(0))?)?;
    pay(state, weight(&value, 0)? / LOOKED_THROUGH)?;
    Ok(value)
}

/// Both sides of `*`, the right one first, if the result may be made.
fn repeated(left: Value, right: Value) -> Result<Value, Error> {
    let bytes = |value: &Value| match value.as_object() {
        Some(_) => value.len().map(|elements| elements * ELEMENT),
        None => value.as_bytes().map(<[u8]>::len),
    };
    for (value, times) in [(&left, &right), (&right, &left)] {
        if let (Some(bytes), Some(times)) = (bytes(value), times.as_usize()) {
            fits(bytes.saturating_mul(times))?;
        }
    }
    Ok(Value::from(vec![right, left]))
}

/// A namespace and what it is to keep, if it may.
fn kept(state: &State, value: Value, namespace: Value) -> Result<Value, Error> {
    let bytes = fits(weight(&value, 1)? + weight(&namespace, 0)?)?;
    pay(state, bytes / LOOKED_THROUGH)?;
    Ok(Value::from(vec![namespace, value]))
}

/// The source with each product multiplied by a variable that is 1: the engine computes products of constants
/// while it compiles, when nothing weighs them.
pub(super) fn without_constant_products(
    source: &str,
    config: &TemplateConfig,
) -> Result<String, String> {
    let mut text = String::with_capacity(source.len());
    let (mut rest, mut after_operand, mut operators) = (0, false, 0);
    // Where tokens end in an error, compiling does, too.
    let (syntax, spaces) = (config.syntax_config.clone(), config.ws_config);
    for (token, span) in tokenize(source, false, syntax, spaces).map_while(Result::ok) {
        use Token as T;
        if matches!(token, T::Mul) && after_operand {
            let end = span.end_offset as usize;
            text.extend([&source[rest..end], " ", ONE, " *"]);
            rest = end;
        }
        operators += usize::from(matches!(
            token,
            T::Plus
                | T::Minus
                | T::Mul
                | T::Div
                | T::FloorDiv
                | T::Pow
                | T::Mod
                | T::Tilde
                | T::Ident("and" | "or")
        ));
        after_operand = matches!(
            token,
            T::Ident(_)
                | T::Str(_)
                | T::String(_)
                | T::Int(_)
                | T::Int128(_)
                | T::Float(_)
                | T::ParenClose
                | T::BracketClose
                | T::BraceClose
        );
    }
    match operators <= MOST_OPERATORS {
        true => Ok(text + &source[rest..]),
        false => Err(format!("it has more than {MOST_OPERATORS} operators")),
    }
}

/// The template with its values weighed: each instruction that makes one is replaced by a jump behind the last,
/// where it is followed by a filter that weighs, and a jump back.
pub(super) fn weighed(mut template: CompiledTemplate<'_>) -> CompiledTemplate<'_> {
    weigh_values_of(&mut template.instructions);
    template.blocks.values_mut().for_each(weigh_values_of);
    template
}

fn weigh_values_of(code: &mut Instructions<'_>) {
    use Instruction as I;
    let end = code.add(I::Return);
    let filter = |name, values| I::ApplyFilter(name, Some(values), !0); // found by its name, each time
    let made = || filter(MADE, 1);
    for at in 0..end {
        let Some(instruction) = code.get(at).cloned() else { break };
        let steps = match instruction {
            I::Add
            | I::StringConcat
            | I::Slice
            | I::BuildList(_)
            | I::BuildMap(_)
            | I::EndCapture
            | I::ApplyFilter(..)
            | I::CallFunction(..)
            | I::CallMethod(..)
            | I::CallObject(_) => vec![instruction, made()],
            I::Mul => vec![filter(REPEATED, 2), I::UnpackList(2), I::Mul, made()],
            I::SetAttr(_) => vec![filter(KEPT, 2), I::UnpackList(2), instruction],
            I::EmitRaw(text) => vec![I::LoadConst(text.into()), I::Emit],
            I::PushAutoEscape => vec![I::DiscardTop, I::LoadConst("none".into()), instruction],
            _ => continue,
        };
        let (span, line) = (code.get_span(at), code.get_line(at).unwrap_or(0));
        let line = u16::try_from(line).unwrap_or(u16::MAX);
        let start = code.len() as u32;
        for step in steps.into_iter().chain([I::Jump(at + 1)]) {
            match span {
                Some(span) => code.add_with_span(step, span),
                None => code.add_with_line(step, line),
            };
        }
        *code.get_mut(at).expect("it was read") = I::Jump(start);
    }
}

/// Adds the filters that weigh, and those that are weighed before they start.
pub(super) fn add_to(environment: &mut Environment) {
    environment.add_global(ONE, 1);
    environment.add_filter(MADE, made);
    environment.add_filter(REPEATED, repeated);
    environment.add_filter(KEPT, kept);
    ["bool", "chain", "lines", "pprint", "split", "zip"]
        .iter()
        .for_each(|name| environment.remove_filter(name));
    environment.remove_global("debug");

    environment.add_test("in", |state: &State, value: &Value, list: &Value| -> Result<_, Error> {
        pay(state, weight(list, 0)? / LOOKED_THROUGH)?;
        tests::is_in(state, value, list)
    });
    environment.add_filter(
        "replace",
        |state: &State, text: StringInput, from: StringInput, to: StringInput| {
            pay_replaced(state, text.as_str(), from.as_str(), to.as_str(), usize::MAX)?;
            filters::replace(state, text, from, to)
        },
    );
    environment.add_filter("join", |state: &State, list: &Value, mark: Option<StringInput>| {
        pay_joined(state, list, mark.as_ref().map_or("", StringInput::as_str))?;
        filters::join(state, list, mark)
    });
    environment.add_filter("format", |state: &State, text: &Value, values: Rest<Value>| {
        pay_formatted(state, text.as_str().unwrap_or_default(), &values)?;
        filters::format(state, text, values)
    });
    let indent = Value::from_function(filters::indent);
    environment.add_filter("indent", move |state: &State, text: &Value, options: Rest<Value>| {
        let named = |option: &Value| option.get_attr("width").ok()?.as_usize();
        let widths = options.iter().flat_map(|option| [option.as_usize(), named(option)]);
        let bytes = written_out(text)?;
        let lines = 1 + text.as_str().map_or(bytes, |text| text.matches('\n').count());
        pay(
            state,
            lines.saturating_mul(widths.flatten().max().unwrap_or(4)).saturating_add(bytes),
        )?;
        indent.call(state, &[std::slice::from_ref(text), &options].concat())
    });
    environment.add_filter(
        "batch",
        |state: &State, list: Value, count: usize, fill: Option<Value>| {
            pay(state, count.saturating_mul(ELEMENT))?;
            filters::batch(state, list, count, fill)
        },
    );
    environment.add_filter(
        "slice",
        |state: &State, list: Value, count: usize, fill: Option<Value>| {
            pay(state, count.saturating_mul(ELEMENT))?;
            filters::slice(state, list, count, fill)
        },
    );
}

/// Pays for `text` in which up to `most` places of `from` become `to`.
pub(super) fn pay_replaced(
    state: &State,
    text: &str,
    from: &str,
    to: &str,
    most: usize,
) -> Result<(), Error> {
    let places = text.matches(from).take(most).count();
    pay(state, places.saturating_mul(to.len()).saturating_add(text.len()))
}

/// Pays for the elements of `list` as one text with `mark` between them.
pub(super) fn pay_joined(state: &State, list: &Value, mark: &str) -> Result<(), Error> {
    let mut bytes = 0;
    for value in list.try_iter().into_iter().flatten() {
        bytes = fits(bytes + written_out(&value)?.saturating_add(mark.len()))?;
    }
    pay(state, bytes)
}

/// Pays for `text` with `values` in its places, `{}` or `%s`: their widths are the numbers in it.
pub(super) fn pay_formatted(state: &State, text: &str, values: &[Value]) -> Result<(), Error> {
    let widths = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widths = widths.map(|digits| digits.parse().unwrap_or(usize::MAX));
    let mut bytes =
        widths.fold(text.len(), |sum, width: usize| sum.saturating_add(width.saturating_mul(4)));
    let places = text.matches(['{', '%']).count();
    for value in values {
        bytes = bytes.saturating_add(written_out(value)?.saturating_mul(places));
    }
    pay(state, bytes)
}

/// The most bytes that a value takes within a text.
fn written_out(value: &Value) -> Result<usize, Error> {
    match value.as_str() {
        Some(text) => Ok(text.len()),
        None => Ok(weight(value, 0)? * WRITTEN_OUT),
    }
}
