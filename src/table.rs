//! Text tables that read well in a terminal and are Markdown.

/// A Markdown table with aligned columns; the first is left-aligned, the rest right-aligned.
///
/// # Examples
///
/// ```
/// let rows = [vec!["bandit".to_owned(), "2.59".to_owned()]];
/// let table = segment_rlhf::table::markdown(&["method", "gold"], &rows);
/// assert_eq!(table, "| method | gold |\n| ------ | ---: |\n| bandit | 2.59 |\n");
/// ```
pub fn markdown(header: &[impl AsRef<str>], rows: &[Vec<String>]) -> String {
    aligned(header, rows, |column| column > 0)
}

/// A table of words: every column is left-aligned.
pub fn listing(header: &[&str], rows: &[Vec<String>]) -> String {
    aligned(header, rows, |_| false)
}

fn aligned(
    header: &[impl AsRef<str>],
    rows: &[Vec<String>],
    right: impl Fn(usize) -> bool,
) -> String {
    let header: Vec<String> = header.iter().map(|cell| cell.as_ref().to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(i, (cell, &w))| {
            let space = " ".repeat(w - cell.chars().count());
            if right(i) { format!("{space}{cell}") } else { format!("{cell}{space}") }
        });
        format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = (widths.iter().enumerate())
        .map(|(i, &w)| if right(i) { "-".repeat(w - 1) + ":" } else { "-".repeat(w) })
        .collect();
    [&header, &rule].into_iter().chain(rows).map(|row| line(row)).collect()
}

/// A number with so many decimals; what rounds to 0 has no sign.
///
/// # Examples
///
/// ```
/// use segment_rlhf::table::digits;
/// assert_eq!([digits(-0.004, 2), digits(-0.006, 2), digits(2.5, 0)], ["0.00", "-0.01", "2"]);
/// ```
pub fn digits(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let is_zero = text.chars().all(|c| matches!(c, '-' | '0' | '.'));
    if is_zero { text.trim_start_matches('-').to_owned() } else { text }
}

/// `mean ± error` with two decimals; the error is left out if there is none.
///
/// # Examples
///
/// ```
/// use segment_rlhf::table::with_error;
/// assert_eq!(with_error(Some(2.594), Some(0.1)), "2.59 ± 0.10");
/// assert_eq!(with_error(Some(2.594), None), "2.59");
/// assert_eq!(with_error(None, None), "–");
/// ```
pub fn with_error(mean: Option<f64>, error: Option<f64>) -> String {
    match (mean, error) {
        (None, _) => "–".into(),
        (Some(mean), None) => digits(mean, 2),
        (Some(mean), Some(error)) => format!("{} ± {error:.2}", digits(mean, 2)),
    }
}

/// A share of `n` on display: `0.62 (n 384)`. A share of one is no rate: `1 of 1`.
///
/// # Examples
///
/// ```
/// use segment_rlhf::table::rate;
/// assert_eq!(rate(0.6237, 384), "0.62 (n 384)");
/// assert_eq!([rate(1.0, 1), rate(0.0, 1), rate(0.5, 1)], ["1 of 1", "0 of 1", "0.5 of 1"]);
/// ```
pub fn rate(share: f64, n: usize) -> String {
    if n == 1 { format!("{share} of 1") } else { format!("{share:.2} (n {n})") }
}
