//! What a Parquet file claims, checked before the library believes it: it allocates for a page, a list or a
//! dictionary what their headers say, whatever the file holds.
//!
//! A page may claim what its bytes can hold at most: 22 times as many in Snappy, 255 times in LZ4, 1032 times in gzip,
//! 32768 times in zstd (a block of 4 bytes gives 128 KiB), and never more than 1 GiB. Gzip's own output is counted, since
//! the library takes all of it, claimed or not; so it does of the older of the two LZ4, whose page may not be so long that it
//! could hold more than 1 GiB.
//!
//! Not checked: the number of lengths that a page in one of the DELTA encodings claims within its data.
//!
//! # Source
//!
//! Headers are Thrift's compact protocol: <https://github.com/apache/parquet-format>, `parquet.thrift`.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use flate2::read::MultiGzDecoder;
use parquet::basic::{Compression, Type};
use parquet::file::metadata::ColumnChunkMetaData;

/// The most bytes of a page, once decompressed.
const MOST_PAGE: u64 = 1 << 30;
/// The most bytes that one byte of LZ4 gives.
const LZ4_RATIO: u64 = 255;
/// The most groups of a schema, which may all lie within each other.
const MOST_GROUPS: usize = 1000;
/// The deepest nesting of a header.
const DEEPEST: usize = 16;

/// Checks the lists of the footer, so that the library may read it.
///
/// # Errors
///
/// What it claims that cannot be, or why it cannot be read.
pub(super) fn check_footer(file: &File) -> Result<(), String> {
    let mut file = BufReader::new(file);
    let length = file.seek(SeekFrom::End(0)).map_err(said)?;
    let mut tail = [0; 8];
    let Some(end) = length.checked_sub(8) else { return Ok(()) };
    file.seek(SeekFrom::Start(end)).and_then(|_| file.read_exact(&mut tail)).map_err(said)?;
    let [a, b, c, d, magic @ ..] = tail;
    let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
    let (b"PAR1", Some(start)) = (&magic, end.checked_sub(footer)) else {
        return Ok(()); // the library says what is wrong
    };
    file.seek(SeekFrom::Start(start)).map_err(said)?;
    let (mut groups, mut widest) = (0, 0);
    Thrift { reader: file, left: footer }.structure(&mut |outer, field, value| {
        if (outer, field) == (2, 5) {
            (groups, widest) = (groups + 1, value.max(widest)); // children of an element of the schema
        }
    })?;
    if groups > MOST_GROUPS || widest > footer as i64 {
        return Err(format!(
            "its schema claims {groups} groups, one of {widest} columns; {MOST_GROUPS} groups are read at most"
        ));
    }
    Ok(())
}

/// Checks every page of a column.
///
/// # Errors
///
/// Which claim cannot be, or why they cannot be read.
pub(super) fn check_pages(file: &File, column: &ColumnChunkMetaData) -> Result<(), String> {
    let named = |reason| format!("the column {}: {reason}", column.column_path().string());
    let (start, length) = column.byte_range();
    let whole = file.metadata().map_err(said)?.len();
    let end = start.checked_add(length).filter(|&end| end <= whole);
    let end = end.ok_or_else(|| named("it reaches beyond the end of the file".to_owned()))?;
    let mut file = BufReader::new(file);
    let mut place = start;
    while place < end {
        file.seek(SeekFrom::Start(place)).map_err(said)?;
        let mut header = Thrift { reader: &mut file, left: end - place };
        let page = Page::read(&mut header).map_err(named)?;
        let data = end - header.left;
        if page.compressed > header.left {
            return Err(named(format!("a page of {} bytes is longer than it", page.compressed)));
        }
        page.check(column, &mut file).map_err(named)?;
        place = data + page.compressed;
    }
    Ok(())
}

/// What a page's header says.
#[derive(Debug, Default)]
struct Page {
    claimed: u64,
    compressed: u64,
    /// Values of a dictionary.
    dictionary: u64,
    /// Bytes in front of the compressed ones.
    levels: u64,
    plain: bool,
}

impl Page {
    fn read(header: &mut Thrift<impl Read>) -> Result<Self, String> {
        let mut page = Self::default();
        let mut negative = false;
        header.structure(&mut |outer, field, value| {
            let size = u64::try_from(value).unwrap_or_default();
            match (outer, field) {
                (0, 2) => page.claimed = size,
                (0, 3) => page.compressed = size,
                (7, 1) => page.dictionary = size,
                (8, 5 | 6) => page.levels += size,
                (8, 7) => page.plain = value == 0,
                _ => return,
            }
            negative |= value < 0;
        })?;
        match negative {
            true => Err("a page claims a negative size".into()),
            false => Ok(page),
        }
    }

    /// Checks the claims of this page, whose bytes come next in `file`.
    fn check(&self, column: &ColumnChunkMetaData, file: impl Read) -> Result<(), String> {
        let &Self { claimed, compressed, dictionary, levels, plain } = self;
        let compression = column.compression();
        let (most, codec) = (most(compression, compressed), codec(compression));
        if claimed > most {
            return Err(format!(
                "a page of {compressed} bytes claims {claimed} when decompressed; with {codec} it holds {most} \
                 at most"
            ));
        }
        if compression == Compression::LZ4 && compressed > MOST_PAGE / LZ4_RATIO {
            return Err(format!(
                "a page of {compressed} bytes in LZ4 may hold more than {MOST_PAGE}"
            ));
        }
        let least = if column.column_type() == Type::FIXED_LEN_BYTE_ARRAY { 1 } else { 4 };
        if dictionary > claimed / least {
            return Err(format!("a dictionary claims {dictionary} values in {claimed} bytes"));
        }
        if matches!(compression, Compression::GZIP(_)) && !plain {
            let mut file = file.take(compressed);
            io::copy(&mut file.by_ref().take(levels), &mut io::sink()).map_err(said)?;
            let most = claimed.saturating_sub(levels);
            let mut decoded = MultiGzDecoder::new(file).take(most + 1);
            // What is no gzip the library says itself.
            if io::copy(&mut decoded, &mut io::sink()).is_ok_and(|bytes| bytes > most) {
                return Err(format!(
                    "a page claims {claimed} bytes when decompressed and holds more"
                ));
            }
        }
        Ok(())
    }
}

/// The most bytes that `compressed` ones can hold.
fn most(compression: Compression, compressed: u64) -> u64 {
    let ratio = match compression {
        Compression::SNAPPY => 22,
        Compression::GZIP(_) => 1032,
        Compression::LZ4 | Compression::LZ4_RAW => LZ4_RATIO,
        Compression::ZSTD(_) => 32_768,
        _ => 1,
    };
    compressed.saturating_mul(ratio).min(MOST_PAGE)
}

fn codec(compression: Compression) -> &'static str {
    match compression {
        Compression::SNAPPY => "Snappy",
        Compression::GZIP(_) => "gzip",
        Compression::LZ4 | Compression::LZ4_RAW => "LZ4",
        Compression::ZSTD(_) => "zstd",
        _ => "no compression",
    }
}

fn said(error: io::Error) -> String {
    error.to_string()
}

/// A reader of Thrift's compact protocol, to which `left` bytes belong. What is longer than they are is refused.
struct Thrift<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Thrift<R> {
    /// Reads a structure and tells `found` of each number in it and in those directly within it: the field of
    /// the outer structure (0 for its own), the field, and the value.
    fn structure(&mut self, found: &mut impl FnMut(i16, i16, i64)) -> Result<(), String> {
        self.value(12, &mut Vec::new(), &mut |path: &[i16], value| match *path {
            [field] => found(0, field, value),
            [outer, field] => found(outer, field, value),
            _ => {}
        })
    }

    /// Reads a value of the type `kind`, which the fields of `path` lead to.
    fn value(
        &mut self,
        kind: u8,
        path: &mut Vec<i16>,
        found: &mut impl FnMut(&[i16], i64),
    ) -> Result<(), String> {
        match kind {
            1 | 2 => found(path, i64::from(kind == 1)),
            3 => self.skip(1)?,
            4 | 5 => {
                let number = self.zigzag()?;
                found(path, i64::from(number as i32)); // as the library cuts it
            }
            6 => drop(self.zigzag()?),
            7 => self.skip(8)?,
            8 => {
                let length = self.varint()?;
                self.skip(length)?;
            }
            9 => self.list(path, found)?,
            12 if path.len() < DEEPEST => {
                let mut field = 0i16;
                loop {
                    let byte = self.byte()?;
                    let (delta, kind) = (byte >> 4, byte & 15);
                    if kind == 0 {
                        break;
                    }
                    field = match delta {
                        0 => self.zigzag()? as i16,
                        delta => field.wrapping_add(delta.into()),
                    };
                    path.push(field);
                    self.value(kind, path, found)?;
                    path.pop();
                }
            }
            _ => return Err(format!("a header holds a value of the unknown type {kind}")),
        }
        Ok(())
    }

    fn list(
        &mut self,
        path: &mut Vec<i16>,
        found: &mut impl FnMut(&[i16], i64),
    ) -> Result<(), String> {
        let byte = self.byte()?;
        let length = match byte >> 4 {
            15 => self.varint()?,
            length => length.into(),
        };
        if length > self.left {
            return Err(format!("a list claims {length} elements in {} bytes", self.left));
        }
        for _ in 0..length {
            match byte & 15 {
                1 | 2 => self.skip(1)?,
                kind => self.value(kind, path, found)?,
            }
        }
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, String> {
        let mut byte = [0];
        self.left = self.left.checked_sub(1).ok_or("a header does not end")?;
        self.reader.read_exact(&mut byte).map_err(said)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err("a header holds a number of more than 64 bits".into())
    }

    fn zigzag(&mut self) -> Result<i64, String> {
        let number = self.varint()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        let left = self.left;
        self.left = left
            .checked_sub(bytes)
            .ok_or_else(|| format!("a text claims {bytes} bytes of {left}"))?;
        io::copy(&mut self.reader.by_ref().take(bytes), &mut io::sink()).map_err(said)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_claim_what_its_bytes_can_hold() {
        let gzip = Compression::GZIP(Default::default());
        assert_eq!(most(Compression::UNCOMPRESSED, 100), 100);
        assert_eq!(most(Compression::SNAPPY, 100), 2200);
        assert_eq!(most(gzip, 100), 103_200);
        assert_eq!(most(gzip, u64::MAX), 1 << 30);
        assert_eq!(most(Compression::LZ4_RAW, 100), 25_500);
        assert_eq!(most(Compression::ZSTD(Default::default()), 100), 3_276_800);
    }

    fn read(bytes: &[u8]) -> Result<Vec<(i16, i16, i64)>, String> {
        let mut numbers = Vec::new();
        let mut thrift = Thrift { reader: bytes, left: bytes.len() as u64 };
        thrift.structure(&mut |outer, field, value| numbers.push((outer, field, value)))?;
        Ok(numbers)
    }

    #[test]
    fn numbers_of_a_header_are_found_and_all_else_is_skipped() {
        // Fields 1 = -2, 3 = 150, 5 = {1: true, 2: "ab"}, 20 = [{1: 1}, {}], 21: a double.
        let bytes = [
            0x15, 3, 0x25, 0xAC, 2, 0x2C, 0x11, 0x18, 2, b'a', b'b', 0, 0x09, 40, 0x2C, 0x15, 2, 0,
            0, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        let numbers = [(0, 1, -2), (0, 3, 150), (5, 1, 1), (20, 1, 1)];
        assert_eq!(read(&bytes).unwrap(), numbers);
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn what_a_header_claims_is_there() {
        assert_eq!(
            read(&[0x19, 0xFC, 100, 0]).unwrap_err(),
            "a list claims 100 elements in 1 bytes"
        );
        assert_eq!(read(&[0x18, 100, 0]).unwrap_err(), "a text claims 100 bytes of 1");
        assert_eq!(read(&[0x1B, 0]).unwrap_err(), "a header holds a value of the unknown type 11");
        assert!(read(&[0x1C; 100]).unwrap_err().contains("of the unknown type 12"), "too deep");
    }
}
