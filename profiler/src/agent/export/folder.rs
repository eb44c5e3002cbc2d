//! A folder of pprof files: `NAMESPACE.POD.CONTAINER/2026-11-21T18-24-20.000Z.pb.gz`, a folder for each
//! container, service or process, and in it `labels.json` with all that is known of it. Bounded by size
//! and age: the oldest files go. A file is there whole or not at all.

use std::{
    collections::BTreeMap,
    fs::{self, DirEntry},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, TryLockError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use tempfile::Builder;
use tokio::task::spawn_blocking;

use super::{item::Item, places::Sent, settings};
use crate::agent::labels::Labels;

const SUFFIX: &str = ".pb.gz";
const LABELS: &str = "labels.json";
const TEMPORARY: &str = ".pyebpf-";

/// Most bytes of one part of a name.
const PART_MAX: usize = 63;

pub(super) struct Folder(Arc<Mutex<Files>>);

/// What is in the folder.
struct Files {
    path: PathBuf,
    max_size: u64,
    max_age: Duration,
    size: u64,
    /// Sizes of the files, by when each was written and its path.
    files: BTreeMap<(SystemTime, PathBuf), u64>,
    /// What `labels.json` says, by folder.
    labels: BTreeMap<PathBuf, Arc<Labels>>,
}

impl Folder {
    /// Makes it where there is none, and looks for what is in it.
    ///
    /// # Errors
    /// When it can't be made or written.
    pub(super) fn open(settings: &settings::Folder) -> Result<(Folder, PathBuf)> {
        let path = match &settings.path {
            Some(path) => path.clone(),
            None => default_path()?,
        };
        let said = || {
            format!(
                "cannot write profiles into {}: name another folder with `--folder`",
                path.display()
            )
        };
        fs::create_dir_all(&path).with_context(said)?;
        Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(&path)
            .with_context(said)?;
        let mut files = Files {
            path: path.clone(),
            max_size: settings.max_size.0,
            max_age: settings.max_age.0,
            size: 0,
            files: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        files.find().with_context(said)?;
        files.make_room(SystemTime::now());
        Ok((Folder(Arc::new(Mutex::new(files))), path))
    }

    pub(super) async fn send(&self, item: &Item) -> Sent {
        let (files, item) = (self.0.clone(), item.clone());
        let written = spawn_blocking(move || {
            let mut files = match files.try_lock() {
                Ok(files) => files,
                Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
                // Others are written now: no thread is to wait for each.
                Err(TryLockError::WouldBlock) => return Ok(false),
            };
            files.write(&item).map(|()| true)
        });
        match written.await {
            Ok(Ok(true)) => Sent::Taken,
            Ok(Ok(false)) => Sent::Later {
                why: "the disk is slow".to_owned(),
                after: Some(Duration::ZERO),
            },
            Ok(Err(error)) => Sent::later(format!("{error:#}")),
            Err(error) => Sent::Refused(error.to_string()),
        }
    }
}

impl Files {
    /// Looks for files of earlier starts, and removes what those have left unfinished.
    fn find(&mut self) -> Result<()> {
        for folder in fs::read_dir(&self.path)?.flatten() {
            if !folder.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            for entry in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                self.found(&entry);
            }
        }
        Ok(())
    }

    fn found(&mut self, entry: &DirEntry) {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Ok(file) = entry.metadata() else { return };
        if name.starts_with(TEMPORARY) {
            let _ = fs::remove_file(entry.path());
        } else if name.ends_with(SUFFIX)
            && file.is_file()
            && let Ok(time) = file.modified()
        {
            self.size += file.len();
            self.files.insert((time, entry.path()), file.len());
        }
    }

    fn write(&mut self, item: &Item) -> Result<()> {
        let folder = self.path.join(name(&item.head.labels));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        if self.labels.get(&folder) != Some(&item.head.labels) {
            let labels = serde_json::to_vec_pretty(&item.head.labels)?;
            put(&folder.join(LABELS), &labels)?;
            self.labels.insert(folder.clone(), item.head.labels.clone());
        }
        let time = humantime::format_rfc3339_millis(item.head.started()).to_string();
        // A colon stands between a host and a path for `go tool pprof`, scp and others.
        let time = time.replace(':', "-");
        let mut path = folder.join(format!("{time}{SUFFIX}"));
        // Two may have the same name: of two processes, where they are told apart by no label.
        let mut count = 1;
        while path.exists() {
            count += 1;
            path = folder.join(format!("{time}.{count}{SUFFIX}"));
        }
        put(&path, &item.body)?;
        let now = SystemTime::now();
        let size = item.body.len() as u64;
        self.size += size;
        self.files.insert((now, path), size);
        self.make_room(now);
        Ok(())
    }

    /// Removes what is too old, or too much.
    fn make_room(&mut self, now: SystemTime) {
        while let Some(((time, _), _)) = self.files.first_key_value() {
            let age = now.duration_since(*time).unwrap_or_default();
            if self.size <= self.max_size && age <= self.max_age {
                return;
            }
            let Some(((_, path), size)) = self.files.pop_first() else {
                return;
            };
            self.size -= size;
            // Somebody may have removed it already.
            let _ = fs::remove_file(&path);
            if let Some(folder) = path.parent() {
                self.remove_if_empty(folder);
            }
        }
    }

    fn remove_if_empty(&mut self, folder: &Path) {
        let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
        if entries.all(|entry| entry.file_name() == LABELS) {
            self.labels.remove(folder);
            let _ = fs::remove_file(folder.join(LABELS));
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Where state of its own belongs to root, or to a user.
fn default_path() -> Result<PathBuf> {
    // SAFETY: a system call without arguments that cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return Ok("/var/lib/pyebpf/profiles".into());
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state"));
    let state = state.or_else(home);
    let state = state.context("there is no home folder: name one for profiles with `--folder`")?;
    Ok(state.join("pyebpf/profiles"))
}

/// The folder's name: what a person looks for, of characters that need no quotes.
fn name(labels: &Labels) -> String {
    let of = |name: &str| labels.get(name).filter(|value| !value.is_empty());
    let mut parts = Vec::new();
    match (of("pod"), of("container_id")) {
        (Some(pod), _) => {
            parts.extend(of("namespace"));
            parts.push(pod);
            parts.extend(of("container"));
        }
        (None, Some(id)) => {
            parts.extend(of("container").or(of("service")));
            parts.push(id);
        }
        (None, None) => parts.extend(of("service")),
    }
    parts.extend(of("pid"));
    let parts = parts.into_iter().map(|part| {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
        // A container's id is not told by all of its digits.
        let most = if part.len() == 64 { 12 } else { PART_MAX };
        let letters = part
            .chars()
            .map(|letter| if plain(letter) { letter } else { '_' });
        letters.take(most).collect::<String>()
    });
    match parts.collect::<Vec<_>>().join(".") {
        name if name.is_empty() => "host".to_owned(),
        name => name,
    }
}

/// Writes a file that is there whole or not at all.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    let write = || -> std::io::Result<()> {
        let mut file = Builder::new().prefix(TEMPORARY).make_in(folder, |name| {
            // Less the umask, as for any new file.
            fs::File::create_new(name)
        })?;
        file.write_all(bytes)?;
        file.persist(path).map_err(|failed| failed.error)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
