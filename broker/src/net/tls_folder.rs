//! A folder of small files of which some are secret: read one by one, replaced together.
//!
//! A new file is there whole or not at all, also after a power loss. Keys are durable before any certificate is in its
//! place: a certificate without its key would be of no use to anybody.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use super::certificates::CertificatesError;

const FOLDER_MODE: u32 = 0o700;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrecy {
    /// Its owner.
    Key,
    /// Whoever may look into the folder.
    Certificate,
}

/// The folder, and what is to be replaced in it.
pub(super) struct Folder<'a> {
    path: &'a Path,
    replaced: Vec<Replaced>,
}

struct Replaced {
    name: String,
    text: String,
    secrecy: Secrecy,
}

impl<'a> Folder<'a> {
    /// Makes the folder if there is none.
    pub(super) fn open(path: &'a Path) -> Result<Folder<'a>, CertificatesError> {
        let folder = Folder { path, replaced: Vec::new() };
        DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(path)
            .map_err(|error| folder.failed(error))?;
        Ok(folder)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// `None` if there is no such file.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>, CertificatesError> {
        match fs::read_to_string(self.path(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CertificatesError::File { path: self.path(name), source }),
        }
    }

    /// Has a file replaced by [`Folder::store`].
    pub(super) fn replace(&mut self, name: impl Into<String>, text: impl Into<String>, secrecy: Secrecy) {
        self.replaced.push(Replaced { name: name.into(), text: text.into(), secrecy });
    }

    /// Replaces what is to be. Files are written side by side, since the disk syncs many as fast as one.
    pub(super) fn store(self) -> Result<(), CertificatesError> {
        if self.replaced.is_empty() {
            return Ok(());
        }
        let written: Vec<io::Result<()>> = thread::scope(|scope| {
            let folder = &self;
            let write = |file| scope.spawn(move || folder.write_new(file));
            let writers: Vec<_> = self.replaced.iter().map(write).collect();
            writers.into_iter().map(|writer| writer.join().expect("writing a file does not panic")).collect()
        });
        for (file, written) in self.replaced.iter().zip(written) {
            written.map_err(|source| CertificatesError::File { path: self.path(&file.name), source })?;
        }
        for secrecy in [Secrecy::Key, Secrecy::Certificate] {
            self.put_in_place(secrecy)?;
        }
        // The folder may be new itself.
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_dir(parent.unwrap_or(Path::new("."))).map_err(|error| self.failed(error))
    }

    /// Removes a file, if it is there; durable when this returns.
    pub(super) fn remove(&self, name: &str) -> Result<(), CertificatesError> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CertificatesError::File { path: self.path(name), source: error })
            }
            _ => sync_dir(self.path).map_err(|error| self.failed(error)),
        }
    }

    fn put_in_place(&self, secrecy: Secrecy) -> Result<(), CertificatesError> {
        for Replaced { name, .. } in self.replaced.iter().filter(|file| file.secrecy == secrecy) {
            let renamed = fs::rename(self.path(&new_name(name)), self.path(name));
            renamed.map_err(|source| CertificatesError::File { path: self.path(name), source })?;
        }
        sync_dir(self.path).map_err(|error| self.failed(error))
    }

    fn write_new(&self, file: &Replaced) -> io::Result<()> {
        let path = self.path(&new_name(&file.name));
        // One left over from a crash may have another mode.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mode = match file.secrecy {
            Secrecy::Key => 0o600,
            Secrecy::Certificate => 0o644,
        };
        let mut new = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        new.write_all(file.text.as_bytes())?;
        new.sync_all()
    }

    fn failed(&self, source: io::Error) -> CertificatesError {
        CertificatesError::File { path: self.path.to_owned(), source }
    }
}

fn new_name(name: &str) -> String {
    format!("{name}.new")
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
