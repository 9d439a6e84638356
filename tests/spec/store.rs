//! Token ids on disk.

use std::fs;
use std::path::{Path, PathBuf};

use segment_rlhf::data::error::DataError;
use segment_rlhf::data::pairs::{Counts, prompt_hash};
use segment_rlhf::data::store::*;
use tempfile::TempDir;

fn row(prompt: &[u32], first: &[u32], second: &[u32], score_gap: Option<f32>) -> StoredRow {
    let responses = [first.into(), second.into()];
    StoredRow { prompt: prompt.into(), responses, score_gap, labels: None }
}

fn rows() -> [StoredRow; 3] {
    [
        row(&[1, 2], &[3], &[4, 5, 6], Some(-0.5)),
        row(&[7], &[u32::MAX; 4], &[], None),
        row(&[1, 2], &[0], &[9], Some(0.0)),
    ]
}

fn written(rows: &[StoredRow]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let dir = folder.path().join("run/data/pairs");
    Store::write(&dir, |writer| {
        rows.iter().try_for_each(|row| writer.push(row, prompt_hash(&row.prompt)))?;
        Ok(Counts { empty: 2, ..Counts::default() })
    })
    .unwrap();
    (folder, dir)
}

fn opened(dir: &Path) -> Opened {
    Store::open(dir).unwrap()
}

#[test]
fn rows_come_back_in_any_order() {
    let (_folder, dir) = written(&rows());
    let mut store = opened(&dir).whole().unwrap();
    for i in [2, 0, 1, 0] {
        assert_eq!(store.row(i).unwrap(), rows()[i]);
    }
    assert_eq!((store.longest(), store.scored()), (5, 2));
    assert_eq!(store.counts.empty, 2);
    let hashes = store.take_prompt_hashes();
    assert_eq!(hashes, rows().map(|row| prompt_hash(&row.prompt)));
    let items = Items::<StoredRow>::Stored(store.into(), vec![2, 1]);
    assert_eq!((items.len(), items.is_empty()), (2, false));
    let [first, second, third] = rows();
    assert_eq!(items.get(1).unwrap(), second);
    let Items::Stored(store, _) = &items else { unreachable!("stored above") };
    assert!(items.are(&items.clone()));
    assert!(!items.are(&Items::Stored(store.clone(), vec![1, 2])));
    assert!(!items.are(&Items::Memory(vec![third.clone(), second.clone()])));
    let chunks: Vec<_> = items.chunks(1).map(Result::unwrap).collect();
    assert_eq!(chunks, [[third.clone()], [second.clone()]]);
    let all = Items::Memory(vec![first.clone(), second.clone(), third.clone()]);
    let chunks: Vec<_> = all.chunks(2).map(Result::unwrap).collect();
    assert_eq!(chunks, [vec![first, second], vec![third]]);
}

#[test]
fn the_content_of_a_pair_is_its_prompt_and_its_responses_in_any_order() {
    let hash = |prompt: &[u32], first: &[u32], second: &[u32]| {
        row(prompt, first, second, None).content_hash()
    };
    let pair = hash(&[1, 2], &[3], &[4, 5]);
    assert_eq!(hash(&[1, 2], &[4, 5], &[3]), pair);
    for other in [
        hash(&[1], &[3], &[4, 5]),
        hash(&[1], &[2, 3], &[4, 5]),
        hash(&[1, 2], &[3, 4], &[5]),
        hash(&[1, 2], &[3], &[4]),
    ] {
        assert_ne!(other, pair);
    }
}

#[test]
fn the_fingerprint_is_that_of_the_rows() {
    let fingerprint = |rows: &[StoredRow]| {
        let (_folder, dir) = written(rows);
        opened(&dir).whole().unwrap().fingerprint
    };
    assert_eq!(fingerprint(&rows()), fingerprint(&rows()));
    let mut others: Vec<[StoredRow; 3]> = vec![rows(), rows(), rows()];
    others[0][0].responses[1][2] = 7;
    others[1][0].score_gap = None;
    others[2].swap(0, 2);
    for other in others {
        assert_ne!(fingerprint(&other), fingerprint(&rows()));
    }
}

#[test]
fn whatever_byte_is_changed_its_file_is_named() {
    let (_folder, dir) = written(&rows());
    assert!(matches!(opened(&dir.with_file_name("other")), Opened::Missing));
    let names = |name: &str, damage: &str| match opened(&dir) {
        Opened::Damaged(file) => assert_eq!(file, dir.join(name), "{damage}"),
        other => panic!("{name}, {damage}: {other:?}"),
    };
    for name in ["tokens", "index", "summary.json"] {
        let path = dir.join(name);
        let whole = fs::read(&path).unwrap();
        for i in 0..whole.len() {
            let mut changed = whole.clone();
            changed[i] ^= 1;
            fs::write(&path, changed).unwrap();
            names(name, &format!("byte {i} changed"));
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        names(name, "cut");
        fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
        names(name, "longer");
        fs::remove_file(&path).unwrap();
        names(name, "gone");
        fs::write(&path, whole).unwrap();
    }
    let store = opened(&dir).whole().unwrap();
    assert_eq!(store.row(0).unwrap(), rows()[0], "reading starts anywhere after verification");
}

#[test]
fn a_refused_row_leaves_nothing() {
    let (folder, dir) = written(&rows());
    let refused = |dir: &Path| {
        let refuse = |writer: &mut StoreWriter| {
            writer.push(&rows()[0], 0)?;
            Err(DataError::Refused("a fault".into()))
        };
        assert!(matches!(Store::write(dir, refuse), Err(DataError::Refused(_))));
    };
    refused(&dir);
    assert!(opened(&dir).whole().is_some(), "the old one is untouched");
    refused(&folder.path().join("new"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn labels_come_back_with_their_rows_and_a_changed_byte_of_them_is_found() {
    let labelled = |row: StoredRow| {
        let labels =
            row.responses.each_ref().map(|of| (0..of.len()).map(|t| t as i8 % 3 - 1).collect());
        StoredRow { labels: Some(labels), ..row }
    };
    let rows = rows().map(labelled);
    let (_folder, dir) = written(&rows);
    let store = opened(&dir).whole().unwrap();
    for i in [2, 0, 1] {
        assert_eq!(store.row(i).unwrap(), rows[i]);
    }
    let (_plain, without) = written(&self::rows());
    assert_ne!(store.fingerprint, opened(&without).whole().unwrap().fingerprint);
    let path = dir.join("labels");
    let mut bytes = fs::read(&path).unwrap();
    bytes[1] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(opened(&dir), Opened::Damaged(damaged) if damaged == path));
    fs::remove_file(&path).unwrap();
    assert!(matches!(opened(&dir), Opened::Damaged(damaged) if damaged == path));
}
