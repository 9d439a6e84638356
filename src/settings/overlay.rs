//! Settings laid over each other, and where a value comes from.

use toml::de::{DeTable, DeValue};

/// `a.b=value` as the table `{a: {b: value}}`; a value that is no TOML is taken as a string.
pub(super) fn parse_set(set: &str) -> Result<toml::Table, String> {
    let Some((key, value)) = set.split_once('=') else {
        return Err("expected key=value, such as ppo.iterations=24".into());
    };
    let (key, value) = (key.trim(), value.trim());
    let parsed: Result<toml::Table, _> = format!("{key} = {value}").parse();
    parsed
        .or_else(|_| format!("{key} = {}", toml::Value::from(value)).parse())
        .map_err(|error: toml::de::Error| error.message().to_owned())
}

/// How near a key must be to be suggested, from 0 to 1.
const NEAR: f64 = 0.85;

/// Why settings were refused, in one line where it is for an unknown key that is near one of those `known`.
pub(super) fn refusal(error: &toml::de::Error, known: &toml::Table) -> String {
    let text = error.to_string().trim().to_owned();
    with_nearest(&text, known).unwrap_or(text)
}

/// The text of an unknown key with the nearest key that is known, at whatever depth.
fn with_nearest(text: &str, known: &toml::Table) -> Option<String> {
    let (key, rest) = text.strip_prefix("unknown field `")?.split_once('`')?;
    let (siblings, section) = rest.split_once("\nin `").unwrap_or((rest, ""));
    let below = |name: &str| match section.trim_end_matches('`') {
        "" => name.to_owned(),
        section => format!("{section}.{name}"),
    };
    let given = below(key);
    // An optional key is among its siblings alone.
    let siblings = siblings.split('`').skip(1).step_by(2).map(below);
    let all = siblings.chain(keys("", known));
    let near = all.map(|key| (nearness(&given, &key), key)).filter(|(near, _)| *near > NEAR);
    let (_, nearest) = near.min_by(|a, b| b.0.total_cmp(&a.0))?;
    Some(format!("unknown field `{given}`: did you mean `{nearest}`?"))
}

/// How much two keys are alike, each with its sections: as a whole, and by their last names.
fn nearness(a: &str, b: &str) -> f64 {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    (strsim::jaro_winkler(a, b) + strsim::jaro_winkler(&last(a), &last(b))) / 2.0
}

/// Every key of `table`, with its sections, after `prefix`.
fn keys(prefix: &str, table: &toml::Table) -> Vec<String> {
    let each = table.iter().flat_map(|(key, value)| {
        let key = format!("{prefix}{key}");
        let below = value.as_table().map(|table| keys(&format!("{key}."), table));
        [key].into_iter().chain(below.unwrap_or_default())
    });
    each.collect()
}

/// The line of the TOML `text`, from 1, whose key cannot be laid over `table`: an unknown one, or a value
/// of the wrong type.
pub(super) fn refused_line(
    table: &toml::Table,
    text: &str,
    accepts: &dyn Fn(toml::Table) -> bool,
) -> Option<usize> {
    /// Where the first rejected key below the sections `path` stands; `entries` and `values` hold the keys
    /// there, with their places and with their values.
    fn refused(
        table: &toml::Table,
        path: &[&str],
        entries: &DeTable<'_>,
        values: &toml::Table,
        accepts: &dyn Fn(toml::Table) -> bool,
    ) -> Option<usize> {
        entries.iter().find_map(|(key, entry)| {
            let name: &str = key.get_ref();
            match (entry.get_ref(), &values[name]) {
                (DeValue::Table(entries), toml::Value::Table(values)) if !values.is_empty() => {
                    refused(table, &[path, &[name]].concat(), entries, values, accepts)
                }
                (_, value) => {
                    let mut over = toml::Table::from_iter([(name.to_owned(), value.clone())]);
                    for &section in path.iter().rev() {
                        over = toml::Table::from_iter([(section.to_owned(), over.into())]);
                    }
                    let mut merged = table.clone();
                    merge(&mut merged, over);
                    (!accepts(merged)).then(|| key.span().start)
                }
            }
        })
    }
    let at =
        refused(table, &[], DeTable::parse(text).ok()?.get_ref(), &text.parse().ok()?, accepts)?;
    Some(line_at(text, at))
}

/// The line, from 1, that holds the byte `at` of `text`.
pub(crate) fn line_at(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

/// What gave `key` its value: the last `--set` or file with it, else the last with its section (a value can
/// be out of range because of its neighbours).
pub(super) fn origin(key: &str, overlays: &[(String, String)], sets: &[String]) -> String {
    let of = |path: &[&str]| {
        let set =
            sets.iter().rev().find(|set| parse_set(set).is_ok_and(|table| holds(&table, path)));
        let line =
            |(origin, text): &(String, String)| Some(format!("{origin}:{}", key_line(text, path)?));
        set.map(|set| format!("--set {set}")).or_else(|| overlays.iter().rev().find_map(line))
    };
    let path: Vec<&str> = key.split('.').collect();
    of(&path).or_else(|| of(&path[..1])).unwrap_or_else(|| "settings".to_owned())
}

fn holds(table: &toml::Table, path: &[&str]) -> bool {
    let (key, rest) = path.split_first().expect("a key is not empty");
    match table.get(*key) {
        Some(toml::Value::Table(table)) if !rest.is_empty() => holds(table, rest),
        value => value.is_some() && rest.is_empty(),
    }
}

/// The line of the TOML `text`, from 1, where the key `path` stands.
fn key_line(text: &str, path: &[&str]) -> Option<usize> {
    fn find(table: &DeTable<'_>, path: &[&str]) -> Option<usize> {
        let (name, rest) = path.split_first()?;
        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
        match value.get_ref() {
            DeValue::Table(table) if !rest.is_empty() => find(table, rest),
            _ => rest.is_empty().then(|| key.span().start),
        }
    }
    find(DeTable::parse(text).ok()?.get_ref(), path).map(|at| line_at(text, at))
}

/// Lays `over` over `table`, section by section.
pub(crate) fn merge(table: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::Settings;

    #[test]
    fn a_mistyped_key_suggests_the_nearest_at_any_depth() {
        let refused =
            |set: &str| Settings::resolve(&[], &[set.to_owned()]).unwrap_err().to_string();
        for (set, given, nearest) in [
            ("ppo.actor.learning_rat=1", "ppo.actor.learning_rat", "ppo.actor.learning_rate"),
            ("ppo.learning_rate=1", "ppo.learning_rate", "ppo.actor.learning_rate"),
            ("ppo.rolouts=1", "ppo.rolouts", "ppo.rollouts"),
            ("iterations=1", "iterations", "ppo.iterations"),
            ("pppo.iterations=1", "pppo", "ppo"),
            ("rollouts=1", "rollouts", "ppo.rollouts"),
            // No default.
            ("normalizer.std_flor=1", "normalizer.std_flor", "normalizer.std_floor"),
        ] {
            let text = format!("--set {set}: unknown field `{given}`: did you mean `{nearest}`?");
            assert_eq!(refused(set), text);
        }
        assert!(refused("ppo.colour=1").contains("unknown field `colour`, expected one of"));
    }
}
