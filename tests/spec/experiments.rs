//! Experiment files: what they give, and what is refused.

use std::fs;
use std::path::Path;

use segment_rlhf::grid::file::{Planned, read};
use segment_rlhf::settings::Settings;
use segment_rlhf::systems::decode::Kind;
use tempfile::TempDir;

/// The experiments of a file of the repository.
fn own(name: &str) -> Vec<Planned> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
    read(&[folder.join(name)], &[], &[]).unwrap()
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// The experiment of this text over a base, with a user's settings file and `--set`.
fn planned(text: &str, sets: &[&str]) -> Planned {
    let dir = folder(&[("own.toml", text), ("base.toml", "[ppo]\niterations = 5\nepochs = 5")]);
    let overlay = ("user.toml".to_owned(), "[ppo]\nepochs = 6\nclip = 0.6".to_owned());
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    read(&[dir.path().join("own.toml")], &[overlay], &sets).unwrap().remove(0)
}

/// The error of the first of these files, without the name of their folder.
fn refused(files: &[(&str, &str)]) -> String {
    let dir = folder(files);
    let error = read(&[dir.path().join(files[0].0)], &[], &[]).unwrap_err().to_string();
    error.replace(&format!("{}/", dir.path().display()), "")
}

fn names(planned: &Planned) -> Vec<&str> {
    planned.arms.iter().map(|arm| arm.name.as_str()).collect()
}

#[test]
fn settings_are_laid_over_each_other_from_the_base_to_the_arm() {
    let text = "title = 't'\nbase = 'base.toml'\n[arms]\na = {}\nb = { ppo.rollouts = 8 }";
    let found = planned(text, &["ppo.clip=0.7", "ppo.rollouts=7", "seed=3"]);
    let [a, b] = [0, 1].map(|i| &found.arms[i].settings);
    assert_eq!((a.ppo.iterations, a.ppo.epochs, a.ppo.clip), (5, 6, 0.7));
    assert_eq!((a.ppo.rollouts, b.ppo.rollouts), (7, 8));
    assert_eq!((a.seed, b.seed), (3, 3));
    assert_eq!(found.arms[1].changes, "ppo.rollouts = 8".parse().unwrap());
    assert!(found.arms[0].changes.is_empty());
    assert_eq!((found.name.as_str(), found.title.as_str()), ("own", "t"));
}

#[test]
fn several_files_give_their_experiments_in_order_and_may_not_share_a_name() {
    let [one, two] = ["1", "2"].map(|name| format!("title = '{name}'\n[arms]\na = {{}}"));
    let dir = folder(&[("one.toml", &one), ("two.toml", &two)]);
    let path = |name| dir.path().join(name);
    let titles: Vec<String> = (read(&[path("two.toml"), path("one.toml")], &[], &[]).unwrap())
        .into_iter()
        .map(|planned| planned.title)
        .collect();
    assert_eq!(titles, ["2", "1"]);
    let error = read(&[path("one.toml"), path("one.toml")], &[], &[]).unwrap_err().to_string();
    assert!(error.contains("one.toml: a second experiment \"one\", after "), "{error}");
}

#[test]
fn every_arm_is_crossed_with_every_value_of_every_axis() {
    let axes = "[axes]\n'task.pairs' = [10, 20]\nmethod = ['token', 'segment']";
    let found = planned(&format!("title = 't'\n{axes}"), &[]);
    let at = ["pairs 10, method token", "pairs 10, method segment"];
    assert_eq!(names(&found)[..2], at);
    assert_eq!(found.arms.len(), 4);
    assert_eq!(found.arms[3].settings.task.pairs, 20);
    assert_eq!(found.arms[3].changes, "task.pairs = 20\nmethod = 'segment'".parse().unwrap());

    let arms = "[arms]\n\"long\" = { ppo.iterations = 9 }\nshort = { ppo.iterations = 1 }";
    let head = "title = 't'\nours = ['long', 'short, eos included']";
    let axes = "[axes]\n'segmentation.eos' = ['included', 'excluded']";
    let found = planned(&format!("{head}\n{arms}\n{axes}"), &[]);
    let expected =
        ["long, eos included", "long, eos excluded", "short, eos included", "short, eos excluded"];
    assert_eq!(names(&found), expected);
    let ours: Vec<bool> = found.arms.iter().map(|arm| arm.ours).collect();
    assert_eq!(ours, [true, true, true, false]);
    assert_eq!(found.arms[2].settings.ppo.iterations, 1);
}

#[test]
fn the_experiments_that_come_with_the_program_hold() {
    let all = own("all.toml");
    let names: Vec<&str> = all.iter().map(|planned| planned.name.as_str()).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
    let mut others: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .filter(|path| fs::read_to_string(path).unwrap().starts_with("title = "))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .filter(|name| name != "all" && !names.contains(&name.as_str()))
        .collect();
    others.sort();
    assert_eq!(
        others,
        [
            "asr",
            "cards",
            "dpo",
            "drlc",
            "group",
            "lens",
            "noise",
            "remedy",
            "spo",
            "spo_ablation",
            "systems"
        ],
        "all.toml lacks what has a run of its own"
    );
    let ours: Vec<bool> = own("noise.toml")[0].arms.iter().map(|arm| arm.ours).collect();
    assert_eq!(ours, [false, true, false, true, false, true], "the paper's temperature is 1");
    assert_eq!(all[0].arms.len(), 6, "the methods of table 1");
    assert_eq!((all[0].paper_table, all[1].paper_table), (Some(1), Some(4)));
}

#[test]
fn decoders_are_compared_without_a_policy_and_with_two_reward_models() {
    let cards = own("cards.toml").remove(0);
    let kinds: Vec<Kind> = cards.arms.iter().map(|arm| arm.settings.decode.kind).collect();
    assert_eq!(kinds[..3], [Kind::Sample, Kind::Cards, Kind::Cards]);
    assert_eq!(kinds.len(), 9);
    assert!(cards.arms.iter().all(|arm| arm.settings.reference_writes()));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/cards-official.toml");
    let official = Settings::resolve(&[Settings::read(&path).unwrap()], &[]).unwrap().decode;
    assert_eq!((official.kind, official.target, official.rejects), (Kind::Cards, 8.5, 20));
}

#[test]
fn experiments_share_the_arms_that_are_the_paper_s_own_choice() {
    let all = own("all.toml");
    let settings = |experiment: &str, arm: &str| {
        let planned = all.iter().find(|planned| planned.name == experiment).unwrap();
        let found = planned.arms.iter().find(|own| own.name == arm);
        &found.unwrap_or_else(|| panic!("{experiment}: {:?}", names(planned))).settings
    };
    let segment = settings("table1", "segment");
    for (experiment, arm) in [
        ("table4", "regression"),
        ("table5", "even split"),
        ("figure4", "entropy_cutoff 1.2"),
        ("aggregation", "average"),
        ("regression", "huber"),
        ("pairs", "segment, pairs 4000"),
        ("horizon", "segment, iterations 12"),
        ("length_neutral", "segment"),
    ] {
        assert_eq!(settings(experiment, arm), segment, "{experiment}: {arm}");
    }
    for method in ["bandit", "sentence", "token"] {
        let own = settings("table1", method);
        assert_eq!(settings("pairs", &format!("{method}, pairs 4000")), own);
        assert_eq!(settings("horizon", &format!("{method}, iterations 12")), own);
    }
    assert_eq!(settings("length_neutral", "token"), settings("table1", "token"));
}

#[test]
fn toml_that_is_no_experiment_is_named_with_its_line() {
    let twice = "title = 't'\n[arms]\na = { method = 'token' }\na = { method = 'segment' }";
    assert_eq!(refused(&[("own.toml", twice)]), "own.toml:4: duplicate key");
    let unknown = refused(&[("own.toml", "title = 't'\n\narm = 3")]);
    assert!(unknown.starts_with("own.toml:3: unknown field `arm`, expected one of"), "{unknown}");
    let kind = refused(&[("own.toml", "title = 't'\n[arms]\na = {}\nb = 'token'")]);
    assert!(kind.starts_with("own.toml:4: invalid type: string \"token\""), "{kind}");
    let axis = refused(&[("own.toml", "title = 't'\n[axes]\ntask.pairs = [1]")]);
    assert!(axis.starts_with("own.toml:3: invalid type: map, expected a sequence"), "{axis}");
}

#[test]
fn settings_that_are_refused_name_the_arm_or_the_axis() {
    let arms = "title = 't'\n[arms]\na = {}\n";
    let unknown = refused(&[("own.toml", &format!("{arms}b = {{ ppo.clipp = 1 }}"))]);
    let nearest = "own.toml:4: arm \"b\": unknown field `ppo.clipp`: did you mean `ppo.clip`?";
    assert_eq!(unknown, nearest);
    let range = refused(&[("own.toml", &format!("{arms}b = {{ ppo.clip = 0.0 }}"))]);
    assert_eq!(range, "own.toml:4: arm \"b\": ppo.clip = 0; expected above 0");
    let axis = refused(&[("own.toml", &format!("{arms}[axes]\n'task.pairs' = [1, 0]"))]);
    assert!(axis.starts_with("own.toml:5: axis \"task.pairs\": task.pairs = 0;"), "{axis}");
    let base = ("base.toml", "[ppo]\nclipp = 1");
    let based = refused(&[("own.toml", &format!("base = 'base.toml'\n{arms}")), base]);
    assert_eq!(based, "base.toml:2: unknown field `ppo.clipp`: did you mean `ppo.clip`?");
}

#[test]
fn a_seed_is_no_arm_s_to_set() {
    let seed = refused(&[("own.toml", "title = 't'\n[axes]\nseed = [1, 2]")]);
    assert!(seed.starts_with("own.toml:3: axis \"seed\": `seed` holds for all arms"), "{seed}");
    let jobs = refused(&[("own.toml", "title = 't'\n[arms]\na = { reproduce.jobs = 2 }")]);
    assert!(jobs.starts_with("own.toml:3: arm \"a\": `reproduce` holds for all arms"), "{jobs}");
}

#[test]
fn an_experiment_without_arms_or_values_is_refused() {
    for text in ["title = 't'", "title = 't'\n[arms]\n[axes]", "title = 't'\ninclude = []"] {
        assert!(refused(&[("own.toml", text)]).starts_with("own.toml: no experiment; give"));
    }
    let axis = "title = 't'\n[arms]\na = {}\n[axes]\n'task.pairs' = []";
    let expected = "own.toml:5: the axis \"task.pairs\" has no values; give at least one";
    assert_eq!(refused(&[("own.toml", axis)]), expected);
}

#[test]
fn an_arm_of_ours_is_one_of_the_arms() {
    let text = "title = 't'\nours = [\n  'a',\n  'c',\n]\n[arms]\na = {}";
    let expected = "own.toml:4: `ours` names \"c\", but the arms are [\"a\"]";
    assert_eq!(refused(&[("own.toml", text)]), expected);
}

#[test]
fn two_arms_with_the_same_settings_are_refused() {
    let text = "title = 't'\n[arms]\na = {}\nb = { method = 'segment' }";
    let expected = "own.toml:4: \"b\" has the same settings as \"a\"; take one of them out";
    assert!(refused(&[("own.toml", text)]).starts_with(expected));
}

#[test]
fn a_file_that_cannot_be_read_says_who_asked_for_it() {
    let missing = |text| refused(&[("own.toml", text), ("other.toml", "")]);
    let base = missing("title = 't'\nbase = 'none.toml'\n[arms]\na = {}");
    assert!(base.starts_with("none.toml: cannot read: No such file"), "{base}");
    assert!(base.ends_with("; own.toml:2 names it as base"), "{base}");
    let include = missing("title = 't'\ninclude = [\n  'none.toml',\n]");
    assert!(include.ends_with("; own.toml:3 includes it"), "{include}");
    let alone = read(&["none.toml"], &[], &[]).unwrap_err().to_string();
    assert!(alone.ends_with("expected an experiment file, such as experiments/table1.toml"));
}

#[test]
fn a_file_includes_others_once_and_has_nothing_of_its_own() {
    let one = ("one.toml", "title = '1'\n[arms]\na = {}");
    let two = ("two.toml", "title = '2'\ninclude = ['one.toml']");
    let text = "title = 't'\ninclude = ['two.toml', 'one.toml']";
    let expected = "one.toml: a second experiment \"one\", after one.toml; the stem";
    assert!(refused(&[("own.toml", text), one, two]).starts_with(expected));
    let text = "title = 't'\ninclude = ['one.toml']\n[arms]\na = {}";
    let expected = "own.toml:3: `arms` beside `include`; a file that includes others";
    assert!(refused(&[("own.toml", text), one]).starts_with(expected));
}

#[test]
fn a_circle_of_files_is_refused() {
    let own = ("own.toml", "title = 't'\ninclude = ['two.toml']");
    let two = ("two.toml", "title = '2'\ninclude = [\n  './own.toml',\n]");
    assert_eq!(
        refused(&[own, two]),
        "two.toml:3: ./own.toml includes itself; take one of them out"
    );
}
