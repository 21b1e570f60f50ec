//! The file as a store: what is durable, what heals, and what is refused when it is opened.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};

use futures_util::FutureExt;
use redb::StorageBackend;
use redb::backends::FileBackend;

use super::file::open_with;
use super::*;
use crate::id::{SessionId, TenantId};
use crate::store::Gate;

/// How long a machine under load may take for what happens at once elsewhere.
const PATIENCE: Duration = Duration::from_mins(2);

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

/// What is wrong with a disk while the test wants it.
#[derive(Debug, Default)]
struct Faults {
    /// Writes fail.
    broken: AtomicBool,
    /// Reads fail.
    blind: AtomicBool,
    /// Closing panics, once.
    mad: AtomicBool,
    /// Writes that have these bytes in them fail.
    cursed: Mutex<Vec<u8>>,
    /// Nothing reaches the disk for now.
    stalled: Mutex<bool>,
    stirred: Condvar,
}

impl Faults {
    fn stall(&self, is_stalled: bool) {
        *self.stalled.lock().unwrap() = is_stalled;
        self.stirred.notify_all();
    }

    fn wait(&self) {
        let stalled = self.stalled.lock().unwrap();
        drop(self.stirred.wait_while(stalled, |is_stalled| *is_stalled));
    }
}

/// A file with faults.
#[derive(Debug)]
struct Faulty {
    file: FileBackend,
    faults: Arc<Faults>,
}

impl Faulty {
    fn obey(&self) -> Result<(), io::Error> {
        if self.faults.broken.load(Ordering::SeqCst) {
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
        if self.faults.blind.load(Ordering::SeqCst) {
            return Err(io::Error::other("no answer from the disk"));
        }
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.obey()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.faults.wait();
        self.obey()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.obey()?;
        let cursed = self.faults.cursed.lock().unwrap();
        if !cursed.is_empty() && memchr::memmem::find(data, &cursed).is_some() {
            return Err(io::Error::other("a bad block"));
        }
        self.file.write(offset, data)
    }

    fn close(&self) -> Result<(), io::Error> {
        let is_mad = self.faults.mad.swap(false, Ordering::SeqCst);
        assert!(!is_mad, "the test wants a panic");
        self.file.close()
    }
}

fn faulty(place: &Place) -> (Disk, Arc<Faults>) {
    let (opener, faults) = faulty_opener(place);
    (Disk::with(&place.path(), opener).unwrap(), faults)
}

fn faulty_opener(place: &Place) -> (Opener, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let shared = Arc::clone(&faults);
    let opener: Opener = Box::new(move |path| {
        let faults = Arc::clone(&shared);
        open_with(path, |file| {
            let file = FileBackend::new(file)?;
            Ok(Faulty { file, faults })
        })
    });
    file::make(&place.path()).unwrap();
    (opener, faults)
}

/// Waits until a store takes changes again, of its own accord.
async fn healed(disk: &Disk) {
    let healed = async {
        while disk.health().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, healed).await.unwrap();
}

/// Opens a store that may be damaged and reads everything; the file is closed afterwards.
async fn read_all(place: &Place) -> Result<Rows, Error> {
    let disk = Disk::open(&place.path())?;
    let rows = disk.load().await;
    disk.close();
    rows
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
async fn records_stand_beside_the_rows_and_outlive_the_process() {
    let place = Place::new();
    let disk = place.open();
    let record = |name| RecordKey::new(RecordKind::Tenant, name);
    let (own, gone) = (record("acme"), record("with/slash"));
    let session = key();
    // In one group: what is done first stands when the next is asked for.
    let (first, second, third, deleted) = tokio::join!(
        disk.put_record(&own, b"one".to_vec()),
        disk.put(&session, row("row")),
        disk.put_record(&own, b"two".to_vec()),
        disk.delete_record(&gone),
    );
    first.and(second).and(third).unwrap();
    assert!(!deleted.unwrap());
    disk.put_record(&gone, b"gone".to_vec()).await.unwrap();
    assert!(disk.delete_record(&gone).await.unwrap());
    disk.close();
    let disk = place.open();
    let expected = RecordRows {
        records: vec![(own.clone(), b"two".to_vec())],
        strange: Vec::new(),
    };
    let found = disk.load_records(RecordKind::Tenant).await.unwrap();
    assert_eq!(found, expected);
    assert_eq!(disk.record(&own).await.unwrap(), Some(b"two".to_vec()));
    assert_eq!(disk.record(&gone).await.unwrap(), None);
    assert_eq!(disk.load().await.unwrap().rows.len(), 1);
}

#[tokio::test]
async fn records_under_strange_keys_are_named() {
    let place = Place::new();
    place.open().close();
    let by_hand = redb::Database::open(place.path()).unwrap();
    let change = by_hand.begin_write().unwrap();
    {
        let table = redb::TableDefinition::<&[u8], &[u8]>::new("records");
        let mut records = change.open_table(table).unwrap();
        for key in [&b"tenant"[..], b"Tenant/x", b"", b"\xff/x", b"tenant/acme"] {
            records.insert(key, &b"sealed"[..]).unwrap();
        }
    }
    change.commit().unwrap();
    by_hand.close().unwrap();
    let disk = place.open();
    let found = disk.load_records(RecordKind::Tenant).await.unwrap();
    assert_eq!(found.strange, ["", "Tenant/x", "tenant", "\\xff/x"]);
    let names = found.records.iter().map(|(key, _)| key.to_string());
    assert_eq!(names.collect::<Vec<_>>(), ["tenant/acme"]);
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
async fn what_waits_for_a_disk_that_stalls_is_bounded_in_bytes_too() {
    const LARGE: usize = 4 << 20;
    let place = Place::new();
    let (disk, faults) = faulty(&place);
    let there = key();
    disk.put(&there, row("small")).await.unwrap();
    faults.stall(true);
    let mut waiting = Vec::new();
    let refused = loop {
        // Of zeros, which take no memory until they are looked at.
        let mut put = disk.put(&key(), row(vec![0; LARGE]));
        match (&mut put).now_or_never() {
            None => waiting.push(put),
            Some(done) => break done.unwrap_err(),
        }
        assert!(waiting.len() < 100, "as many as come");
    };
    assert!(matches!(refused, Error::Unavailable(_)), "{refused:?}");
    assert_eq!(waiting.len(), QUEUE_BYTES / LARGE);
    let touched = disk.touch(vec![(there.clone(), 9)]).now_or_never();
    assert!(matches!(touched, Some(Err(_))), "{touched:?}");
    // What takes away has room, and is done whoever waits for it.
    assert!(disk.delete(&there).now_or_never().is_none());
    drop(waiting);
    faults.stall(false);
    // And so has everything when nothing waits any more.
    let all_room = async {
        while disk.room.available_permits() < QUEUE_BYTES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        while disk.put(&key(), row("after")).await.is_err() {}
    };
    tokio::time::timeout(PATIENCE, all_room).await.unwrap();
    assert_eq!(disk.get(&there).await.unwrap(), None);
}

#[tokio::test]
async fn a_disk_that_was_full_heals_by_itself() {
    let place = Place::new();
    let (disk, faults) = faulty(&place);
    let (before, during, after) = (key(), key(), key());
    disk.put(&before, row("before")).await.unwrap();
    faults.broken.store(true, Ordering::SeqCst);
    let failed = disk.put(&during, row("during")).await;
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    disk.health().unwrap_err();
    // Nobody asks for a change: the thread finds out on its own.
    faults.broken.store(false, Ordering::SeqCst);
    healed(&disk).await;
    disk.put(&after, row("after")).await.unwrap();
    disk.close();
    let rows = place.open().load().await.unwrap().rows;
    let keys: Vec<_> = rows.into_iter().map(|(key, _)| key).collect();
    assert!(keys.contains(&before) && keys.contains(&after) && !keys.contains(&during));
}

#[tokio::test]
async fn a_disk_that_was_not_to_be_read_is_read_again_later() {
    let place = Place::new();
    let disk = place.open();
    // More than the library keeps in memory when it opens the file.
    let keys: Vec<RowKey> = (0..40).map(|_| key()).collect();
    for key in &keys {
        disk.put(key, row(vec![5; 1 << 20])).await.unwrap();
    }
    disk.close();
    let (disk, faults) = faulty(&place);
    faults.blind.store(true, Ordering::SeqCst);
    let failed = disk.load().await.map(|all| all.rows.len());
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    let failed = disk.get(&keys[0]).await.map(|row| row.is_some());
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    faults.blind.store(false, Ordering::SeqCst);
    // Opening it again can take a busy machine longer than one call waits.
    let read = async {
        loop {
            if let Ok(row) = disk.get(&keys[0]).await {
                return row;
            }
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, read)
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(disk.load().await.unwrap().rows.len(), 40);
    disk.close();
}

#[tokio::test]
async fn a_panic_while_the_file_is_closed_ends_nothing() {
    let place = Place::new();
    let (disk, faults) = faulty(&place);
    faults.broken.store(true, Ordering::SeqCst);
    faults.mad.store(true, Ordering::SeqCst);
    let failed = disk.put(&key(), row("during")).await;
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    assert!(!faults.mad.load(Ordering::SeqCst), "the file was closed");
    faults.broken.store(false, Ordering::SeqCst);
    healed(&disk).await;
    disk.put(&key(), row("after")).await.unwrap();
    disk.close();
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
        let rows = read_all(&place).await.map(|all| all.rows.len());
        assert!(
            matches!(rows, Err(Error::Corrupt { .. })),
            "{part} %: {rows:?}"
        );
    }
}

#[tokio::test]
async fn a_flipped_bit_is_told_or_changes_one_row() {
    let place = Place::new();
    let disk = place.open();
    // The same file in every run: what the library does about a bit must not be a matter of luck.
    let named = |number: u32| RowKey {
        tenant: TenantId::new("acme"),
        session: SessionId::parse(&format!("sess_{:032x}", u128::from(number) << 120)).unwrap(),
    };
    let keys: Vec<RowKey> = (0..100).map(named).collect();
    for key in &keys {
        disk.put(key, row(vec![5; 500])).await.unwrap();
    }
    disk.close();
    let length = fs::metadata(place.path()).unwrap().len();
    let whole = fs::read(place.path()).unwrap();
    let mut read = 0;
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
        let all = match read_all(&place).await {
            Ok(all) => all,
            Err(Error::Corrupt { .. }) => continue,
            Err(error) => panic!("at {at}: {error:?}"),
        };
        read += 1;
        assert_eq!(all.rows.len() + all.strange.len(), 100, "at {at}");
        let same = all
            .rows
            .iter()
            .filter(|(key, it)| keys.contains(key) && it.sealed == [5; 500] && it.last_used == 7);
        let same = same.count();
        assert!(same >= 99, "at {at}: {same}");
    }
    // Most bits are in no page that is read: where all were refused, nothing was shown.
    assert!((50..150).contains(&read), "{read}");
}

#[tokio::test]
async fn a_file_is_not_let_go_of_for_one_who_waits_no_more() {
    let place = Place::new();
    let disk = place.open();
    let (sender, gone) = oneshot::channel();
    drop(gone);
    assert!(disk.queue.try_send(Request::Release(sender)).is_ok());
    disk.put(&key(), row("after")).await.unwrap();
    assert!(matches!(Disk::open(&place.path()), Err(Error::InUse(_))));
}

#[tokio::test]
async fn a_disk_that_stalls_while_it_is_handed_over_stays_in_use() {
    let place = Place::new();
    let (disk, faults) = faulty(&place);
    let gate = Gate::new(Arc::new(disk));
    let own = key();
    gate.put(&own, row("before")).await.unwrap();
    faults.stall(true);
    // Each deadline is over at once.
    tokio::time::pause();
    gate.put(&own, row("late")).await.unwrap_err();
    gate.hand_over(PATIENCE).await.unwrap_err();
    tokio::time::resume();
    faults.stall(false);
    let heals = async {
        while gate.put(&own, row("after")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, heals).await.unwrap();
    assert!(gate.hand_over(PATIENCE).await.unwrap().is_exclusive());
}

#[tokio::test]
async fn a_bad_change_fails_alone_and_those_that_waited_with_it_are_done() {
    for is_bad_first in [true, false] {
        let place = Place::new();
        let (opener, faults) = faulty_opener(&place);
        let (bad, good) = (key(), key());
        *faults.cursed.lock().unwrap() = b"what cannot be written".to_vec();
        let (requests, queue) = std::sync::mpsc::channel();
        let room = Arc::new(Semaphore::new(2));
        let ask = |key: &RowKey, sealed: &[u8]| {
            let (sender, answer) = oneshot::channel();
            let waiting = Waiting {
                change: Change::Put(key.clone(), row(sealed)),
                answer: sender,
                room: Arc::clone(&room).try_acquire_owned().unwrap(),
            };
            requests.send(Request::Change(waiting)).unwrap();
            answer
        };
        // Both wait before the thread begins: they are one group.
        let mut answers = [None, None];
        for is_bad in [is_bad_first, !is_bad_first] {
            answers[usize::from(is_bad)] = Some(if is_bad {
                ask(&bad, b"this is what cannot be written")
            } else {
                ask(&good, b"row")
            });
        }
        drop(requests);
        let status = Arc::new(Status::default());
        let file = opener(&place.path()).unwrap();
        let writer = Writer::new(place.path(), file, opener, Arc::clone(&status));
        std::thread::spawn(move || writer.run(&queue))
            .join()
            .unwrap();
        let [done, failed] = answers.map(Option::unwrap);
        assert!(!done.await.unwrap().unwrap(), "there was no such row");
        let failed = failed.await.unwrap();
        assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
        // The last one tells how the disk does.
        assert_eq!(status.health(PATIENCE).is_ok(), is_bad_first);
        let rows = place.open().load().await.unwrap().rows;
        assert_eq!(rows, [(good, row("row"))]);
    }
}
