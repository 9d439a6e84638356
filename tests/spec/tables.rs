//! The statistics of a grid as people and programs read them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use segment_rlhf::grid::analysis::{Analysis, Column, Quantity};
use segment_rlhf::grid::reproduce;
use segment_rlhf::grid::results::{Figures, Results, State};
use segment_rlhf::grid::tables::{MARKERS, markdown, readme, write};

use crate::synthetic;

/// All files of a grid's statistics by name.
fn files(results: &Results) -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().unwrap();
    write(&Analysis::of(results), results, dir.path()).unwrap();
    let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
    let read = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path()).unwrap();
        (entry.file_name().into_string().unwrap(), text)
    };
    entries.map(read).collect()
}

/// A reader of CSV by the letter of RFC 4180: each line by the names of the header.
fn csv(text: &str) -> Vec<BTreeMap<String, String>> {
    let (mut rows, mut row, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut quoted, mut chars) = (false, text.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            _ => field.push(c),
        }
    }
    assert!(!quoted && field.is_empty() && row.is_empty(), "the last line ends");
    let header = rows.remove(0);
    let named = |row: Vec<String>| {
        assert_eq!(row.len(), header.len(), "{row:?}");
        header.iter().cloned().zip(row).collect()
    };
    rows.into_iter().map(named).collect()
}

/// The line of a Markdown text that starts with this cell, under the header that starts with `header`.
fn row<'a>(text: &'a str, header: &str, first: &str) -> Vec<&'a str> {
    let cells =
        |line: &'a str| line.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>();
    let lines = text.lines().skip_while(|line| !line.starts_with(&format!("| {header}")));
    lines.map(cells).find(|cells| cells[0] == first).unwrap()
}

#[test]
fn a_row_gives_means_with_standard_errors_and_the_interval_of_gold() {
    let mut results = synthetic::results();
    let id = |results: &Results, seed: usize| results.experiments[0].arms[2].cells[seed].clone();
    for (seed, (gold, tokens)) in [(1.0, 40.0), (2.0, 40.0), (3.0, 43.0)].into_iter().enumerate() {
        let id = id(&results, seed);
        let cell = results.cells.iter_mut().find(|cell| cell.id == id).unwrap();
        let State::Finished(figures) = &mut cell.state else { panic!("finished") };
        figures.evaluation.after.gold = Some(gold);
        figures.evaluation.after.tokens = tokens;
    }
    let text = markdown(&Analysis::of(&results));
    let row = row(&text, "arm", "token");
    // 1/√3 = 0.577; times t = 4.303: 2.484.
    assert_eq!(row[..4], ["token", "3", "2.00 ± 0.58", "[-0.48, 4.48]"]);
    assert!(row.contains(&"41.00 ± 1.00"), "{row:?}");
}

#[test]
fn the_papers_figures_and_the_verdict_stand_beside_ours() {
    let text = markdown(&Analysis::of(&synthetic::results()));
    let of = row(&text, "the paper", "segment > bandit");
    assert_eq!(of[1..4], ["31.05 > 27.05", "34.0 > 31.3", "7.65 > 7.46"]);
    assert_eq!((of[5], of[7]), ("as in the paper", "as in the paper"));
    assert!(of[4].starts_with("+0.") && of[4].ends_with("]\\*"), "{of:?}");
    let of = row(&text, "the paper", "bandit > sentence");
    assert_eq!((of[1], of[2], of[5]), ("27.05 > 25.56", "31.3 < 32.8", "opposite"));
    assert_eq!(row(&text, "the paper", "segment > token")[5], "undecided");
}

#[test]
fn orderings_are_counted_and_named_by_verdict() {
    let analysis = Analysis::of(&synthetic::results());
    let text = readme(&analysis);
    assert!(
        text.contains("Of the 6 orderings that table 4 of the paper claims, by gold reward:\n\n")
    );
    let line = |start: &str| text.lines().filter(|l| l.starts_with(start)).collect::<Vec<_>>();
    // Tables 1, 4 and 5.
    let same = line("- as in the paper, the interval excludes 0 ");
    assert_eq!(
        same[1..],
        [
            "- as in the paper, the interval excludes 0 (2): regression > none, regression > last",
            "- as in the paper, the interval excludes 0 (0)",
        ]
    );
    let undecided = line("- undecided, the interval does not exclude 0 ");
    assert!(undecided[0].contains("segment > token"), "{undecided:?}");
    let opposite = line("- opposite, the interval excludes 0 ");
    assert!(opposite[0].contains(": bandit > sentence"), "{opposite:?}");
    assert!(same.len() == 3 && undecided.len() == 3 && opposite.len() == 3);
    // Each is named once, and the sum over the tables stands above them.
    let claims = analysis.claims(|ordering| ordering.gold).unwrap().text("gold reward");
    assert!(text.contains(&format!("\n\n{claims}\n\n")));
    assert!(markdown(&analysis).contains(&format!("\n\n{claims}\n\n")));
}

#[test]
fn a_difference_is_marked_where_it_excludes_0_and_where_it_is_none() {
    let mut results = synthetic::results();
    let with = |results: &mut Results, arm: usize, gold: [f64; 3]| {
        let ids = results.experiments[2].arms[arm].cells.clone();
        for (id, gold) in ids.iter().zip(gold) {
            let cell = results.cells.iter_mut().find(|cell| cell.id == *id).unwrap();
            let State::Finished(figures) = &mut cell.state else { panic!("finished") };
            figures.evaluation.after.gold = Some(gold);
        }
    };
    with(&mut results, 0, [1.0, 2.0, 3.0]);
    with(&mut results, 1, [1.01, 2.0, 2.99]); // within ± 0.03 of it
    with(&mut results, 2, [2.0, 3.0, 4.1]);
    let text = markdown(&Analysis::of(&results));
    let gold = |pair: &str| row(&text, "difference", pair)[1].to_owned();
    let text5 = text.split("## Table 5").nth(1).unwrap();
    assert_eq!(row(text5, "difference", "repeat − last token")[1], "+0.00 [-0.02, +0.02] ≈");
    assert_eq!(row(text5, "difference", "even split − last token")[1], "+1.03 [+0.89, +1.18]\\*");
    assert!(!gold("segment − bandit").contains('≈'));
    let csv = csv(&files(&results)["differences.csv"]);
    let of = |arm: &str, baseline: &str, quantity: &str| {
        let is = |row: &&BTreeMap<String, String>| {
            (&row["arm"][..], &row["baseline"][..], &row["quantity"][..])
                == (arm, baseline, quantity)
        };
        csv.iter().find(is).unwrap()["no_difference"].clone()
    };
    assert_eq!(of("repeat", "last token", "gold"), "true");
    assert_eq!(of("even split", "last token", "gold"), "false");
    assert_eq!(of("repeat", "last token", "kl"), "");
    let ordering = self::csv(&files(&results)["orderings.csv"]);
    let ordering =
        ordering.iter().find(|row| row["better"] == "repeat" || row["worse"] == "repeat");
    assert!(ordering.unwrap().contains_key("no_difference"));
}

#[test]
fn a_kl_that_some_seeds_do_not_reach_has_their_number_in_place_of_a_figure() {
    let mut results = synthetic::results();
    let id = results.experiments[0].arms[2].cells[1].clone();
    let cell = results.cells.iter_mut().find(|cell| cell.id == id).unwrap();
    let State::Finished(figures) = &mut cell.state else { panic!("finished") };
    figures.evaluations.iter_mut().for_each(|line| line.evaluation.kl = 0.0);
    let text = markdown(&Analysis::of(&results));
    let matched = text.split("### Gold reward at matched KL").nth(1).unwrap();
    let header = row(matched, "arm", "arm");
    assert_eq!(header[1], "gold at KL 0.25");
    let token = row(matched, "arm", "token");
    assert_eq!(token[1..=4], ["– (2 of 3)"; 4]);
    assert_eq!(row(matched, "arm", "bandit")[3], "– (0 of 3)"); // 1 nat, which its KL of 0.6 stays below
    assert!(row(matched, "arm", "segment")[1].contains(" ± "));
}

#[test]
fn shares_say_how_many_they_are_of() {
    let mut results = synthetic::results();
    let text = markdown(&Analysis::of(&results));
    for title in ["win rate (n 384)", "LC win rate (n 384)", "RM accuracy (n 800)"] {
        assert!(row(&text, "arm", "arm").contains(&title), "{title}");
    }
    assert!(text.contains("| RM gold accuracy (n 790) |"));
    for arm in results.experiments.iter_mut().flat_map(|e| &mut e.arms) {
        arm.cells.truncate(1);
    }
    for cell in &mut results.cells {
        let State::Finished(figures) = &mut cell.state else { continue };
        figures.evaluation.after.responses = 1;
        figures.evaluation.after.win_rate = Some(0.0);
    }
    let text = markdown(&Analysis::of(&results));
    let column = row(&text, "arm", "arm").iter().position(|title| *title == "win rate (n 1)");
    let token = row(&text, "arm", "token");
    assert_eq!(token[column.unwrap()..][..2], ["0 of 1", "–"]);
}

#[test]
fn the_strength_of_the_kl_term_is_shown_by_arm() {
    let text = markdown(&Analysis::of(&synthetic::results()));
    let section = text.split("### The KL term").nth(1).unwrap();
    assert!(section.trim_start().starts_with("One β is not one strength"));
    assert_eq!(
        row(section, "arm", "arm")[1..],
        ["spread of A, first", "spread of A", "β / spread"]
    );
    // The bandit's advantages spread from 4 to 3.56, the token's from 2 to 1.56; the mean of β 0.1 over each.
    assert_eq!(row(section, "arm", "bandit")[1..], ["4.00 ± 0.00", "3.78 ± 0.00", "0.026 ± 0.000"]);
    assert_eq!(row(section, "arm", "token")[1..], ["2.00 ± 0.00", "1.78 ± 0.00", "0.057 ± 0.000"]);
}

#[test]
fn whole_responses_and_segments_have_their_own_correlations() {
    let text = markdown(&Analysis::of(&synthetic::results()));
    let header = row(&text, "arm", "arm");
    let place = |title: &str| header.iter().position(|of| *of == title).unwrap();
    let (responses, segments) = (place("ρ responses"), place("ρ segments"));
    let bandit = row(&text, "arm", "bandit");
    assert!(bandit[responses].starts_with("0.") && bandit[segments] == "–", "{bandit:?}");
    assert!(row(&text, "arm", "segment")[segments].starts_with("0."));
}

#[test]
fn failed_corrupt_and_pending_cells_are_listed() {
    let text = markdown(&Analysis::of(&synthetic::results()));
    let lines = [
        "- bandit as segment, seed 3: ppo failed: ppo: iteration 5: the policy loss is NaN, expected a finite number",
        "- last, seed 2: unreadable: store/ppo-0123456789abcdef/metrics.jsonl:4: expected value at column 1",
        "- entropy_cutoff 2.2, not yet finished: seed 1, 2, 3",
    ];
    for line in lines {
        assert!(text.lines().any(|l| l == line), "{line}");
    }
    assert_eq!(row(&text, "arm", "bandit as segment")[1], "2 of 3");
    assert_eq!(row(&text, "arm", "entropy_cutoff 2.2")[1..4], ["0 of 3", "–", "–"]);
}

#[test]
fn without_the_truth_the_sequence_score_takes_the_place_of_gold() {
    let mut results = synthetic::results();
    for cell in &mut results.cells {
        let State::Finished(figures) = &mut cell.state else { continue };
        figures.curve.gold.iter_mut().for_each(|gold| *gold = None);
        let evaluation = &mut figures.evaluation;
        let evaluations = figures.evaluations.iter_mut().map(|line| &mut line.evaluation);
        let policy = figures.policy.as_mut().unwrap();
        for evaluation in evaluations
            .chain([&mut evaluation.before, &mut evaluation.after])
            .chain([&mut policy.last, &mut policy.best])
        {
            evaluation.gold = None;
        }
    }
    let text = markdown(&Analysis::of(&results));
    assert_eq!(row(&text, "arm", "arm")[..4], ["arm", "seeds", "e_φ", "95 %"]);
    assert_eq!(row(&text, "difference", "difference")[1], "e_φ");
    assert!(!text.contains("Gold reward at matched KL"));
    assert_eq!(row(&text, "the paper", "segment > bandit")[4..6], ["–", "–"]);
}

#[test]
fn tables_keep_their_columns_whatever_the_names() {
    let mut results = synthetic::results();
    results.experiments[0].arms[0].name = "a|b\nc".into();
    results.experiments[0].title = "one\ntitle".into();
    let text = markdown(&Analysis::of(&results));
    assert!(text.contains("## one title\n"));
    let tables = text.split("\n\n").filter(|part| part.starts_with('|'));
    for table in tables {
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        let header = columns(table.lines().next().unwrap());
        assert!(table.lines().all(|line| columns(line) == header), "{table}");
    }
}

#[test]
fn a_grid_without_a_finished_cell_has_tables_without_figures() {
    let mut results = synthetic::results();
    results.cells.iter_mut().for_each(|cell| cell.state = State::Pending);
    let files = files(&results);
    assert_eq!(row(&files["tables.md"], "arm", "segment")[1..], ["0 of 3", "–", "–"]);
    assert_eq!(csv(&files["cells.csv"]).len(), 20 * 3);
    for name in ["curves.csv", "arms.csv", "differences.csv", "orderings.csv"] {
        assert!(csv(&files[name]).is_empty(), "{name}");
    }
}

#[test]
fn cells_hold_what_the_arms_are_the_means_of() {
    let results = synthetic::results();
    let files = files(&results);
    let cells = csv(&files["cells.csv"]);
    assert_eq!(cells.len(), 20 * 3); // 20 arms, 3 seeds
    let arms = csv(&files["arms.csv"]);
    let mut compared = 0;
    for arm in arms.iter().filter(|arm| arm["arm"] != "SFT") {
        let same =
            |cell: &&BTreeMap<_, _>| ["experiment", "arm"].iter().all(|&k| cell[k] == arm[k]);
        let of = cells.iter().filter(same);
        let values: Vec<f64> = of.filter_map(|cell| cell[&arm["quantity"]].parse().ok()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert_eq!(arm["n"], values.len().to_string());
        assert_eq!(arm["mean"].parse::<f64>().unwrap(), mean, "{arm:?}");
        compared += 1;
    }
    assert!(compared > 19 * 20, "{compared}");
}

#[test]
fn every_number_of_the_csv_files_is_that_of_the_json() {
    let results = synthetic::results();
    let files = files(&results);
    let analysis: Analysis = serde_json::from_str(&files["analysis.json"]).unwrap();
    assert_eq!(analysis, Analysis::of(&results));
    let mut differences = csv(&files["differences.csv"]).into_iter();
    let mut orderings = csv(&files["orderings.csv"]).into_iter();
    for experiment in &analysis.experiments {
        for difference in &experiment.differences {
            for (quantity, estimate) in &difference.figures {
                let row = differences.next().unwrap();
                assert_eq!(
                    (&row["arm"], &row["baseline"]),
                    (&difference.arm, &difference.baseline)
                );
                assert_eq!(
                    (&row["quantity"][..], row["n"].parse()),
                    (quantity.name(), Ok(estimate.n))
                );
                assert_eq!(row["mean"].parse(), Ok(estimate.mean));
                assert_eq!(row["standard_error"].parse().ok(), estimate.error);
                let ends = estimate.interval.map_or([None; 2], |ends| ends.map(Some));
                assert_eq!([row["low"].parse().ok(), row["high"].parse().ok()], ends);
            }
        }
        for ordering in &experiment.orderings {
            for outcome in
                [ordering.gold, ordering.length_controlled_win_rate].into_iter().flatten()
            {
                let row = orderings.next().unwrap();
                assert_eq!((&row["better"], &row["worse"]), (&ordering.better, &ordering.worse));
                assert_eq!(row["paper_better"].parse(), Ok(ordering.reported[0].better));
                assert_eq!(row["mean"].parse(), Ok(outcome.difference.mean));
                assert_eq!(row["verdict"], outcome.verdict.title());
            }
        }
    }
    assert!(differences.next().is_none() && orderings.next().is_none());
}

#[test]
fn curves_have_a_line_for_each_iteration_and_a_hole_where_nothing_was_measured() {
    let results = synthetic::results();
    let curves = csv(&files(&results)["curves.csv"]);
    let token: Vec<_> = curves
        .iter()
        .filter(|row| row["experiment"] == "table1" && row["arm"] == "token" && row["seed"] == "2")
        .collect();
    let iterations: Vec<&str> = token.iter().map(|row| &row["iteration"][..]).collect();
    assert_eq!(iterations, ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
    let cell = results.cells.iter().find(|cell| cell.id == results.experiments[0].arms[2].cells[1]);
    let figures = cell.unwrap().figures().unwrap();
    for (i, row) in token.iter().enumerate() {
        assert_eq!(row["gold"].parse().ok(), figures.curve.gold.get(i).copied().flatten());
        assert_eq!(row["kl"].parse().ok(), figures.curve.kl_k1.get(i).copied());
        assert_eq!(row["held_out_gold"].is_empty(), i % 2 != 0);
    }
    assert_eq!(token[0].len(), 4 + Column::ALL.len());
}

/// What `reproduce` gave with these seeds: the cells of two methods, each with a change.
fn reproduced(seeds: &[u64], change: fn(usize, &mut Figures)) -> Results {
    let mut results = synthetic::results();
    results.experiments.retain(|experiment| experiment.name == "table1");
    let experiment = &mut results.experiments[0];
    experiment.arms.retain(|arm| arm.name == "bandit" || arm.name == "token");
    let named: Vec<&String> = experiment.arms.iter().flat_map(|arm| &arm.cells).collect();
    results.cells.retain(|cell| named.contains(&&cell.id) && seeds.contains(&cell.seed));
    for (number, cell) in results.cells.iter_mut().enumerate() {
        let State::Finished(figures) = &mut cell.state else { panic!("{:?}", cell.state) };
        change(number, figures);
    }
    results
}

#[test]
fn reproduce_shows_shares_with_their_counts_and_correlations_by_what_they_are_of() {
    let results = reproduced(&[1, 2], |_, _| ());
    assert_eq!(results.cells.len(), 4);
    let table = reproduce::table(&results);
    let header = row(&table, "method", "method");
    assert_eq!(header[2], "win rate (n 384)");
    let names = ["RM acc. (n 800)", "RM acc. (gold) (n 790)", "ρ responses", "ρ segments"];
    assert_eq!(header[5..9], names);
    let bandit = row(&table, "method", "bandit");
    assert!(bandit[7].starts_with("0.") && bandit[8] == "–", "{bandit:?}");
    assert!(row(&table, "method", "token")[8].starts_with("0."));
    assert_eq!(row(&table, "method", "SFT")[2..4], ["0.50", "0.00"]);
    // Seeds differ in how many pairs gold decides.
    let results = reproduced(&[1, 2], |number, figures| {
        if number == 1 {
            figures.reward.as_mut().unwrap().gold_pairs = Some(781);
        }
    });
    let table = reproduce::table(&results);
    assert_eq!(row(&table, "method", "method")[6], "RM acc. (gold) (n 781–790)");
}

#[test]
fn reproduce_says_of_one_response_that_it_is_one() {
    let results = reproduced(&[1], |_, figures| {
        let after = &mut figures.evaluation.after;
        (after.responses, figures.reward.as_mut().unwrap().pairs) = (1, 1);
        (after.win_rate, after.win_rate_error) = (Some(1.0), None);
        figures.reward.as_mut().unwrap().accuracy = 0.0;
    });
    let table = reproduce::table(&results);
    let token = row(&table, "method", "token");
    assert_eq!((token[2], token[5]), ("1 of 1", "0 of 1"));
    let (.., bandit) = results.rows().find(|(_, arm, _)| arm.name == "bandit").unwrap();
    let error = bandit.figures().unwrap().evaluation.after.gold_error;
    assert!(row(&table, "method", "bandit")[1].ends_with(&format!(" ± {:.2}", error.unwrap())));
}

#[test]
fn names_with_commas_quotes_and_line_breaks_come_back_from_csv() {
    let mut results = synthetic::results();
    let name = "a \"b\", c\nd";
    results.experiments[0].arms[0].name = name.into();
    let files = files(&results);
    for file in ["cells.csv", "curves.csv", "arms.csv"] {
        assert!(csv(&files[file]).iter().any(|row| row["arm"] == name), "{file}");
    }
    assert!(csv(&files["differences.csv"]).iter().any(|row| row["baseline"] == name));
}

#[test]
fn files_are_whole_and_the_same_when_written_again() {
    let results = synthetic::results();
    let names: Vec<String> = files(&results).into_keys().collect();
    let expected = [
        "analysis.json",
        "arms.csv",
        "cells.csv",
        "curves.csv",
        "differences.csv",
        "orderings.csv",
        "tables.md",
    ];
    assert_eq!(names, expected);
    assert_eq!(files(&results), files(&results));
}

#[test]
fn a_folder_that_cannot_be_written_to_is_named() {
    let results = synthetic::results();
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let error = write(&Analysis::of(&results), &results, &missing).unwrap_err().to_string();
    assert!(error.contains("missing/analysis.json: cannot write"), "{error}");
}

#[test]
fn quantities_have_their_own_names_and_are_described() {
    let names: std::collections::BTreeSet<&str> = Quantity::ALL.iter().map(|q| q.name()).collect();
    assert_eq!(names.len(), Quantity::ALL.len());
    for quantity in Quantity::ALL {
        let json = serde_json::to_value(quantity).unwrap();
        assert_eq!(json, quantity.name());
        assert!(quantity.description().ends_with('.'), "{quantity:?}");
    }
}

/// What stands between two markers of the page `path` is generated: written anew where UPDATE_README is set.
fn assert_generated(path: &str, [start, end]: [&str; 2], section: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let found = fs::read_to_string(&path).unwrap();
    let (before, rest) = found.split_once(start).expect("the first marker");
    let (_, after) = rest.split_once(end).expect("the second marker");
    let expected = format!("{before}{start}\n\n{}\n\n{end}{after}", section.trim());
    if std::env::var_os("UPDATE_README").is_some() {
        return fs::write(&path, expected).unwrap();
    }
    let remedy = "UPDATE_README=1 cargo test --release --test spec the_pages_results";
    assert!(found == expected, "{}: write it anew: {remedy}", path.display());
}

#[test]
fn the_pages_results_are_those_that_are_committed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(text) = fs::read_to_string(root.join("experiments/results/results.json")) else {
        return eprintln!("skipped: experiments/results/results.json is not there");
    };
    let results: Results = serde_json::from_str(&text).unwrap();
    let section = readme(&Analysis::of(&results));
    let inner = section.strip_prefix(MARKERS[0]).and_then(|s| s.strip_suffix(MARKERS[1])).unwrap();
    assert_generated("experiments/RESULTS.md", MARKERS, inner);
    let (_, table) = section.split_once("### Table 1").expect("the first experiment");
    let lines = table.lines().skip_while(|line| !line.starts_with('|'));
    let table: Vec<&str> = lines.take_while(|line| line.starts_with('|')).collect();
    assert_generated("README.md", ["<!-- table 1 -->", "<!-- /table 1 -->"], &table.join("\n"));
}
