//! The rows of a data file as JSON objects, one at a time: JSON Lines or a JSON array, plain or in gzip, or Parquet.
//!
//! What a file is shows in its first bytes: Parquet starts with `PAR1`, gzip with 1F 8B, a JSON array with `[`; all else
//! is JSON Lines, unless these bytes are of another format, which is refused by its name. Only a file named `.parquet` must be Parquet: without `PAR1` it is refused. In JSON Lines, empty lines are skipped, and a byte-order mark and CRLF are
//! accepted. Lines and Parquet are streamed, so that a file may be larger than memory; an array is read
//! whole.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::error::DataError;
use crate::file_error::FileError;

const MARK: &[u8] = b"\xEF\xBB\xBF";

type Stream = Box<dyn Iterator<Item = Result<Row, DataError>>>;

/// One row of a data file.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where it stands: the line, or the number of the Parquet row or array element; from 1.
    pub place: usize,
    /// Its keys, or columns, with their values.
    pub object: Map<String, Value>,
}

/// The rows of the file at `path`, in order.
///
/// # Errors
///
/// [`DataError::File`], [`DataError::Refused`]; for Parquet also [`DataError::Refused`], [`DataError::Refused`] and
/// [`DataError::Refused`]; for an array what the iterator gives otherwise.
pub fn rows(path: &Path) -> Result<Rows, DataError> {
    let unreadable = FileError::reading(path);
    let mut file = BufReader::new(File::open(path).map_err(&unreadable)?);
    let start = file.fill_buf().map_err(&unreadable)?;
    let source: Stream = if start.starts_with(b"PAR1") {
        parquet_rows(path, file.into_inner())?
    } else if start.starts_with(GZIP) {
        return gzip_rows(path, file.into_inner());
    } else if let Some((what, remedy)) = refused(path, start) {
        return Err(DataError::format(path, what, remedy));
    } else if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("parquet")) {
        return Err(DataError::not_parquet(path));
    } else {
        json_rows(path, Box::new(file))?
    };
    Ok(Rows { source, failed: false })
}

/// The rows of JSON Lines or of a JSON array.
fn json_rows(path: &Path, mut file: Box<dyn BufRead>) -> Result<Stream, DataError> {
    let start = file.fill_buf().map_err(|error| unreadable(path, error))?;
    match start.strip_prefix(MARK).unwrap_or(start).trim_ascii_start().starts_with(b"[") {
        true => array_rows(path, file),
        false => Ok(Box::new(Lines { path: path.into(), file, number: 0, bytes: Vec::new() })),
    }
}

const GZIP: &[u8] = b"\x1F\x8B";

/// The rows of JSON in gzip, of one member or several.
fn gzip_rows(path: &Path, file: File) -> Result<Rows, DataError> {
    let mut file = file;
    file.rewind().map_err(FileError::reading(path))?;
    let mut file = BufReader::new(MultiGzDecoder::new(BufReader::new(file)));
    let start = file.fill_buf().map_err(|error| unreadable(path, error))?;
    if start.starts_with(b"PAR1") {
        let remedy = "unpack it with gunzip: Parquet is compressed already";
        return Err(DataError::format(path, "a Parquet file in gzip", remedy));
    }
    let name = path.with_extension(""); // without .gz
    if let Some((what, remedy)) = refused(&name, start) {
        return Err(DataError::format(path, format!("gzip of {what}"), remedy));
    }
    Ok(Rows { source: json_rows(path, Box::new(file))?, failed: false })
}

/// What a file is that starts so and is not read, and what to do.
fn refused(path: &Path, start: &[u8]) -> Option<(String, String)> {
    let packed: [(&[u8], &str, &str); 5] = [
        (b"PK\x03\x04", "a zip archive", "unzip"),
        (b"\x28\xB5\x2F\xFD", "compressed with zstd", "unzstd"),
        (b"\xFD7zXZ\0", "compressed with xz", "unxz"),
        (b"BZh", "compressed with bzip2", "bunzip2"),
        (b"\x04\x22\x4D\x18", "compressed with lz4", "unlz4"),
    ];
    if let Some((_, what, tool)) = packed.iter().find(|(magic, ..)| start.starts_with(magic)) {
        let remedy =
            format!("unpack it with {tool}; JSON Lines may be in gzip, and Parquet is compressed");
        return Some(((*what).to_owned(), remedy));
    }
    let end = path.extension()?.to_str()?.to_lowercase();
    let separator = match end.as_str() {
        "csv" => "",
        "tsv" => ", sep='\\t'",
        _ => return None,
    };
    let name = path.display();
    let remedy = format!(
        "write it as JSON Lines: python3 -c \"import pandas; pandas.read_csv('{name}'{separator})\
         .to_json('{name}.jsonl', orient='records', lines=True)\""
    );
    Some((format!("a table in {}", end.to_uppercase()), remedy))
}

/// The error of a file that cannot be read on, among them gzip that is cut or damaged.
fn unreadable(path: &Path, error: io::Error) -> DataError {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    match error.kind() {
        InvalidData | InvalidInput | UnexpectedEof => DataError::gzip(path, error),
        _ => FileError::reading(path)(error).into(),
    }
}

/// An iterator over the rows of a file; nothing follows an error.
pub struct Rows {
    source: Stream,
    failed: bool,
}

impl Iterator for Rows {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.source.next();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

/// What a JSON value is, in the words of an error.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The row that `value` is, at `place` of the file; `what` names it in an error.
fn row(path: &Path, place: usize, what: &str, value: Value) -> Result<Row, DataError> {
    match value {
        Value::Object(object) => Ok(Row { place, object }),
        other => Err(DataError::wrong_type(path, place, what, "an object", kind(&other))),
    }
}

struct Lines {
    path: PathBuf,
    file: Box<dyn BufRead>,
    number: usize,
    bytes: Vec<u8>,
}

impl Lines {
    /// The next line that is not empty.
    fn next(&mut self) -> Result<Option<Row>, DataError> {
        let path = &self.path;
        loop {
            self.bytes.clear();
            let read = self.file.read_until(b'\n', &mut self.bytes);
            if read.map_err(|error| unreadable(path, error))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            let line = self.number;
            let mark = if line == 1 { MARK } else { b"" };
            let text = str::from_utf8(self.bytes.strip_prefix(mark).unwrap_or(&self.bytes));
            let text = text.map_err(|error| {
                let byte = error.valid_up_to() + 1;
                DataError::utf8(path.clone(), line, byte)
            })?;
            if !text.trim().is_empty() {
                let value = serde_json::from_str(text.trim_end())
                    .map_err(|error| DataError::json(path, line, &error))?;
                return row(path, line, "the line", value).map(Some);
            }
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        Lines::next(self).transpose()
    }
}

fn array_rows(path: &Path, mut file: Box<dyn BufRead>) -> Result<Stream, DataError> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut file, &mut bytes).map_err(|error| unreadable(path, error))?;
    let bytes = bytes.strip_prefix(MARK).unwrap_or(&bytes);
    let values: Vec<Value> =
        serde_json::from_slice(bytes).map_err(|error| DataError::json(path, 1, &error))?;
    let path = path.to_owned();
    let rows = values.into_iter().zip(1..);
    Ok(Box::new(rows.map(move |(value, place)| row(&path, place, "the element", value))))
}

#[cfg(not(feature = "parquet"))]
fn parquet_rows(path: &Path, _: File) -> Result<Stream, DataError> {
    Err(DataError::without_parquet(path))
}

#[cfg(feature = "parquet")]
fn parquet_rows(path: &Path, file: File) -> Result<Stream, DataError> {
    use parquet::basic::Compression::{GZIP, LZ4, LZ4_RAW, SNAPPY, UNCOMPRESSED, ZSTD};
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::reader::RowIter;

    use super::pages::{check_footer, check_pages};

    let path = path.to_owned();
    let refused = |path: &Path, reason: String| {
        let reason: String = reason.chars().take(MOST_REASON).collect();
        DataError::parquet(path, reason)
    };
    let reader = file.try_clone().map_err(FileError::reading(&path))?;
    check_footer(&file).map_err(|why| refused(&path, why))?;
    let reader = caught(|| SerializedFileReader::new(reader)).map_err(|why| refused(&path, why))?;
    let groups = reader.metadata().row_groups().to_vec();
    let mut columns = groups.iter().flat_map(|group| group.columns());
    let other = columns.find(|column| {
        let codec = column.compression();
        !matches!(codec, UNCOMPRESSED | SNAPPY | GZIP(_) | LZ4 | LZ4_RAW | ZSTD(_))
    });
    if let Some(column) = other {
        let codec = column.compression().to_string();
        return Err(DataError::compression(path, codec));
    }
    let mut rows = RowIter::from_file_into(Box::new(reader));
    let (mut groups, mut left) = (groups.into_iter(), 0);
    Ok(Box::new((1..).map_while(move |place| {
        let check = |column: &_| caught(|| Ok(check_pages(&file, column)))?;
        // Before the library opens the next group of rows, and those without rows in front of it.
        while left == 0
            && let Some(group) = groups.next()
        {
            if let Err(why) = group.columns().iter().try_for_each(check) {
                return Some(Err(refused(&path, why)));
            }
            left = group.num_rows();
        }
        left = left.saturating_sub(1);
        let row = caught(|| rows.next().transpose()).transpose()?;
        let row = row.map_err(|why| refused(&path, format!("row {place}: {why}")));
        Some(row.map(|row| Row { place, object: parquet_object(&row) }))
    })))
}

/// What `read` gives, or why not: the Parquet library (58.4.1) panics at some damages.
#[cfg(feature = "parquet")]
fn caught<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(panic) => Err(panic
            .downcast::<String>()
            .map_or_else(|_| "it is damaged".to_owned(), |message| *message)),
    }
}

/// The most characters of the Parquet library's own words in an error: some quote a whole value.
#[cfg(feature = "parquet")]
const MOST_REASON: usize = 200;

#[cfg(feature = "parquet")]
fn parquet_object(row: &parquet::record::Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), parquet_value(field))).collect()
}

/// The JSON value of a Parquet one; what JSON has no kind for, such as a date, becomes a text.
#[cfg(feature = "parquet")]
fn parquet_value(field: &parquet::record::Field) -> Value {
    use parquet::record::Field;
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::Float16(number) => f64::from(*number).into(),
        Field::Float(number) => (*number).into(),
        Field::Double(number) => (*number).into(),
        Field::Str(text) => text.as_str().into(),
        Field::Group(row) => parquet_object(row).into(),
        Field::ListInternal(list) => list.elements().iter().map(parquet_value).collect(),
        Field::MapInternal(map) => {
            let key = |key| match parquet_value(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            map.entries().iter().map(|(k, value)| (key(k), parquet_value(value))).collect()
        }
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use tempfile::TempDir;

    /// The rows of a file of these bytes, up to the first error, whose text names it `FILE`.
    fn read(bytes: impl AsRef<[u8]>) -> Result<Vec<(usize, Value)>, (DataError, String)> {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, bytes).unwrap();
        let pair = |row: Row| (row.place, Value::Object(row.object));
        let read = rows(&path).and_then(|rows| rows.map(|row| row.map(pair)).collect());
        read.map_err(|error| {
            let text = error.to_string().replace(path.to_str().unwrap(), "FILE");
            (error, text)
        })
    }

    #[test]
    fn lines_are_rows_at_their_place() {
        let text = "\u{FEFF}{\"a\": 1}\r\n\n  \n{\"b\": [null]}";
        assert_eq!(read(text).unwrap(), [(1, json!({"a": 1})), (4, json!({"b": [null]}))]);
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn the_elements_of_an_array_are_rows() {
        let text = "\u{FEFF}\n [\n{\"a\": 1},\n{\"b\": \"]\"}]\n";
        assert_eq!(read(text).unwrap(), [(1, json!({"a": 1})), (2, json!({"b": "]"}))]);
        assert_eq!(read("[]").unwrap(), []);
        let (error, text) = read("[{}, 3]").unwrap_err();
        assert!(matches!(error, DataError::Refused(_)));
        assert_eq!(text, "FILE:2: the element is a number; expected an object");
        let (error, text) = read("[\n{},\n{]").unwrap_err();
        assert!(matches!(error, DataError::Refused(_)));
        assert!(text.starts_with("FILE:3: not JSON (key must be a string, column 2)"), "{text}");
    }

    #[test]
    fn nothing_follows_an_error() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, "{}\n[]\n{}\n").unwrap();
        let mut rows = rows(&path).unwrap();
        assert!(rows.next().unwrap().is_ok());
        assert!(rows.next().unwrap().is_err());
        assert!(rows.next().is_none());
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn json_may_be_in_gzip_of_several_members() {
        let whole = [gzip("{\"a\": 1}\n{\"b\""), gzip(": 2}\n")].concat();
        assert_eq!(read(&whole).unwrap(), [(1, json!({"a": 1})), (2, json!({"b": 2}))]);
        assert_eq!(read(gzip("[{}]")).unwrap(), [(1, json!({}))]);
        let (_, text) = read(gzip("{}\n[]")).unwrap_err();
        assert_eq!(text, "FILE:2: the line is a list; expected an object");
        for length in 2..whole.len() {
            // After the first member it may end there, but not within a line.
            let (_, text) = read(&whole[..length]).unwrap_err();
            let cut =
                text.starts_with("FILE: not a whole gzip file (") || text.contains("not JSON");
            assert!(cut, "{length}: {text}");
        }
        let (_, text) = read(gzip("PAR1")).unwrap_err();
        assert_eq!(
            text,
            "FILE: a Parquet file in gzip, which this program does not read; unpack it with gunzip: Parquet is \
             compressed already"
        );
    }

    #[test]
    fn other_formats_are_refused_by_their_names() {
        for (start, what) in [
            (
                &b"PK\x03\x04..."[..],
                "a zip archive, which this program does not read; unpack it with unzip",
            ),
            (
                b"\x28\xB5\x2F\xFD",
                "compressed with zstd, which this program does not read; unpack it with unzstd",
            ),
            (b"\xFD7zXZ\0", "compressed with xz, "),
            (b"BZh9", "compressed with bzip2, "),
            (b"\x04\x22\x4D\x18", "compressed with lz4, "),
        ] {
            let (_, text) = read(start).unwrap_err();
            assert!(text.starts_with(&format!("FILE: {what}")), "{text}");
        }
        let dir = TempDir::new().unwrap();
        for (name, bytes, what) in [
            ("a.csv", b"a,b\n1,2\n".to_vec(), "a table in CSV"),
            ("a.TSV", b"a\tb\n".to_vec(), "a table in TSV"),
            ("a.csv.gz", gzip("a,b\n"), "gzip of a table in CSV"),
        ] {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            let text = rows(&path).err().unwrap().to_string();
            let start = format!(
                "{}: {what}, which this program does not read; write it as JSON Lines: python3 -c",
                path.display()
            );
            assert!(text.starts_with(&start), "{text}");
        }
    }

    #[test]
    fn a_file_named_parquet_must_be_parquet() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("data.Parquet");
        for bytes in [&b"version https://git-lfs.github.com/spec/v1\n"[..], b"\xFF\0", b"{}", b""] {
            fs::write(&path, bytes).unwrap();
            let error = rows(&path).err().unwrap();
            assert_eq!(
                error.to_string(),
                format!(
                    "{}: not a Parquet file (no PAR1 at its start), though its name says so; download it \
                     again, or rename it if it is JSON Lines",
                    path.display()
                )
            );
        }
    }

    #[cfg(not(feature = "parquet"))]
    #[test]
    fn without_the_feature_a_parquet_file_is_an_error() {
        let (error, text) = read("PAR1").unwrap_err();
        assert!(matches!(error, DataError::Refused(_)));
        assert!(text.contains("built without the cargo feature `parquet`"), "{text}");
    }

    #[cfg(feature = "parquet")]
    mod parquet {
        use super::*;
        use ::parquet::file::reader::{FileReader, SerializedFileReader};
        use proptest::prelude::*;

        /// A file that pyarrow wrote: `tests/data/pairs/make.py`.
        fn fixture(name: &str) -> Vec<u8> {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pairs");
            fs::read(dir.join(format!("{name}.parquet"))).unwrap()
        }

        #[test]
        fn nested_columns_are_objects_lists_and_numbers() {
            let turns = |texts: &[&str]| {
                let turn = |(i, text): (usize, &&str)| {
                    let role = if i % 2 == 0 { "user" } else { "assistant" };
                    json!({"content": text, "role": role})
                };
                Value::from_iter(texts.iter().enumerate().map(turn))
            };
            let rows = read(fixture("preference_700k")).unwrap(); // snappy, two groups of rows
            let tree = json!({
                "rejected": turns(&["What is the tallest tree?", "A shrub."]),
                "chosen": turns(&["What is the tallest tree?", "The coast redwood."]),
                "rejected_score": 2.0,
                "chosen_score": 9.5,
            });
            assert_eq!(rows[0], (1, tree));
            assert_eq!(rows[1].1["chosen_score"], Value::Null);
            assert_eq!(rows[1].1["chosen"].as_array().unwrap().len(), 4);
            assert_eq!((rows.len(), rows[2].0), (3, 3));
            let rows = read(fixture("trl_implicit")).unwrap(); // not compressed
            let sky = json!({"chosen": "The sky is blue.", "rejected": "The sky is green."});
            assert_eq!(rows[0], (1, sky));
            let rows = read(fixture("ultrafeedback_binarized")).unwrap(); // gzip
            assert_eq!(rows[2].1["prompt"], "Count to three.");
            assert_eq!(rows[2].1["messages"], rows[2].1["chosen"]);
        }

        #[test]
        fn every_compression_gives_the_same_rows() {
            let plain = read(fixture("preference_700k")).unwrap();
            for codec in ["zstd", "lz4"] {
                assert_eq!(read(fixture(codec)).unwrap(), plain, "{codec}");
            }
        }

        #[test]
        fn the_older_lz4_is_read() {
            // No Python library writes it any more.
            use ::parquet::basic::Compression;
            use ::parquet::data_type::{ByteArray, ByteArrayType};
            use ::parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
            use ::parquet::schema::parser::parse_message_type;
            let schema = parse_message_type("message m { required binary a (UTF8); }").unwrap();
            let properties = WriterProperties::builder().set_compression(Compression::LZ4).build();
            let mut writer =
                SerializedFileWriter::new(Vec::new(), schema.into(), properties.into()).unwrap();
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let values = ["x".repeat(100), "y".repeat(50)].map(|text| ByteArray::from(&*text));
            column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
            let rows = read(writer.into_inner().unwrap()).unwrap();
            assert_eq!(rows[0].1, json!({"a": "x".repeat(100)}));
            assert_eq!(rows.len(), 2);
        }

        #[test]
        fn other_compressions_are_an_error_that_names_them() {
            let (error, text) = read(fixture("brotli")).unwrap_err();
            assert!(matches!(error, DataError::Refused(_)));
            assert!(text.starts_with("FILE: compressed with BROTLI"), "{text}");
            assert!(text.contains("SNAPPY, GZIP, ZSTD, LZ4 or no compression"), "{text}");
        }

        #[test]
        fn a_truncated_file_is_an_error() {
            let whole = fixture("preference_700k");
            for length in 4..whole.len() {
                let (error, _) = read(&whole[..length]).unwrap_err();
                assert!(matches!(error, DataError::Refused(_)), "{length}: {error}");
            }
        }

        /// The fixture with other numbers at the start of the first page's header: its type, its bytes when
        /// decompressed, its bytes, and the values of a dictionary. They take as many bytes as the old ones.
        fn claiming(name: &str, edit: impl Fn(&mut [u64; 4])) -> Vec<u8> {
            let mut bytes = fixture(name);
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pairs");
            let file = fs::File::open(path.join(format!("{name}.parquet"))).unwrap();
            let reader = SerializedFileReader::new(file).unwrap();
            let mut at = reader.metadata().row_group(0).column(0).byte_range().0 as usize;
            let mut numbers = [0; 4];
            let mut places = Vec::new();
            for number in &mut numbers {
                at += if bytes[at] & 15 == 12 { 2 } else { 1 }; // the fields' types, and into the dictionary's
                let length = 1 + bytes[at..].iter().position(|&byte| byte < 128).unwrap();
                for i in (0..length).rev() {
                    *number = *number << 7 | u64::from(bytes[at + i] & 127);
                }
                *number /= 2; // zigzag
                places.push(at..at + length);
                at += length;
            }
            edit(&mut numbers);
            for (number, place) in numbers.into_iter().zip(places) {
                for (i, byte) in bytes[place.clone()].iter_mut().enumerate() {
                    let more = if i + 1 < place.len() { 128 } else { 0 };
                    *byte = (((2 * number) >> (7 * i)) & 127) as u8 | more;
                }
            }
            bytes
        }

        #[track_caller]
        fn refuses(bytes: impl AsRef<[u8]>, reason: &str) {
            let (error, text) = read(bytes).unwrap_err();
            assert!(matches!(error, DataError::Refused(_)));
            let start = "FILE: not a Parquet file that can be read (";
            assert_eq!(text, format!("{start}{reason}); copy or write it again"));
        }

        #[test]
        fn a_page_that_claims_more_than_it_can_hold_is_refused_before_it_is_decompressed() {
            let snappy = "preference_700k";
            assert_eq!(claiming(snappy, |_| {}), fixture(snappy));
            let column = "the column rejected.list.element.content";
            refuses(
                claiming(snappy, |numbers| numbers[1] = 8191),
                &format!(
                    "{column}: a page of 105 bytes claims 8191 when decompressed; with Snappy it holds 2310 at most"
                ),
            );
            refuses(
                claiming(snappy, |numbers| numbers[2] = 8191),
                &format!("{column}: a page of 8191 bytes is longer than it"),
            );
            refuses(
                claiming(snappy, |numbers| numbers[3] = 63),
                &format!("{column}: a dictionary claims 63 values in 102 bytes"),
            );
            refuses(
                claiming("ultrafeedback_binarized", |numbers| numbers[1] -= 1),
                "the column prompt: a page claims 63 bytes when decompressed and holds more",
            );
        }

        #[test]
        fn a_footer_that_claims_more_than_it_holds_is_refused_before_it_is_read() {
            let with = |footer: &[u8]| {
                let length = u32::try_from(footer.len()).unwrap().to_le_bytes();
                [b"PAR1", footer, &length, b"PAR1"].concat()
            };
            refuses(
                with(&[0x15, 2, 0x19, 0xFC, 0xFF, 0xFF, 0xFF, 0xFF, 7, 0]),
                "a list claims 2147483647 elements in 1 bytes",
            );
            let group = [0x55, 0xFE, 0xFF, 0xFF, 0xFF, 0xF, 0];
            refuses(
                with(&[&[0x15, 2, 0x19, 0x1C][..], &group, &[0]].concat()),
                "its schema claims 1 groups, one of 2147483647 columns; 1000 groups are read at most",
            );
            let groups = [0x55, 2, 0].repeat(1001);
            refuses(
                with(&[&[0x15, 2, 0x19, 0xFC, 0xE9, 7][..], &groups, &[0]].concat()),
                "its schema claims 1001 groups, one of 1 columns; 1000 groups are read at most",
            );
        }

        proptest! {
            #[test]
            fn a_damaged_file_gives_rows_or_an_error(
                name in prop::sample::select(
                    vec![
                        "preference_700k", "ultrafeedback_binarized", "trl_implicit", "zstd", "lz4",
                    ],
                ),
                faults in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4),
            ) {
                let mut bytes = fixture(name);
                for (place, fault) in faults {
                    let place = 4 + place.index(bytes.len() - 4);
                    bytes[place] ^= fault;
                }
                if let Err((_, text)) = read(bytes) {
                    let refused = ["not a Parquet file", "compressed with"];
                    prop_assert!(refused.iter().any(|what| text.contains(what)), "{text}");
                    prop_assert!(text.chars().count() < 400);
                }
            }
        }
    }
}
