//! One root follows another: planned, announced, signing from a time on, and taken back.
//!
//! The next root lies with its key and its time in one file, `ca.next`, so that a plan is there or
//! is not. At its time it takes the place of `ca.pem` and `ca.key`; until that is done the file
//! stays, so that whatever a crash leaves is finished by the next look. The root before stays as
//! `ca.old.pem`, without its key, for those who meet what it signed. Called by the authority and
//! the command line.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use crate::authority::root::{Generated, Root, certificate_pem};
use crate::authority::{Error, files};

/// How long the root before is published beside the one that signs: as long as a leaf lives.
pub const KEPT: Duration = Duration::from_hours(7 * 24);
/// How far ahead a root may be planned: it is made now, and its time runs.
const AHEAD: Duration = Duration::from_hours(366 * 24);
/// What stands before the time in a file.
const SINCE: &str = "# signs from ";
const UNTIL: &str = "# is published until ";

/// A root that is to sign from a time on.
#[derive(Debug)]
pub struct Next {
    /// The root.
    pub root: Root,
    /// From when on it signs.
    pub at: SystemTime,
}

/// A root that has signed until a while ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Old {
    /// The certificate.
    pub cert: CertificateDer<'static>,
    /// Until when it is published.
    pub until: SystemTime,
}

/// What a folder has besides the root that signs.
#[derive(Debug, Default)]
pub struct Others {
    /// The one that follows.
    pub next: Option<Next>,
    /// The one before.
    pub old: Option<Old>,
}

/// The files of a rotation in a folder.
struct Files {
    pair: files::Pair,
    next: PathBuf,
    old: PathBuf,
}

impl Files {
    fn lock(folder: &Path) -> Result<Self, Error> {
        let pair = files::Pair::lock(folder)?;
        pair.clear();
        Ok(Self {
            pair,
            next: folder.join("ca.next"),
            old: folder.join("ca.old.pem"),
        })
    }

    /// Does what is due: the next root takes its place. Each step may be done again.
    fn settle(&self, now: SystemTime) -> Result<(), Error> {
        let Some((text, at)) = read_timed(&self.next, files::Access::Private, SINCE)? else {
            return Ok(());
        };
        if now < at {
            return Ok(());
        }
        // Both halves are proven before anything is replaced.
        let root = next_root(&self.next, &text, now)?;
        let before = files::read(&self.pair.cert, files::Access::Public)?;
        let before = only_certificate(&self.pair.cert, &before)?;
        if before.as_ref() != root.cert_der() {
            let until = at.checked_add(KEPT).ok_or(Error::Clock)?;
            let text = format!("{UNTIL}{}\n{}", written(until)?, certificate_pem(&before));
            self.pair
                .replace(&self.old, files::Access::Public, text.as_bytes())?;
        }
        let key = files::private_part(&text);
        self.pair
            .replace(&self.pair.key, files::Access::Private, key)?;
        let cert = root.cert_pem().as_bytes();
        self.pair
            .replace(&self.pair.cert, files::Access::Public, cert)?;
        self.pair.remove(&self.next)
    }

    /// Loads the pair where its root is another; nothing where there is none.
    fn other_than(&self, signs: &[u8]) -> Result<Option<Root>, Error> {
        let (cert, key) = (&self.pair.cert, &self.pair.key);
        if cert.symlink_metadata().is_err() {
            return Ok(None);
        }
        let found = only_certificate(cert, &files::read(cert, files::Access::Public)?)?;
        if found.as_ref() == signs {
            return Ok(None);
        }
        Root::load(cert, key).map(Some)
    }

    fn others(&self, now: SystemTime) -> Result<Others, Error> {
        let next = match read_timed(&self.next, files::Access::Private, SINCE)? {
            None => None,
            Some((text, at)) => Some(Next {
                root: next_root(&self.next, &text, now)?,
                at,
            }),
        };
        let old = match read_timed(&self.old, files::Access::Public, UNTIL)? {
            None => None,
            Some((text, until)) => Some(Old {
                cert: only_certificate(&self.old, &text)?,
                until,
            }),
        };
        Ok(Others { next, old })
    }
}

/// Does in a folder what is due, and reads what it has besides the root that signs.
///
/// # Errors
/// [`Error::File`], and what is wrong with a file.
pub fn look(folder: &Path, now: SystemTime) -> Result<Others, Error> {
    let files = Files::lock(folder)?;
    files.settle(now)?;
    files.others(now)
}

/// The same, and loads the pair of a folder where its root is another than the one that signs here.
pub(super) fn look_beyond(
    folder: &Path,
    now: SystemTime,
    signs: &[u8],
) -> Result<(Others, Option<Root>), Error> {
    let files = Files::lock(folder)?;
    files.settle(now)?;
    Ok((files.others(now)?, files.other_than(signs)?))
}

/// Makes the root that follows, and plans it for a time; one that is not after now signs at once.
///
/// # Errors
/// [`Error::Planned`] where one is planned already, [`Error::TooFar`], [`Error::Unsigned`], and
/// those of the files.
pub fn plan(folder: &Path, name: &str, at: SystemTime, now: SystemTime) -> Result<Others, Error> {
    let files = Files::lock(folder)?;
    files.settle(now)?;
    if let Some((_, at)) = read_timed(&files.next, files::Access::Private, SINCE)? {
        return Err(Error::Planned {
            path: files.next,
            at: written(at)?,
        });
    }
    if at.duration_since(now).is_ok_and(|ahead| ahead > AHEAD) {
        return Err(Error::TooFar);
    }
    let path = files.pair.cert.clone();
    if files.pair.state() != files::State::Whole {
        return Err(Error::NoRoot { path });
    }
    // The pair has to be one that signs: what follows takes its place for good.
    let root = Root::load(&files.pair.cert, &files.pair.key)?;
    if at >= root.end() {
        return Err(Error::Unsigned {
            end: written(root.end())?,
        });
    }
    let generated = Generated::new(name, now)?;
    let time = format!("{SINCE}{}\n", written(at)?);
    let parts = [
        time.as_bytes(),
        generated.cert_pem.as_bytes(),
        generated.key_pem.as_bytes(),
    ];
    let text = Zeroizing::new(parts.concat());
    files
        .pair
        .replace(&files.next, files::Access::Private, &text)?;
    files.settle(now)?;
    files.others(now)
}

/// Takes a plan back whose time has not come. Tells whether there was one.
///
/// # Errors
/// Those of the files.
pub fn cancel(folder: &Path, now: SystemTime) -> Result<bool, Error> {
    let files = Files::lock(folder)?;
    files.settle(now)?;
    let planned = files.next.symlink_metadata().is_ok();
    if planned {
        files.pair.remove(&files.next)?;
    }
    Ok(planned)
}

/// Writes a time as it stands in files and messages.
///
/// # Errors
/// [`Error::Clock`].
pub fn written(at: SystemTime) -> Result<String, Error> {
    let seconds = at
        .duration_since(UNIX_EPOCH)
        .map_err(|_early| Error::Clock)?;
    let seconds = i64::try_from(seconds.as_secs()).map_err(|_late| Error::Clock)?;
    let at = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_late| Error::Clock)?;
    at.format(&Rfc3339).map_err(|_late| Error::Clock)
}

/// A text whose first line has a time.
type Timed = (Zeroizing<Vec<u8>>, SystemTime);

/// Reads a file whose first line has a time; nothing where there is no file.
fn read_timed(path: &Path, access: files::Access, before: &str) -> Result<Option<Timed>, Error> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let text = files::read(path, access)?;
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let time = std::str::from_utf8(line).ok();
    let time = time.and_then(|line| line.strip_prefix(before));
    let time = time.and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
    let time = time
        .map(SystemTime::from)
        .ok_or_else(|| Error::Certificate {
            origin: path.display().to_string(),
            rule: "has no time on its first line",
        })?;
    Ok(Some((text, time)))
}

fn next_root(path: &Path, text: &[u8], now: SystemTime) -> Result<Root, Error> {
    let origin = path.display().to_string();
    Root::from_texts(
        &origin,
        files::public_part(text),
        files::private_part(text),
        now,
    )
}

fn only_certificate(path: &Path, text: &[u8]) -> Result<CertificateDer<'static>, Error> {
    let mut found = CertificateDer::pem_slice_iter(text);
    match (found.next(), found.next()) {
        (Some(Ok(one)), None) => Ok(one),
        _ => Err(Error::Certificate {
            origin: path.display().to_string(),
            rule: "is not exactly one PEM block",
        }),
    }
}
