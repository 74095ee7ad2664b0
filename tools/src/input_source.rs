//! Where records come from: standard input or a file, plain, gzip or zstd.
//!
//! The first bytes decide which, so that a pipe works like a file; a name that says otherwise is an error and no
//! guess. Bytes are counted as they are stored, which is what a file's length can be compared with.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::failure::Failure;

const BUFFER_BYTES: usize = 256 * 1024;
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// An opened input.
pub struct InputSource {
    /// What errors call it: the path, or "standard input".
    pub name: String,
    /// Its length as stored, where it is known (bytes).
    pub stored_bytes: Option<u64>,
    /// Stored bytes read so far.
    pub stored_bytes_read: Arc<AtomicU64>,
    /// What it holds, decompressed.
    pub reader: Box<dyn BufRead + Send>,
}

impl InputSource {
    /// Opens `path`, or standard input if there is none or it is `-`. Waits for the first bytes.
    ///
    /// # Errors
    /// If it can not be read, or its name promises a compression that its bytes are not.
    pub fn open(path: Option<&Path>) -> Result<InputSource, Failure> {
        match path.filter(|path| *path != Path::new("-")) {
            None => InputSource::detect(Origin { path: None, stored_bytes: None }, io::stdin()),
            Some(path) => {
                let file = File::open(path).map_err(|error| Failure::file(path, &error))?;
                let metadata = file.metadata().map_err(|error| Failure::file(path, &error))?;
                if metadata.is_dir() {
                    return Err(Failure::failed(format!("{}: is a directory", path.display()))
                        .hint("give one file, or pipe several: cat DIR/* | quire produce …"));
                }
                let stored_bytes = metadata.is_file().then_some(metadata.len());
                InputSource::detect(Origin { path: Some(path.to_owned()), stored_bytes }, file)
            }
        }
    }

    fn detect(origin: Origin, stored: impl Read + Send + 'static) -> Result<InputSource, Failure> {
        let stored_bytes_read = Arc::new(AtomicU64::new(0));
        let counted = Counted { inner: stored, bytes: stored_bytes_read.clone() };
        let mut stored = BufReader::with_capacity(BUFFER_BYTES, counted);
        let head = stored.fill_buf().map_err(|error| origin.unreadable(&error))?;
        let found = Compression::of_bytes(head);
        origin.check_name(found, head.is_empty())?;
        let reader: Box<dyn BufRead + Send> = match found {
            Compression::None => Box::new(stored),
            Compression::Gzip => buffered(flate2::bufread::MultiGzDecoder::new(stored)),
            Compression::Zstd => buffered(
                zstd::stream::read::Decoder::with_buffer(stored)
                    .map_err(|error| origin.unreadable(&error))?,
            ),
        };
        Ok(InputSource { name: origin.name(), stored_bytes: origin.stored_bytes, stored_bytes_read, reader })
    }
}

fn buffered(reader: impl Read + Send + 'static) -> Box<dyn BufRead + Send> {
    Box::new(BufReader::with_capacity(BUFFER_BYTES, reader))
}

struct Origin {
    path: Option<PathBuf>,
    stored_bytes: Option<u64>,
}

impl Origin {
    fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "standard input".to_owned(), |path| path.display().to_string())
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        Failure::file(Path::new(&self.name()), error)
    }

    fn check_name(&self, found: Compression, is_empty: bool) -> Result<(), Failure> {
        let promised = self.path.as_deref().map_or(Compression::None, Compression::of_name);
        if promised == Compression::None || promised == found || is_empty {
            return Ok(());
        }
        let name = self.name();
        Err(Failure::failed(format!("{name}: its name says {promised:?}, its first bytes do not"))
            .hint("rename it if it is plain text, or fetch it again if it was cut or damaged"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of_bytes(head: &[u8]) -> Compression {
        if head.starts_with(GZIP_MAGIC) {
            Compression::Gzip
        } else if head.starts_with(ZSTD_MAGIC) {
            Compression::Zstd
        } else {
            Compression::None
        }
    }

    fn of_name(path: &Path) -> Compression {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Compression::Gzip,
            Some("zst" | "zstd") => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// Counts what passes through.
struct Counted<R> {
    inner: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const TEXT: &[u8] = b"one\ntwo\n";

    fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("it can be written");
        (dir, path)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    }

    fn read(path: &Path) -> Result<Vec<u8>, Failure> {
        let mut source = InputSource::open(Some(path))?;
        let mut out = Vec::new();
        source.reader.read_to_end(&mut out).map_err(|error| Failure::file(path, &error))?;
        assert_eq!(Some(source.stored_bytes_read.load(Ordering::Relaxed)), source.stored_bytes);
        Ok(out)
    }

    #[test]
    fn every_compression_gives_the_same_text_whatever_the_name() {
        let zstd = zstd::encode_all(TEXT, 1).expect("memory takes it");
        let two_members = [gzip(b"one\n"), gzip(b"two\n")].concat();
        for (name, bytes) in [
            ("a", TEXT.to_vec()),
            ("a.gz", gzip(TEXT)),
            ("a", gzip(TEXT)),
            ("a.zst", zstd),
            ("b.gz", two_members),
        ] {
            let (_dir, path) = file(name, &bytes);
            assert_eq!(read(&path).expect("readable"), TEXT, "{name}");
        }
    }

    #[test]
    fn a_name_that_promises_what_the_bytes_are_not_is_an_error() {
        let (_dir, path) = file("a.gz", TEXT);
        let failure = read(&path).expect_err("it is plain text");
        assert!(failure.to_string().contains("its name says Gzip"), "{failure}");
        let (_dir, empty) = file("empty.gz", b"");
        assert_eq!(read(&empty).expect("an empty file is no records"), b"");
    }

    #[test]
    fn what_can_not_be_read_says_why() {
        let missing = InputSource::open(Some(Path::new("/nowhere/at.all"))).err().expect("missing");
        assert!(missing.to_string().contains("no such file"), "{missing}");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let directory = InputSource::open(Some(dir.path())).err().expect("no file");
        assert!(directory.to_string().contains("is a directory"), "{directory}");
    }
}
