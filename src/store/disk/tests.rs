//! The file as a store: what is durable, what heals, and what is refused when it is opened.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::file::open_with;
use super::*;
use crate::id::{SessionId, TenantId};

fn key() -> RowKey {
    RowKey {
        tenant: TenantId::new("acme"),
        session: SessionId::generate(),
    }
}

fn row(sealed: impl Into<Vec<u8>>) -> Row {
    Row {
        sealed: sealed.into(),
        last_used: 7,
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("store")
    }

    fn open(&self) -> Disk {
        Disk::open(&self.path()).unwrap()
    }
}

/// A file whose writes fail while the test wants it.
#[derive(Debug)]
struct Faulty {
    file: FileBackend,
    broken: Arc<AtomicBool>,
}

impl Faulty {
    fn obey(&self) -> Result<(), io::Error> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> Result<u64, io::Error> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.obey()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.obey()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.obey()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> Result<(), io::Error> {
        self.file.close()
    }
}

fn faulty(place: &Place) -> (Disk, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&broken);
    let opener: Opener = Box::new(move |path| {
        let broken = Arc::clone(&shared);
        open_with(path, |file| {
            let file = FileBackend::new(file)?;
            Ok(Faulty { file, broken })
        })
    });
    file::make(&place.path()).unwrap();
    (Disk::with(&place.path(), opener).unwrap(), broken)
}

#[tokio::test]
async fn rows_outlive_the_process() {
    let place = Place::new();
    let (one, two, three) = (key(), key(), key());
    let disk = place.open();
    for key in [&one, &two, &three] {
        disk.put(key, row("before")).await.unwrap();
    }
    disk.put(&one, row("after")).await.unwrap();
    assert!(disk.delete(&two).await.unwrap());
    assert!(!disk.delete(&two).await.unwrap());
    disk.touch(vec![(three.clone(), 9), (two.clone(), 9)])
        .await
        .unwrap();
    disk.close();
    let disk = place.open();
    let used = Row {
        last_used: 9,
        ..row("before")
    };
    assert_eq!(disk.get(&one).await.unwrap(), Some(row("after")));
    assert_eq!(disk.get(&two).await.unwrap(), None);
    let mut expected = vec![(one, row("after")), (three, used)];
    expected.sort_by(|(a, _), (b, _)| a.cmp(b));
    let all = disk.load().await.unwrap();
    assert_eq!((all.rows, all.strange.len()), (expected, 0));
    disk.health().unwrap();
}

#[tokio::test]
async fn many_changes_at_once_are_all_done() {
    let place = Place::new();
    let disk = Arc::new(place.open());
    let keys: Vec<RowKey> = (0..600).map(|_| key()).collect();
    let puts = keys.iter().map(|key| disk.put(key, row(vec![1; 3000])));
    for done in futures_util::future::join_all(puts).await {
        done.unwrap();
    }
    let deletions = keys.iter().take(300).map(|key| disk.delete(key));
    for done in futures_util::future::join_all(deletions).await {
        assert!(done.unwrap());
    }
    assert_eq!(disk.load().await.unwrap().rows.len(), 300);
}

#[tokio::test]
async fn a_disk_that_was_full_heals_by_itself() {
    let place = Place::new();
    let (disk, broken) = faulty(&place);
    let (before, during, after) = (key(), key(), key());
    disk.put(&before, row("before")).await.unwrap();
    broken.store(true, Ordering::SeqCst);
    let failed = disk.put(&during, row("during")).await;
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    disk.health().unwrap_err();
    // Nobody asks for a change: the thread finds out on its own.
    broken.store(false, Ordering::SeqCst);
    while disk.health().is_err() {
        tokio::task::yield_now().await;
    }
    disk.put(&after, row("after")).await.unwrap();
    disk.close();
    let rows = place.open().load().await.unwrap().rows;
    let keys: Vec<_> = rows.into_iter().map(|(key, _)| key).collect();
    assert!(keys.contains(&before) && keys.contains(&after) && !keys.contains(&during));
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let place = Place::new();
    let _first = place.open();
    let second = Disk::open(&place.path());
    assert!(matches!(second, Err(Error::InUse(_))), "{second:?}");
}

#[tokio::test]
async fn what_is_no_store_is_refused_and_left_as_it_is() {
    for content in [&b""[..], b"text", &[0; 4096], &vec![0xff; 70_000]] {
        let place = Place::new();
        fs::write(place.path(), content).unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o600)).unwrap();
        let opened = Disk::open(&place.path());
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "{opened:?}");
        assert_eq!(fs::read(place.path()).unwrap(), content);
    }
}

#[tokio::test]
async fn the_file_is_its_owner_s_alone() {
    let place = Place::new();
    place.open().close();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&place.path()), 0o600);
    let names = fs::read_dir(place.0.path()).unwrap();
    assert_eq!(names.count(), 1, "nothing is left of its making");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o640)).unwrap();
    let opened = Disk::open(&place.path());
    assert!(matches!(opened, Err(Error::File { .. })), "{opened:?}");
}

#[tokio::test]
async fn a_store_that_was_cut_off_never_looks_empty() {
    let place = Place::new();
    let disk = place.open();
    let keys: Vec<RowKey> = (0..200).map(|_| key()).collect();
    for chunk in keys.chunks(50) {
        let puts = chunk.iter().map(|key| disk.put(key, row(vec![5; 2000])));
        for done in futures_util::future::join_all(puts).await {
            done.unwrap();
        }
    }
    disk.close();
    let whole = fs::read(place.path()).unwrap();
    for part in [1, 2, 3, 5, 8, 13, 21, 34, 55, 89] {
        fs::write(place.path(), &whole[..whole.len() * part / 100]).unwrap();
        let rows = match Disk::open(&place.path()) {
            Ok(disk) => disk.load().await.map(|all| all.rows.len()),
            Err(error) => Err(error),
        };
        assert!(rows.is_err(), "{part} %: {rows:?}");
    }
}

#[tokio::test]
async fn a_flipped_bit_is_told_or_changes_one_row() {
    let place = Place::new();
    let disk = place.open();
    let keys: Vec<RowKey> = (0..100).map(|_| key()).collect();
    for key in &keys {
        disk.put(key, row(vec![5; 500])).await.unwrap();
    }
    disk.close();
    let length = fs::metadata(place.path()).unwrap().len();
    let whole = fs::read(place.path()).unwrap();
    for step in 0..150 {
        let at = length * step / 150 + step;
        fs::write(place.path(), &whole).unwrap();
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(place.path())
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0] ^= 0x10;
        file.write_all_at(&byte, at).unwrap();
        drop(file);
        let rows = match Disk::open(&place.path()) {
            Ok(disk) => disk.load().await,
            Err(error) => Err(error),
        };
        let Ok(all) = rows else { continue };
        assert_eq!(all.rows.len() + all.strange.len(), 100, "at {at}");
        let same = all
            .rows
            .iter()
            .filter(|(key, it)| keys.contains(key) && it.sealed == [5; 500] && it.last_used == 7);
        assert!(same.count() >= 99, "at {at}");
    }
}
