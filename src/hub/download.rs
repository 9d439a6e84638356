//! Downloads into the cache.
//!
//! A file is written to `blobs/HASH.incomplete`, where a later try goes on, is checked, and is renamed. Snapshot and
//! ref appear when every file is there. The lock of a blob is that of `huggingface_hub`, so that no two programs write
//! it at the same time.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::Wanted;
use super::cache::{Kind, Repository, home, is_below, root, variable};
use super::error::HubError;
use crate::atomic;
use crate::file_error::FileError;
use crate::stop::say;

/// The longest wait for a server to go on.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes of a repository's list of files.
const MOST_LIST: u64 = 64 << 20;

/// A repository's files at a commit.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    rfilename: String,
    size: u64,
    blob_id: String,
    /// Of a large file.
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    sha256: String,
}

impl Entry {
    /// The name of its blob.
    fn hash(&self) -> &str {
        self.lfs.as_ref().map_or(&self.blob_id, |large| &large.sha256)
    }

    fn is_sound(&self) -> bool {
        is_below(&self.rfilename) && is_hash(self.hash())
    }
}

fn is_hash(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The snapshot of `repository` with the files that are wanted, downloaded as far as they are not there.
pub(super) fn download(repository: &Repository, wanted: &impl Wanted) -> Result<PathBuf, HubError> {
    let hub = Hub::new(repository);
    let Listing { sha, siblings } = hub.listing()?;
    let names: Vec<String> = siblings.iter().map(|entry| entry.rfilename.clone()).collect();
    let chosen = wanted.choose(&names).map_err(|problem| hub.refused(problem))?;
    let entries: Vec<&Entry> =
        siblings.iter().filter(|entry| chosen.contains(&entry.rfilename)).collect();
    if !is_hash(&sha) || !entries.iter().all(|entry| entry.is_sound()) {
        return Err(hub.refused("the server's list names files that no repository has".into()));
    }
    let dir = repository.dir();
    let make = |dir: &Path| atomic::create_dir_all(dir).map_err(FileError::writing(dir));
    let blobs = dir.join("blobs");
    make(&blobs)?;
    for entry in &entries {
        hub.fetch(&sha, entry, &blobs)?;
    }
    let snapshot = dir.join("snapshots").join(&sha);
    for entry in entries {
        let link = snapshot.join(&entry.rfilename);
        make(link.parent().expect("a file in the snapshot"))?;
        match link_blob(&blobs, entry.hash(), &entry.rfilename, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(FileError::writing(&link)(error).into());
            }
            _ => {}
        }
    }
    if repository.revision() != sha {
        let reference = dir.join("refs").join(repository.revision());
        make(reference.parent().expect("a file in refs"))?;
        atomic::write_file(&reference, sha.as_bytes()).map_err(FileError::writing(&reference))?;
    }
    Ok(snapshot)
}

#[cfg(unix)]
fn link_blob(_: &Path, hash: &str, name: &str, link: &Path) -> io::Result<()> {
    let up = "../".repeat(2 + name.matches('/').count());
    std::os::unix::fs::symlink(format!("{up}blobs/{hash}"), link)
}

/// Links that the user may make without rights of an administrator.
#[cfg(not(unix))]
fn link_blob(blobs: &Path, hash: &str, _: &str, link: &Path) -> io::Result<()> {
    fs::hard_link(blobs.join(hash), link)
}

/// The server, asked for one repository.
struct Hub<'a> {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    repository: &'a Repository,
}

impl<'a> Hub<'a> {
    fn new(repository: &'a Repository) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build();
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Self {
            agent: config.into(),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token(),
            repository,
        }
    }

    fn refused(&self, problem: String) -> HubError {
        HubError::Refused { name: self.repository.to_string(), problem }
    }

    fn broken(&self, problem: String) -> HubError {
        HubError::Broken { name: self.repository.to_string(), problem }
    }

    /// The answer to a request for `path`, from the byte `start` on.
    fn get(&self, path: &str, start: u64) -> Result<Response<Body>, HubError> {
        let mut request = self.agent.get(format!("{}/{path}", self.endpoint));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        let unreachable = |error| self.broken(format!("cannot reach {}: {error}", self.endpoint));
        let response = request.call().map_err(unreachable)?;
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            status => Err(self.refusal(status, &response)),
        }
    }

    /// What a status other than success means.
    fn refusal(&self, status: u16, response: &Response<Body>) -> HubError {
        let Repository { kind, name, .. } = self.repository;
        let code = response.headers().get("X-Error-Code").and_then(|code| code.to_str().ok());
        let token = match &self.token {
            Some(_) => "check the token in HF_TOKEN",
            None => "put a token into HF_TOKEN, or run `hf auth login`",
        };
        let kind = kind.noun();
        self.refused(match (code, status) {
            (Some("GatedRepo"), _) => {
                let page = self.page();
                format!("gated: accept its terms at {page}, and {token}")
            }
            (Some("RevisionNotFound"), _) => {
                format!("{name} has no revision {}; name a branch, tag or commit", self.repository.revision())
            }
            (Some("RepoNotFound"), _) | (_, 401 | 403 | 404) => format!(
                "neither here nor a {kind} that {} gives (status {status}): check the name; for a private or gated \
                 one, {token}",
                self.endpoint
            ),
            (_, 429 | 500..) => {
                return self.broken(format!("{} answers with status {status}", self.endpoint));
            }
            _ => format!("{} answers with status {status}", self.endpoint),
        })
    }

    /// Where a person looks at the repository.
    fn page(&self) -> String {
        match self.repository.kind {
            Kind::Model => format!("{}/{}", self.endpoint, self.repository.name),
            Kind::Dataset => format!("{}/datasets/{}", self.endpoint, self.repository.name),
        }
    }

    fn listing(&self) -> Result<Listing, HubError> {
        let Repository { kind, name, .. } = self.repository;
        let revision = self.repository.revision().replace('/', "%2F");
        let path = format!("api/{}/{name}/revision/{revision}?blobs=true", kind.plural());
        let mut response = self.get(&path, 0)?;
        let text = response.body_mut().with_config().limit(MOST_LIST).read_to_string();
        let text = text.map_err(|error| self.broken(format!("its list of files: {error}")))?;
        serde_json::from_str(&text)
            .map_err(|error| self.refused(format!("{} is no Hub: {error}", self.endpoint)))
    }

    /// Puts a file into `blobs`, if it is not there.
    fn fetch(&self, commit: &str, entry: &Entry, blobs: &Path) -> Result<(), HubError> {
        let (name, hash) = (&entry.rfilename, entry.hash());
        let blob = blobs.join(hash);
        if blob.exists() {
            return Ok(());
        }
        let _lock = self.lock(hash)?;
        if blob.exists() {
            return Ok(());
        }
        let part = blobs.join(format!("{hash}.incomplete"));
        let writing = FileError::writing(&part);
        let mut file = File::options().read(true).append(true).create(true).open(&part);
        let file = file.as_mut().map_err(|error| writing(io::Error::from(error.kind())))?;
        let mut done = file.metadata().map_err(&writing)?.len();
        if done > entry.size {
            file.set_len(0).map_err(&writing)?;
            done = 0;
        }
        if done < entry.size {
            done = self.copy(commit, entry, file, done, &part)?;
        }
        if done < entry.size {
            let size = entry.size;
            return Err(self.broken(format!("{name} broke off after {done} of {size} bytes")));
        }
        let right = done == entry.size
            && match &entry.lfs {
                None => true,
                Some(large) => sha256(file).map_err(&writing)? == large.sha256,
            };
        if !right {
            fs::remove_file(&part).map_err(&writing)?;
            let problem =
                "arrived other than the Hub says that it is (size or SHA-256); it is thrown away";
            return Err(self.broken(format!("{name} {problem}")));
        }
        file.sync_all().map_err(&writing)?;
        Ok(fs::rename(&part, &blob).map_err(FileError::writing(&blob))?)
    }

    /// Appends what `file` lacks after its first `done` bytes, and gives its new length.
    fn copy(
        &self,
        commit: &str,
        entry: &Entry,
        file: &mut File,
        mut done: u64,
        part: &Path,
    ) -> Result<u64, HubError> {
        let (name, size) = (&entry.rfilename, entry.size);
        let page = self.page();
        let page = page.strip_prefix(&format!("{}/", self.endpoint)).unwrap_or(&page);
        let mut response = self.get(&format!("{page}/resolve/{commit}/{}", escaped(name)), done)?;
        let writing = FileError::writing(part);
        let range = response.headers().get("Content-Range").and_then(|range| range.to_str().ok());
        let goes_on = range.is_some_and(|range| range.starts_with(&format!("bytes {done}-")));
        if done > 0 && !(response.status() == 206 && goes_on) {
            file.set_len(0).map_err(&writing)?;
            done = 0;
        }
        let bar = bar(&format!("{} {name}", self.repository.name), size, done);
        let mut body = response.body_mut().as_reader().take(size - done + 1);
        let mut buffer = vec![0; 1 << 16];
        loop {
            match body.read(&mut buffer) {
                Ok(0) | Err(_) => break, // where it broke off the caller says
                Ok(read) => {
                    file.write_all(&buffer[..read]).map_err(&writing)?;
                    done += read as u64;
                    bar.set_position(done);
                }
            }
        }
        bar.finish_and_clear();
        Ok(done)
    }

    /// The lock of a blob; waits for another program that downloads it.
    fn lock(&self, hash: &str) -> Result<File, HubError> {
        let dir = root().join(".locks").join(self.repository.folder());
        atomic::create_dir_all(&dir).map_err(FileError::writing(&dir))?;
        let path = dir.join(format!("{hash}.lock"));
        let file = File::create(&path).map_err(FileError::writing(&path))?;
        match file.lock() {
            // Two writers of one blob would be told apart by its SHA-256.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
            locked => Ok(locked.map(|()| file).map_err(FileError::writing(&path))?),
        }
    }
}

/// A path with what an address cannot hold escaped.
fn escaped(path: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    path.bytes().map(byte).collect()
}

/// A bar in a terminal, a line elsewhere.
fn bar(name: &str, size: u64, done: u64) -> ProgressBar {
    let bar = ProgressBar::new(size).with_position(done);
    let template = "{prefix} {bar:24.cyan/blue} {bytes}/{total_bytes} {bytes_per_sec} (left {eta})";
    let style = ProgressStyle::with_template(template).expect("the template parses");
    bar.set_style(style.progress_chars("━╸─"));
    bar.set_prefix(name.to_owned());
    if bar.is_hidden() {
        say(&format!("downloading {name} ({:.1} MB)", size as f64 / 1e6));
    }
    bar
}

fn sha256(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut hash = Sha256::new();
    io::copy(file, &mut hash)?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The user's token, where `huggingface_hub` has it.
fn token() -> Option<String> {
    let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(variable);
    let path = || variable("HF_TOKEN_PATH").map_or_else(|| home().join("token"), PathBuf::from);
    let token = named.or_else(|| fs::read_to_string(path()).ok())?.trim().to_owned();
    Some(token).filter(|token| !token.is_empty())
}
