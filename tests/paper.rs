//! The pages of `paper/` against the project: what they name exists, every test of an equation is named, and the
//! reported figures are read as they stand. Below them, tests of deviations that belong to no equation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use segment_rlhf::equations::kl::AdaptiveKl;
use segment_rlhf::equations::normalizer::Normalizer;
use segment_rlhf::equations::segmentation::Rule;
use segment_rlhf::grid::reported::{Source, Subject, reported};
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::model::{CausalLm, checkpoint};
use segment_rlhf::run::metrics::IterationMetrics;
use segment_rlhf::run::{Context, Stage};
use segment_rlhf::settings::{DEFAULTS, NormalizerKind, Preset, Settings};
use segment_rlhf::stage::{fit_normalizer, online, preferences, reward, sft};
use segment_rlhf::systems::Method;
use segment_rlhf::systems::paper::METHODS;

const PAGES: [&str; 3] = ["paper/equations.md", "paper/notation.md", "paper/deviations.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every page with its path: those of `paper/`, the README, the guides and the results.
fn pages() -> Vec<(String, String)> {
    let guides = fs::read_dir(root().join("docs")).unwrap();
    let mut paths: Vec<String> =
        guides.map(|entry| format!("docs/{}", entry.unwrap().file_name().display())).collect();
    paths.retain(|path| path.ends_with(".md")); // not the folders of their pictures
    paths.sort();
    paths.extend(
        PAGES.into_iter().chain(["README.md", "experiments/RESULTS.md"]).map(str::to_owned),
    );
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

/// Every Rust file below `dir`, with its path from the repository's root, sorted.
fn sources(dir: &str) -> Vec<(String, String)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join(dir)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
                found.insert(name.clone(), read(&name));
            }
        }
    }
    found.into_iter().collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The words of Rust code: names and numbers.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !is_word(c)).filter(|word| !word.is_empty())
}

/// What stands between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// `a::{b, c}` as `a::b` and `a::c`; anything else as itself.
fn expand(name: &str) -> Vec<String> {
    match name.split_once("::{") {
        Some((path, rest)) => {
            let members = rest.trim_end_matches('}').split(',');
            members.map(|member| format!("{path}::{}", member.trim())).collect()
        }
        None => vec![name.to_owned()],
    }
}

/// The names of the tests in the text of a file.
fn tests_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if let Some(rest) = line.strip_prefix("fn ").filter(|_| marked) {
            names.extend(words(rest).next().map(str::to_owned));
            marked = false;
        }
    }
    names
}

/// Every test of `tests/spec` as `module::test`.
fn equation_tests() -> BTreeSet<String> {
    let named = |(path, text): (String, String)| {
        let module = path.trim_start_matches("tests/").trim_start_matches("spec/");
        let module = module.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
        tests_in(&text).into_iter().map(move |test| format!("{module}::{test}"))
    };
    let files = sources("tests").into_iter().filter(|(path, _)| path.starts_with("tests/spec/"));
    files.flat_map(named).collect()
}

/// Whether `name` fits `pattern`, in which one `*` stands for anything.
fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((head, tail)) => {
            name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail)
        }
    }
}

/// The public code of `src`, looked up by path.
struct Items(BTreeMap<String, String>);

impl Items {
    fn read() -> Self {
        Self(sources("src").into_iter().collect())
    }

    /// Whether `module::item`, `module::Type::member` or `Type::member` exists and is public.
    fn holds(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split("::").collect();
        let files_of = |modules: &[&str]| -> Vec<&String> {
            let path = modules.join("/");
            // The pages name an equation's module without the folder that holds them all.
            [
                format!("src/{path}.rs"),
                format!("src/{path}/mod.rs"),
                format!("src/equations/{path}.rs"),
            ]
            .iter()
            .filter_map(|file| self.0.get(file))
            .collect()
        };
        if !files_of(&parts).is_empty() {
            return true; // a module
        }
        let split = (1..parts.len()).rev().find(|&n| !files_of(&parts[..n]).is_empty());
        let files =
            split.map_or_else(|| self.0.values().collect(), |modules| files_of(&parts[..modules]));
        let rest = &parts[split.unwrap_or(0)..];
        files.iter().any(|text| match rest {
            [item] => split.is_some() && text.lines().any(|line| defines(line, item)),
            [owner, member] => members(text, owner).any(|line| is_member(line, member)),
            _ => false,
        })
    }

    /// Whether code names anything `word`.
    fn names(&self, word: &str) -> bool {
        self.0.values().any(|text| words(text).any(|found| found == word))
    }
}

/// Whether a line at the left margin defines the public `item`, or exports it under that name.
fn defines(line: &str, item: &str) -> bool {
    const KINDS: [&str; 7] = ["fn", "struct", "enum", "const", "static", "trait", "type"];
    let mut words = words(line);
    if line.starts_with("pub use ") {
        return words.any(|word| word == item);
    }
    line.starts_with("pub ")
        && words.any(|word| KINDS.contains(&word))
        && words.next() == Some(item)
}

/// The lines inside the definition of a type and inside its `impl` blocks.
fn members<'a>(text: &'a str, owner: &'a str) -> impl Iterator<Item = &'a str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        if line.starts_with("impl") {
            let head = line.split(" for ").last().unwrap_or_default();
            inside = words(head).any(|word| word == owner);
            return false;
        }
        if !line.starts_with([' ', '}']) && !line.is_empty() {
            inside = defines(line, owner);
            return false;
        }
        if *line == "}" {
            inside = false;
        }
        inside
    })
}

/// Whether a line inside a type defines `member`: a function, constant, field or variant.
fn is_member(line: &str, member: &str) -> bool {
    let line = line.trim();
    if let Some(rest) = line.strip_prefix("pub ") {
        let mut words = words(rest).skip_while(|word| ["fn", "const"].contains(word));
        return words.next() == Some(member);
    }
    // A variant, or a field of one.
    let after = line.strip_prefix(member).unwrap_or("-");
    after.is_empty()
        || after.starts_with([',', ':'])
        || after.starts_with([' ', '(']) && after.len() < 3
}

/// Whether `key` is a setting; one that is unset by default stands in the defaults behind a `# `.
fn is_setting(key: &str) -> bool {
    let uncommented = |line: &str| {
        let is_key =
            |rest: &&str| rest.split_once(" = ").is_some_and(|(key, _)| key.chars().all(is_word));
        line.strip_prefix("# ").filter(is_key).unwrap_or(line).to_owned()
    };
    let text: Vec<String> = DEFAULTS.lines().map(uncommented).collect();
    let mut value = toml::Value::Table(text.join("\n").parse().unwrap());
    for part in key.split('.') {
        match value.get(part) {
            Some(inner) => value = inner.clone(),
            None => return false,
        }
    }
    true
}

#[track_caller]
fn assert_none(what: &str, missing: Vec<String>) {
    assert!(missing.is_empty(), "{what}:\n  {}", missing.join("\n  "));
}

/// The sections of equations.md that list tests, each as its heading and its patterns.
fn test_sections(page: &str) -> Vec<(String, Vec<String>)> {
    let section = |text: &str| {
        let (heading, body) = text.split_once('\n').unwrap_or((text, ""));
        (heading.to_owned(), code(body).map(str::to_owned).collect())
    };
    page.split("\n### ").skip(1).map(section).collect()
}

#[test]
fn every_test_of_an_equation_is_named_and_every_test_named_exists() {
    let tests = equation_tests();
    let sections = test_sections(&read(PAGES[0]));
    let patterns: Vec<&String> = sections.iter().flat_map(|(_, patterns)| patterns).collect();
    let dead = patterns.iter().filter(|pattern| !tests.iter().any(|test| fits(test, pattern)));
    let unnamed = tests.iter().filter(|test| !patterns.iter().any(|pattern| fits(test, pattern)));
    assert_none(
        "tests that paper/equations.md names and that do not exist (-), or that it should name (+)",
        (dead.map(|pattern| format!("- `{pattern}`")))
            .chain(unnamed.map(|test| format!("+ `{test}`")))
            .collect(),
    );
}

#[test]
fn every_equation_has_section_formula_code_and_tests() {
    let page = read(PAGES[0]);
    let items = Items::read();
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| E"))
        .map(|line| line.split('|').map(str::trim).collect())
        .filter(|cells: &Vec<&str>| cells.len() == 6)
        .collect();
    let sections = test_sections(&page);
    for equation in (1..=10).map(|n| format!("E{n}")) {
        let of = |text: &str| words(text).any(|word| word == equation);
        let row = rows.iter().find(|cells| of(cells[1])).expect(&equation);
        assert!(["2.2", "2.3"].contains(&row[2]), "the section of {equation}");
        assert!(row[3].len() > 8, "the formula of {equation}");
        assert!(code(row[4]).flat_map(expand).any(|item| items.holds(&item)), "code of {equation}");
        let tests: usize = sections.iter().filter(|s| of(&s.0)).map(|s| s.1.len()).sum();
        assert!(tests > 0, "tests of {equation}");
    }
}

#[test]
fn code_files_and_deviations_named_in_the_pages_exist() {
    let items = Items::read();
    let tests = equation_tests();
    let deviations = deviations(&read(PAGES[2])).len();
    let mut missing = Vec::new();
    for (page, text) in pages() {
        for name in code(&text.split("```").step_by(2).collect::<String>()).flat_map(expand) {
            let path = name.split(['(', '<']).next().unwrap_or_default();
            let is_file = ["src/", "tests/", "experiments/", "paper/", "benches/", "docs/"]
                .iter()
                .any(|folder| name.starts_with(folder));
            let found = if is_file {
                root().join(&name).exists()
            } else if path.contains("::") {
                items.holds(path) || tests.iter().any(|test| fits(test, path))
            } else {
                true
            };
            if !found {
                missing.push(format!("{page}: {name}"));
            }
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            let from = root().join(&page).parent().map(PathBuf::from).unwrap();
            if !link.starts_with("http") && !from.join(file).exists() {
                missing.push(format!("{page}: link to {link}"));
            }
        }
    }
    let texts = sources("src").into_iter().chain(sources("tests"));
    let more = ["experiments/LOG.md", "paper/reported.toml"].map(|page| (page.into(), read(page)));
    for (path, text) in texts.chain(pages()).chain(more) {
        let numbers = words(&text).filter_map(|word| word.strip_prefix('D')?.parse::<usize>().ok());
        missing.extend(
            numbers.filter(|n| !(1..=deviations).contains(n)).map(|n| format!("{path}: D{n}")),
        );
    }
    assert_none("named, but not there", missing);
}

#[test]
fn every_page_is_one_click_from_a_short_readme() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= 300, "{} lines", readme.lines().count());
    let linked = |path: &String| path == "README.md" || readme.contains(&format!("]({path})"));
    let missing: Vec<String> =
        pages().into_iter().map(|(path, _)| path).filter(|path| !linked(path)).collect();
    assert_none("README.md has no link to", missing);
}

#[test]
fn the_reason_for_each_dependency_stands_above_it() {
    let text = read("Cargo.toml");
    let lines: Vec<&str> = text.lines().collect();
    let mut dependencies = 0;
    let mut inside = false;
    for (i, line) in lines.iter().enumerate() {
        if line.starts_with('[') {
            inside = line.contains("dependencies]");
        } else if inside && line.contains(" = ") {
            dependencies += 1;
            assert!(lines[i - 1].starts_with("# "), "{line}: say above what it is for");
        }
    }
    assert!(dependencies > 20, "{dependencies} dependencies");
}

#[test]
fn names_in_the_notation_are_those_of_the_code() {
    let items = Items::read();
    let page = read(PAGES[1]);
    let rows = page.lines().filter(|line| line.starts_with("| ")).skip(2);
    let names = rows.flat_map(|row| code(row.split(" | ").nth(1).unwrap_or_default()));
    let missing: Vec<String> = names
        .filter(|name| match name.contains("::") {
            true => !items.holds(name),
            false => words(name).any(|word| !items.names(word)),
        })
        .map(str::to_owned)
        .collect();
    assert_none("paper/notation.md names what is not in src", missing);
}

/// A numbered departure: its name, its text, and the lines that begin with `- Setting:` and `- Test:`.
struct Deviation {
    name: String,
    setting: String,
    tests: String,
}

fn deviations(page: &str) -> Vec<Deviation> {
    let deviation = |text: &str| {
        let text = text.split("\n## ").next().unwrap_or_default();
        let line = |label: &str| {
            let parts: Vec<&str> = text.split(&format!("\n- {label}: ")).skip(1).collect();
            assert_eq!(parts.len(), 1, "one line `- {label}:` in D{text}");
            parts[0].split("\n- ").next().unwrap_or_default().to_owned()
        };
        let name = text.split('.').next().unwrap_or_default();
        Deviation { name: format!("D{name}"), setting: line("Setting"), tests: line("Test") }
    };
    page.split("\n**D").skip(1).map(deviation).collect()
}

#[test]
fn every_deviation_has_its_setting_and_a_test_that_pins_it() {
    let equation_tests = equation_tests();
    let data: String = sources("src/data").into_iter().map(|(_, text)| text).collect();
    let mut missing = Vec::new();
    for (index, Deviation { name, setting, tests }) in
        deviations(&read(PAGES[2])).into_iter().enumerate()
    {
        assert_eq!(name, format!("D{}", index + 1), "deviations are numbered in order");
        let of_the_model = setting.contains("`tokenizer_config.json`");
        let keys = code(&setting)
            .filter(|key| !key.contains("::") && !key.contains('/') && !key.ends_with(".json"));
        let keys: Vec<&str> = if setting.starts_with("none") { vec![] } else { keys.collect() };
        if keys.is_empty() && !setting.starts_with("none") {
            missing.push(format!("{name}: a setting, or `none`"));
        }
        for key in keys {
            let exists = match key.split_once(" = ") {
                Some((key, _)) if !is_setting(key) => false,
                Some(_) => Settings::resolve(&[], &[key.to_owned()]).is_ok(),
                None if of_the_model => words(&data).any(|word| word == key),
                None => is_setting(key),
            };
            if !exists {
                missing.push(format!("{name}: the setting {key}"));
            }
        }
        let mut file = String::new();
        let mut pinned = false;
        for test in code(&tests) {
            if test.ends_with(".rs") {
                file = if root().join(test).exists() { read(test) } else { String::new() };
                continue;
            }
            let exists = match test.contains("::") {
                true => equation_tests.contains(test),
                false => tests_in(&file).iter().any(|found| found == test),
            };
            pinned |= exists;
            if !exists {
                missing.push(format!("{name}: the test {test}"));
            }
        }
        if !pinned {
            missing.push(format!("{name}: a test"));
        }
    }
    assert_none("paper/deviations.md names what does not exist, or leaves out", missing);
}

#[test]
fn what_does_not_exist_is_not_found() {
    let items = Items::read();
    for there in [
        "segmentation",
        "segmentation::entropy",
        "systems::reward_model::Segmenter::cut",
        "normalizer::Normalizer::mean",
        "normalizer::Normalizer::Scalar",
        "Normalizer::Scalar",
        "kl::AdaptiveKl::target",
        "gae::WHITENING_EPSILON",
        "run::Context", // exported from another module
    ] {
        assert!(items.holds(there), "{there}");
    }
    for absent in [
        "segmentations",
        "segmentation::entropies",
        "gae::entropy",
        "systems::reward_model::Segmenter::score", // RewardModel's
        "normalizer::rms",                         // private
        "normalizer::Normalizer::slope",           // Line's
        "Normalizer::Vector",
        "Scalar",
    ] {
        assert!(!items.holds(absent), "{absent}");
    }
    assert!(fits("gae::a_b_c", "gae::a_*") && fits("gae::a_b_c", "gae::*_c"));
    assert!(!fits("gae::a_b_c", "gae::a") && !fits("gae::a", "gae::a*a"));
    assert!(
        is_setting("ppo.kl_target") && is_setting("normalizer.std_floor") && is_setting("sampling")
    );
    assert!(!is_setting("ppo.kl_targets") && !is_setting("kl_target") && !is_setting("ppo.clip.x"));
    assert_eq!(
        tests_in("#[test]\nfn a() {}\nfn b() {}\n    #[test]\n    #[ignore]\n    fn c("),
        ["a", "c"]
    );
    assert_eq!(expand("a::{b, c}"), ["a::b", "a::c"]);
}

// The reported figures.

#[test]
fn the_reported_tables_are_those_of_the_paper_and_one_of_the_readme() {
    let sources: Vec<Source> = reported().tables.iter().map(|table| table.source).collect();
    let paper = Source::PaperTable;
    let expected =
        [paper(1), paper(2), paper(3), Source::OfficialReadme, paper(4), paper(5), paper(6)];
    assert_eq!(sources, expected);
    for table in &reported().tables {
        let mut subjects: Vec<String> = table.rows.iter().map(|row| row.of.to_string()).collect();
        assert!(subjects.len() >= 3 && subjects.iter().all(|subject| !subject.is_empty()));
        subjects.sort();
        subjects.dedup();
        assert_eq!(subjects.len(), table.rows.len(), "one row a subject in {}", table.source);
        for row in &table.rows {
            let shares = [row.alpaca_lc, row.alpaca_wr, row.arena_hard, row.open_llm];
            assert!(shares.iter().flatten().all(|share| (0.0..100.0).contains(share)));
            assert!(row.mt_bench.is_none_or(|grade| (1.0..=10.0).contains(&grade)));
            assert!(shares.iter().any(Option::is_some), "{}: {}", table.source, row.of);
        }
    }
    let methods: Vec<Subject> = METHODS.into_iter().map(Subject::Method).collect();
    let first: Vec<Subject> = reported().tables[0].rows.iter().map(|row| row.of).collect();
    assert_eq!(first, [&[Subject::Base], &methods[..]].concat(), "all methods, in their order");
}

#[test]
fn the_tables_agree_on_the_segment_method_and_mark_the_suspect_value() {
    let tables = &reported().tables;
    let (methods, normalizers, interpolations) = (&tables[0], &tables[4], &tables[5]);
    let figures =
        |row: &segment_rlhf::grid::reported::Row| [row.alpaca_lc, row.alpaca_wr, row.arena_hard];
    let segment = methods.row(Subject::Method(Method::SEGMENT)).unwrap();
    assert_eq!(figures(segment), [Some(31.05), Some(34.53), Some(34.0)]);
    let regression = normalizers.row(Subject::Normalizer(NormalizerKind::Regression)).unwrap();
    assert_eq!(figures(regression), figures(segment));
    let even = interpolations.row(Subject::Interpolation(Default::default())).unwrap();
    assert_eq!(figures(even), figures(segment));
    let suspect: Vec<&str> = (tables.iter().flat_map(|table| &table.rows))
        .filter(|row| row.note.is_some())
        .map(|row| if row.alpaca_wr == even.alpaca_wr { "equal" } else { "other" })
        .collect();
    assert_eq!(suspect, ["equal"], "only the win rate that repeats the even split's");
    let checked: Vec<usize> =
        tables.iter().map(|table| table.rows.iter().filter(|row| row.checked).count()).collect();
    assert_eq!(checked, [3, 0, 3, 0, 0, 0, 0]);
    let token = tables[3].row(Subject::Method(Method::TOKEN)).unwrap();
    assert_eq!((token.alpaca_lc, token.alpaca_wr, token.mt_bench), (Some(45.81), None, Some(7.93)));
}

#[test]
fn released_fits_are_usable_but_for_the_one_that_is_noted() {
    let fits = &reported().released_fits;
    assert_eq!(fits.len(), 10);
    for fit in fits {
        let usable = fit.normalizer.check(1.0 / 1024.0).is_ok();
        assert_eq!(usable, fit.note.is_none(), "{} {:?}", fit.model, fit.actions);
        let scalar = matches!(fit.normalizer, Normalizer::Scalar { .. });
        assert_eq!(scalar, fit.actions == Rule::Whole);
        let named =
            |table: &&segment_rlhf::grid::reported::Table| table.model.as_ref() == Some(&fit.model);
        assert!(reported().tables.iter().any(|table| named(&table)), "{}", fit.model);
    }
    assert_eq!(fits[0].actions, Rule::Entropy { cutoff: 1.75 });
    assert_eq!(fits[0].normalizer.mean(1.0), 0.4705);
}

#[test]
fn the_official_settings_are_settings() {
    let text = toml::to_string(&reported().settings).unwrap();
    let settings = Settings::resolve(&[("official".into(), text)], &[]).unwrap();
    assert_eq!(settings.ppo.kl_coefficient, 0.01);
    assert_eq!((settings.ppo.actor.learning_rate, settings.ppo.critic.learning_rate), (5e-7, 9e-6));
    assert_eq!((settings.ppo.rollouts, settings.ppo.minibatch), (1024, 128));
    assert_eq!(settings.sampling(), Sampling::PLAIN);
}

#[test]
fn the_paper_s_tables_are_printed_with_what_is_known_of_them() {
    let program = env!("CARGO_BIN_EXE_segment-rlhf");
    let output = std::process::Command::new(program).arg("reported").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "Table 1 of the paper, Phi-3-mini Instruct\n",
        "| bandit as segment |           14.39 |  6.46 |        691 |         11.1 |    308 |     6.61 |",
        "The official README, Llama-3.1-8B Instruct\n",
        "| last token    |           25.98 | 34.53 |         39.1 |",
        "Note on last token: its win rate is that of the even split: suspect.\n",
        "Table 6 of the paper\n",
        "Figure 4 of the paper\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// crates.io gets what the program is built from, and nothing else.
#[test]
fn the_package_holds_what_the_sources_include() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let packed = manifest["package"]["include"].as_array().unwrap();
    let packed: BTreeSet<&str> = packed.iter().map(|path| &path.as_str().unwrap()[1..]).collect();
    let mut needed: BTreeSet<String> =
        ["src", "build.rs", "README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"]
            .map(str::to_owned)
            .into();
    for (path, text) in sources("src") {
        for part in text.split("include_str!(\"").skip(1) {
            let file = part.split('"').next().unwrap();
            let path =
                root().join(path.rsplit_once('/').unwrap().0).join(file).canonicalize().unwrap();
            let path = path.strip_prefix(root().canonicalize().unwrap()).unwrap();
            needed.extend((!path.starts_with("src")).then(|| path.to_str().unwrap().to_owned()));
        }
    }
    assert_eq!(packed, needed.iter().map(String::as_str).collect());
    assert!(packed.iter().all(|path| root().join(path).exists()));
}

// Deviations that belong to no equation.

/// D23: the coefficient moves by the mean KL of a response, the sum over its tokens.
#[test]
fn the_adaptive_controller_observes_the_kl_of_a_response() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = Settings::read(&root().join("tests/cli/tiny.toml")).unwrap();
    let sets = ["ppo.kl_target=0.001", "ppo.kl_horizon=20", "ppo.interpolation=even_split"];
    let settings = Settings::resolve(&[tiny], &sets.map(str::to_owned)).unwrap();
    let device = segment_rlhf::device::DeviceName::Flex;
    let context = Context::new(settings, device, dir.path().to_owned()).unwrap();
    sft::run(&context).unwrap();
    preferences::run(&context).unwrap();
    reward::run(&context).unwrap();
    fit_normalizer::run(&context).unwrap();
    online::run(&context).unwrap();
    let path = context.dir(Stage::Ppo).join("metrics.jsonl");
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<IterationMetrics> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for pair in lines.windows(2) {
        // No reward is clipped here: the KL that is taken off a response's reward is the one observed.
        let taken_off = pair[0].reward - pair[0].token_reward;
        assert!((taken_off - pair[0].kl_coefficient * pair[0].kl_k1).abs() < 1e-9);
        let mut adaptive =
            AdaptiveKl { coefficient: pair[0].kl_coefficient, target: 0.001, horizon: 20.0 };
        adaptive.update(pair[0].kl_k1, context.settings.ppo.rollouts);
        assert_eq!(pair[1].kl_coefficient, adaptive.coefficient);
    }
    assert!(lines[0].kl_coefficient != lines[lines.len() - 1].kl_coefficient);
}

/// D28: 2e-4 where the prototype had 3e-4.
#[test]
fn the_actor_learns_at_two_thirds_of_the_prototype_s_rate() {
    let page = read("paper/deviations.md");
    let heading = page.lines().find(|line| line.starts_with("**D28. ")).unwrap();
    let words = heading.split_whitespace().map(|word| word.trim_matches(['.', '*']));
    let rates: Vec<f64> = words.filter_map(|word| word.parse().ok()).collect();
    let [ours, prototype] = rates[..] else { panic!("two rates in {heading}") };
    assert!((ours / prototype - 2.0 / 3.0).abs() < 1e-12, "{heading}");
    for preset in [None, Some(Preset::Quick), Some(Preset::Full)] {
        let overlays: Vec<_> = preset.map(Preset::overlay).into_iter().collect();
        let settings = Settings::resolve(&overlays, &[]).unwrap();
        assert_eq!(settings.ppo.actor.learning_rate, ours, "{heading}");
    }
}

/// D29: N(0, 1/inputs) for linear maps, N(0, 1) for the embedding.
#[test]
fn fresh_weights_keep_the_scale_of_activations() {
    let config = Settings::defaults().model.config(128, 16);
    let model = CausalLm::fresh(&config, 0, &Device::flex());
    for (name, data) in checkpoint::parameters(&model) {
        let values: Vec<f64> = data.iter::<f64>().collect();
        let [.., inputs] = data.shape()[..] else { panic!("{name} has a shape") };
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let square = values.iter().map(|value| value * value).sum::<f64>() / n;
        if name.contains("norm") {
            assert!(values.iter().all(|&value| value == 1.0), "{name}");
            continue;
        }
        let variance = if name.contains("embed") { 1.0 } else { 1.0 / inputs as f64 };
        // Within five standard errors: σ / √n of a mean, σ² √(2/n) of a mean square.
        assert!(mean.abs() < 5.0 * (variance / n).sqrt(), "{name}: mean {mean}");
        let error = 5.0 * variance * (2.0 / n).sqrt();
        assert!((square - variance).abs() < error, "{name}: {square}, expected {variance}");
    }
}
