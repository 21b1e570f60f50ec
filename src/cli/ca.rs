//! `ca show`, `ca export`, `ca generate`, `ca rotate`: the certificate authority in the state
//! directory.
//!
//! A key is written by the generation and by the rotation, and never printed. What a rotation plans
//! a running server finds by itself, within a second.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::format_description::well_known::Rfc3339;
use x509_parser::time::ASN1Time;

use super::args::{Ca, CaAction, Rotate};
use super::state::{CA_FILE, CA_KEY_FILE, Error};
use super::{Exit, print};
use crate::authority::{
    Others, Root, cancel, certificate_pem, fresh_common_name, look, plan, written,
};
use crate::config::{Flags, Source, state_dir};

/// The files of the roots beside the one that signs.
const NEXT_FILE: &str = "ca.next";
const OLD_FILE: &str = "ca.old.pem";
/// The most bytes of the certificate's file; a real one has a few hundred.
const FILE_LIMIT_BYTES: u64 = 64 * 1024;

/// Does what was asked about the certificate authority.
pub(super) fn ca(ca: &Ca) -> Result<(), Exit> {
    let folder = || state_dir(ca.state_dir.as_deref(), &Source::process(Flags::default()));
    match &ca.action {
        CaAction::Export { out } => export(&folder()?, out.as_deref()),
        CaAction::Generate { out: Some(out) } => generate(out),
        CaAction::Generate { out: None } => generate(&folder()?),
        CaAction::Rotate(what) => rotate(&folder()?, *what, SystemTime::now()),
        CaAction::Show => show(&folder()?),
    }
}

fn show(folder: &Path) -> Result<(), Exit> {
    let path = folder.join(CA_FILE);
    // First, so that what is due is done before anything is read.
    let others = if path.exists() && is_own(folder) {
        look(folder, SystemTime::now()).map_err(|error| Exit::startup(&error))?
    } else {
        Others::default()
    };
    print(&all(&describe(&path, &read(folder)?)?, folder, &others)?)
}

/// Puts the roots beside the one that signs behind it.
fn all(first: &str, folder: &Path, others: &Others) -> Result<String, Exit> {
    let mut text = first.to_owned();
    let time = |at| written(at).map_err(|error| Exit::startup(&error));
    if let Some(next) = &others.next {
        text.push_str("\nThe root that follows; /v1/bundle.pem has it already:\n");
        push(&mut text, "signs from", &time(next.at)?);
        text.push_str(&describe(&folder.join(NEXT_FILE), next.root.cert_der())?);
    }
    if let Some(old) = &others.old {
        text.push_str("\nThe root before; /v1/bundle.pem has it for a while:\n");
        push(&mut text, "until", &time(old.until)?);
        text.push_str(&describe(&folder.join(OLD_FILE), &old.cert)?);
    }
    Ok(text)
}

/// Tells whether a folder is this user's: in another's, files would be made that the server cannot
/// read.
fn is_own(folder: &Path) -> bool {
    let owner = folder.metadata().map(|about| about.uid());
    owner.is_ok_and(|owner| owner == rustix::process::geteuid().as_raw())
}

fn rotate(folder: &Path, what: Rotate, now: SystemTime) -> Result<(), Exit> {
    if folder.join(CA_FILE).exists() && !is_own(folder) {
        return Err(Exit::failed(&format!(
            "{} is another user's: run this as that user, or the server could not read what it makes",
            folder.display()
        )));
    }
    let at = match what {
        Rotate::Cancel => {
            let cancelled = cancel(folder, now).map_err(|error| Exit::startup(&error))?;
            return print(if cancelled {
                "the plan is taken back\n"
            } else {
                "no root was planned\n"
            });
        }
        Rotate::At(at) if at <= now => {
            return Err(Exit::usage(
                "error: --at is in the past; --at now lets the new root sign at once".to_owned(),
            ));
        }
        Rotate::At(at) => at,
        Rotate::Now => now,
    };
    if !folder.join(CA_FILE).exists() {
        return Err(Exit::startup(&Error::NoAuthority(folder.to_owned())));
    }
    let others = plan(folder, &fresh_common_name(), at, now);
    let others = others.map_err(|error| Exit::startup(&error))?;
    let path = folder.join(CA_FILE);
    print(&all(&describe(&path, &read(folder)?)?, folder, &others)?)
}

fn export(folder: &Path, out: Option<&Path>) -> Result<(), Exit> {
    let pem = certificate_pem(&read(folder)?);
    let Some(out) = out else { return print(&pem) };
    let mut options = File::options();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(out);
    file.and_then(|mut file| file.write_all(pem.as_bytes()))
        .map_err(|error| {
            Exit::failed(&format!(
                "--out: {} cannot be written: {error}",
                out.display()
            ))
        })
}

fn generate(folder: &Path) -> Result<(), Exit> {
    let root =
        Root::generate_into(folder, &fresh_common_name()).map_err(|error| Exit::startup(&error))?;
    let mut text = describe(&folder.join(CA_FILE), root.cert_der())?;
    push(&mut text, "key file", &folder.join(CA_KEY_FILE).display());
    print(&text)
}

/// Reads the certificate, whatever else its file holds.
fn read(folder: &Path) -> Result<CertificateDer<'static>, Exit> {
    let path = folder.join(CA_FILE);
    let file = File::open(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Exit::startup(&Error::NoAuthority(folder.to_owned())),
        _ => Exit::failed(&format!("{} cannot be read: {error}", path.display())),
    })?;
    let mut content = Vec::new();
    file.take(FILE_LIMIT_BYTES)
        .read_to_end(&mut content)
        .map_err(|error| Exit::failed(&format!("{} cannot be read: {error}", path.display())))?;
    let mut found = CertificateDer::pem_slice_iter(&content);
    // The reader's own errors quote the file.
    match (found.next(), found.next()) {
        (Some(Ok(certificate)), None) => Ok(certificate),
        _ => Err(Exit::failed(&format!(
            "{} is not a PEM file of one certificate",
            path.display()
        ))),
    }
}

/// Describes a certificate in lines of a name and a value.
fn describe(path: &Path, der: &[u8]) -> Result<String, Exit> {
    let (_rest, certificate) = x509_parser::parse_x509_certificate(der).map_err(|_unreadable| {
        Exit::failed(&format!(
            "{} does not hold a readable X.509 certificate",
            path.display()
        ))
    })?;
    let mut text = String::new();
    push(&mut text, "subject", &certificate.subject());
    push(
        &mut text,
        "not before",
        &moment(certificate.validity().not_before),
    );
    push(
        &mut text,
        "not after",
        &moment(certificate.validity().not_after),
    );
    push(&mut text, "sha-256", &colons(digest(&SHA256, der).as_ref()));
    push(&mut text, "file", &path.display());
    Ok(text)
}

#[expect(
    clippy::expect_used,
    reason = "a String takes all that is written to it"
)]
fn push(text: &mut String, name: &str, value: &dyn std::fmt::Display) {
    // A subject is whatever its maker wrote: no byte of it may steer a terminal.
    let value: String = value
        .to_string()
        .chars()
        .filter(|one| !one.is_control())
        .collect();
    writeln!(text, "{:<12}{value}", format!("{name}:")).expect("a String");
}

fn moment(time: ASN1Time) -> String {
    let seconds = time.timestamp();
    time::OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .unwrap_or_else(|| time.to_string())
}

/// Writes a fingerprint as other programs print theirs, so that they can be compared by eye.
fn colons(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}
