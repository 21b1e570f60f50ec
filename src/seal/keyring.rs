//! The keyring: sealing keys by id, and the envelope they make.
//!
//! Layout, version 1: version byte, key id (4 bytes), nonce (12), ciphertext with its tag (16). The
//! associated data is a label, the version, the key id and the context. Rotation reads with every
//! key and writes with the current one. Keys are overwritten on drop and never printed.

use std::fmt;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, Key, KeyInit, Nonce, Tag};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::hmac::HMAC_SHA256;
use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use zeroize::{Zeroize, Zeroizing};

use crate::id::fill_random;
use crate::seal::{Context, Error, MacKey};

/// The length of a sealing key in bytes.
pub const KEY_BYTES: usize = 32;

/// The only form of envelope there is.
const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// Keeps our envelopes apart from whatever else might one day be sealed under the same key.
const LABEL: &[u8] = b"oshu-vault/seal";
/// Keeps keys that are derived from a sealing key apart from those of other programs.
const DERIVE: &[u8] = b"oshu-vault/derive";

/// Names a sealing key: four bytes, written as eight hex digits. It tells nothing of the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; KEY_ID_BYTES]);

impl KeyId {
    /// Wraps an id that the operator chose.
    pub fn new(number: u32) -> Self {
        Self(number.to_be_bytes())
    }

    /// Reads an id as it is printed.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 2 * KEY_ID_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u32::from_str_radix(text, 16).ok()?;
        digits.then(|| Self::new(number))
    }

    /// Derives an id from the key, so that a key and its id cannot be mixed up: the first bytes of
    /// its SHA-256. Four bytes of a hash help nobody to guess 32 random ones.
    pub fn of(key: &[u8; KEY_BYTES]) -> Self {
        let hash = digest(&SHA256, key);
        let mut id = [0; KEY_ID_BYTES];
        for (to, from) in id.iter_mut().zip(hash.as_ref()) {
            *to = *from;
        }
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Holds the sealing keys: seals with the current one, opens with any.
pub struct Keyring {
    /// Never empty; the current key is the first. Boxed, so that moving a keyring leaves no copy
    /// of a key schedule behind.
    keys: Vec<(KeyId, Box<Aes256Gcm>)>,
    /// What other keys are derived from, beside the keys. Overwritten on drop.
    roots: Vec<(KeyId, Box<Prk>)>,
}

impl Keyring {
    /// Makes a keyring of one fresh random key. What it seals is lost with it.
    pub fn generate() -> Self {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        fill_random(key.as_mut());
        Self {
            keys: vec![(KeyId::of(&key), cipher(&key))],
            roots: vec![(KeyId::of(&key), root(&key))],
        }
    }

    /// Makes a keyring of given keys, of which `current` seals from now on.
    ///
    /// The keys in the vector are overwritten before this returns.
    ///
    /// # Errors
    /// Two keys of one id, and a current one that is not among them.
    pub fn from_keys(
        mut given: Vec<(KeyId, [u8; KEY_BYTES])>,
        current: KeyId,
    ) -> Result<Self, Error> {
        let made = Self::collect(&given, current);
        for (_, key) in &mut given {
            key.zeroize();
        }
        made
    }

    /// Reads a list of keys, one a line or with commas between them: 64 hex digits, or 32 bytes in
    /// base64. The first one seals; the others open what was sealed before. Their ids are derived
    /// from them. Empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// [`Error::BadKey`], [`Error::NoKey`], and [`Error::DuplicateKey`].
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let mut keys = Vec::new();
        for (index, line) in text.split(|byte| b"\n,".contains(byte)).enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let key = read_key(line).ok_or(Error::BadKey(index + 1));
            match key {
                Ok(key) => keys.push((KeyId::of(&key), *key)),
                Err(error) => {
                    for (_, key) in &mut keys {
                        key.zeroize();
                    }
                    return Err(error);
                }
            }
        }
        let first = keys.first().map(|(id, _)| *id);
        Self::from_keys(keys, first.ok_or(Error::NoKey)?)
    }

    /// Makes the text of one fresh random key, as [`Keyring::parse`] takes it.
    pub fn fresh_key() -> Zeroizing<String> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        fill_random(key.as_mut());
        Zeroizing::new(HEXLOWER.encode(key.as_ref()))
    }

    /// Returns the ids of all keys, the current one first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(|(id, _)| *id)
    }

    fn collect(given: &[(KeyId, [u8; KEY_BYTES])], current: KeyId) -> Result<Self, Error> {
        let mut keys: Vec<(KeyId, Box<Aes256Gcm>)> = Vec::with_capacity(given.len());
        for (id, key) in given {
            if keys.iter().any(|(known, _)| known == id) {
                return Err(Error::DuplicateKey(*id));
            }
            keys.push((*id, cipher(key)));
        }
        let at = keys.iter().position(|(id, _)| *id == current);
        keys.swap(0, at.ok_or(Error::NoCurrentKey(current))?);
        let roots = given.iter().map(|(id, key)| (*id, root(key))).collect();
        Ok(Self { keys, roots })
    }

    /// Derives a key that authenticates, for one purpose, from a key of the keyring (HKDF, RFC 5869).
    /// Nothing where the keyring has no such key.
    pub fn mac_key(&self, id: KeyId, purpose: &'static str) -> Option<MacKey> {
        let (_, root) = self.roots.iter().find(|(known, _)| *known == id)?;
        let purpose = [purpose.as_bytes()];
        root.expand(&purpose, HMAC_SHA256)
            .ok()
            .map(|key| MacKey::new(key.into()))
    }

    /// Returns the id of the key that seals.
    pub fn current(&self) -> KeyId {
        self.current_key().0
    }

    /// Seals a value for its owner: two seals of one value differ.
    ///
    /// Nonces are random: one key is good for 2^32 seals (NIST SP 800-38D §8.3), after which it has
    /// to be rotated.
    #[expect(
        clippy::expect_used,
        reason = "AES-GCM refuses only values of 64 GiB and more, which no memory here holds twice"
    )]
    pub fn seal(&self, context: &Context<'_>, plain: &[u8]) -> Vec<u8> {
        let (id, cipher) = self.current_key();
        let mut nonce = Nonce::default();
        fill_random(&mut nonce);
        let mut sealed =
            Vec::with_capacity(1 + KEY_ID_BYTES + NONCE_BYTES + plain.len() + TAG_BYTES);
        sealed.push(VERSION);
        sealed.extend_from_slice(&id.0);
        sealed.extend_from_slice(&nonce);
        // The plain bytes lie in the answer's own memory for a moment and are encrypted in place;
        // the capacity is exact, so that no growth leaves a copy.
        let head = sealed.len();
        sealed.extend_from_slice(plain);
        let (_, body) = sealed.split_at_mut(head);
        let tag = cipher
            .encrypt_inout_detached(&nonce, &associated_data(*id, context), body.into())
            .expect("the value is shorter than 64 GiB");
        sealed.extend_from_slice(&tag);
        sealed
    }

    /// Opens what was sealed for this owner, under any key of the keyring.
    ///
    /// # Errors
    /// See [`Error`]; nothing of the value comes out where anything is wrong.
    pub fn open(&self, context: &Context<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let envelope = Envelope::split(sealed)?;
        let (_, cipher) = self
            .keys
            .iter()
            .find(|(id, _)| *id == envelope.key)
            .ok_or(Error::UnknownKey(envelope.key))?;
        let mut plain = Zeroizing::new(envelope.body.to_vec());
        let data = associated_data(envelope.key, context);
        cipher
            .decrypt_inout_detached(
                &Nonce::from(envelope.nonce),
                &data,
                plain.as_mut_slice().into(),
                &Tag::from(envelope.tag),
            )
            .map_err(|aes_gcm::Error| Error::Refused)?;
        Ok(plain)
    }

    /// Tells whether an envelope was made by the current key; rotation seals the others anew.
    ///
    /// # Errors
    /// Bytes that are no envelope of ours.
    pub fn is_current(&self, sealed: &[u8]) -> Result<bool, Error> {
        Ok(Self::key_of(sealed)? == self.current())
    }

    /// Returns the id of the key that an envelope says it was made by; nothing is verified.
    ///
    /// # Errors
    /// Bytes that are no envelope of ours.
    pub fn key_of(sealed: &[u8]) -> Result<KeyId, Error> {
        Ok(Envelope::split(sealed)?.key)
    }

    #[expect(
        clippy::expect_used,
        reason = "both constructors put the current key first"
    )]
    fn current_key(&self) -> &(KeyId, Box<Aes256Gcm>) {
        self.keys.first().expect("a keyring has a current key")
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.keys.iter().map(|(id, _)| id).collect();
        f.debug_struct("Keyring")
            .field("ids", &ids)
            .finish_non_exhaustive()
    }
}

/// The parts of an envelope, nothing of them verified.
struct Envelope<'a> {
    key: KeyId,
    nonce: [u8; NONCE_BYTES],
    body: &'a [u8],
    tag: [u8; TAG_BYTES],
}

impl<'a> Envelope<'a> {
    fn split(sealed: &'a [u8]) -> Result<Self, Error> {
        let (&version, rest) = sealed.split_first().ok_or(Error::Truncated)?;
        if version != VERSION {
            return Err(Error::UnknownVersion);
        }
        let (key, rest) = rest.split_first_chunk().ok_or(Error::Truncated)?;
        let (nonce, rest) = rest.split_first_chunk().ok_or(Error::Truncated)?;
        let (body, tag) = rest.split_last_chunk().ok_or(Error::Truncated)?;
        Ok(Self {
            key: KeyId(*key),
            nonce: *nonce,
            body,
            tag: *tag,
        })
    }
}

/// Reads one key, in either form. What it was decoded into is overwritten.
fn read_key(text: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let hex = (text.len() == 2 * KEY_BYTES).then_some(HEXLOWER_PERMISSIVE);
    let bytes = hex.unwrap_or(BASE64).decode(text).ok()?;
    let bytes = Zeroizing::new(bytes);
    let key: &[u8; KEY_BYTES] = bytes.as_slice().try_into().ok()?;
    Some(Zeroizing::new(*key))
}

#[expect(
    clippy::unnecessary_box_returns,
    reason = "moving the keyring must leave no copy behind"
)]
fn root(key: &[u8; KEY_BYTES]) -> Box<Prk> {
    Box::new(Salt::new(HKDF_SHA256, DERIVE).extract(key))
}

fn cipher(key: &[u8; KEY_BYTES]) -> Box<Aes256Gcm> {
    Box::new(Aes256Gcm::new(<&Key<Aes256Gcm>>::from(key)))
}

/// Returns what is authenticated beside the value: the envelope's own head and its owner.
fn associated_data(id: KeyId, context: &Context<'_>) -> Vec<u8> {
    let mut data = Vec::with_capacity(LABEL.len() + 1 + KEY_ID_BYTES + context.len());
    data.extend_from_slice(LABEL);
    data.push(VERSION);
    data.extend_from_slice(&id.0);
    context.append_to(&mut data);
    data
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce as OtherNonce, UnboundKey};
    use proptest::prelude::*;

    use super::*;

    const OWN: Context<'static> = Context {
        tenant: "acme",
        session: "sess_1",
        name: "GITHUB_TOKEN",
    };
    const OLD: KeyId = KeyId([0, 0, 0, 1]);
    const NEW: KeyId = KeyId([0, 0, 0, 2]);

    fn keyring(ids: &[KeyId], current: KeyId) -> Keyring {
        let keys = ids.iter().map(|id| (*id, [id.0[3]; KEY_BYTES])).collect();
        Keyring::from_keys(keys, current).unwrap()
    }

    fn opened(keys: &Keyring, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        keys.open(&OWN, sealed).map(|plain| plain.to_vec())
    }

    #[test]
    fn values_of_any_length_come_back_and_seals_differ() {
        let keys = Keyring::generate();
        for length in [0, 1, 15, 16, 17, 200, 8192] {
            let value = vec![7; length];
            let sealed = keys.seal(&OWN, &value);
            assert_eq!(sealed.len(), 33 + length);
            assert_eq!(sealed.capacity(), sealed.len(), "no growth, no stray copy");
            assert_eq!(opened(&keys, &sealed), Ok(value.clone()));
            assert_ne!(sealed, keys.seal(&OWN, &value));
        }
    }

    #[test]
    fn another_implementation_opens_the_envelope() {
        let sealed = keyring(&[OLD], OLD).seal(&OWN, b"real value");
        assert_eq!(sealed[..5], [1, 0, 0, 0, 1]);
        let other = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; KEY_BYTES]).unwrap());
        let nonce = OtherNonce::try_assume_unique_for_key(&sealed[5..17]).unwrap();
        let mut data = b"oshu-vault/seal\x01\x00\x00\x00\x01".to_vec();
        for part in ["acme", "sess_1", "GITHUB_TOKEN"] {
            data.extend([0, 0, 0, 0, 0, 0, 0, u8::try_from(part.len()).unwrap()]);
            data.extend(part.as_bytes());
        }
        let mut body = sealed[17..].to_vec();
        let plain = other
            .open_in_place(nonce, Aad::from(data), &mut body)
            .unwrap();
        assert_eq!(plain, b"real value");
    }

    #[test]
    fn another_owner_opens_nothing() {
        let keys = Keyring::generate();
        let sealed = keys.seal(&OWN, b"real value");
        for (tenant, session, name) in [
            ("umbrella", "sess_1", "GITHUB_TOKEN"),
            ("acme", "sess_2", "GITHUB_TOKEN"),
            ("acme", "sess_1", "OPENAI_API_KEY"),
            ("acmes", "ess_1", "GITHUB_TOKEN"),
            ("acme", "sess_1GITHUB", "_TOKEN"),
            ("sess_1", "acme", "GITHUB_TOKEN"),
            ("", "", "acmesess_1GITHUB_TOKEN"),
            ("", "", ""),
        ] {
            let context = Context {
                tenant,
                session,
                name,
            };
            assert_eq!(
                keys.open(&context, &sealed),
                Err(Error::Refused),
                "{context:?}"
            );
        }
    }

    #[test]
    fn every_bit_counts() {
        let keys = keyring(&[OLD], OLD);
        let sealed = keys.seal(&OWN, b"real value");
        for at in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[at / 8] ^= 1 << (at % 8);
            let error = opened(&keys, &changed).unwrap_err();
            let fits = match at / 8 {
                0 => error == Error::UnknownVersion,
                1..=4 => matches!(error, Error::UnknownKey(_)),
                _ => error == Error::Refused,
            };
            assert!(fits, "bit {at}: {error}");
        }
    }

    #[test]
    fn truncated_and_prolonged_bytes_are_refused() {
        let keys = Keyring::generate();
        let sealed = keys.seal(&OWN, b"real value");
        for length in 0..sealed.len() {
            let error = opened(&keys, &sealed[..length]).unwrap_err();
            let expected = if length < 33 {
                Error::Truncated
            } else {
                Error::Refused
            };
            assert_eq!(error, expected, "{length}");
        }
        let longer = [sealed.as_slice(), &[0]].concat();
        assert_eq!(opened(&keys, &longer), Err(Error::Refused));
    }

    #[test]
    fn derived_keys_are_of_one_key_and_one_purpose() {
        let keys = keyring(&[OLD, NEW], NEW);
        let sum = |id, purpose| keys.mac_key(id, purpose).unwrap().sign(&[b"a", b"b"]);
        assert_eq!(sum(OLD, "one"), sum(OLD, "one"));
        assert_ne!(sum(OLD, "one"), sum(OLD, "other"));
        assert_ne!(sum(OLD, "one"), sum(NEW, "one"));
        let alone = keyring(&[OLD], OLD);
        assert_eq!(
            alone.mac_key(OLD, "one").unwrap().sign(&[b"ab"]),
            sum(OLD, "one")
        );
        assert!(alone.mac_key(NEW, "one").is_none());
    }

    #[test]
    fn ids_read_back_as_they_are_printed() {
        for id in [OLD, NEW, KeyId::of(&[7; KEY_BYTES])] {
            assert_eq!(KeyId::parse(&id.to_string()), Some(id));
        }
        for wrong in ["", "1", "+0000001", "000000001", "0000000g"] {
            assert_eq!(KeyId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rotation_reads_old_and_writes_new() {
        let before = keyring(&[OLD], OLD);
        let during = keyring(&[OLD, NEW], NEW);
        let after = keyring(&[NEW], NEW);
        let sealed_before = before.seal(&OWN, b"real value");
        let sealed_during = during.seal(&OWN, b"real value");
        assert_eq!(during.current(), NEW);
        assert_eq!(opened(&during, &sealed_before), Ok(b"real value".to_vec()));
        assert_eq!(opened(&after, &sealed_during), Ok(b"real value".to_vec()));
        assert_eq!(opened(&after, &sealed_before), Err(Error::UnknownKey(OLD)));
        assert_eq!(opened(&before, &sealed_during), Err(Error::UnknownKey(NEW)));
        assert_eq!(during.is_current(&sealed_before), Ok(false));
        assert_eq!(during.is_current(&sealed_during), Ok(true));
        assert_eq!(during.is_current(b""), Err(Error::Truncated));
    }

    #[test]
    fn the_key_id_is_authenticated() {
        let same = Keyring::from_keys(vec![(OLD, [9; 32]), (NEW, [9; 32])], OLD).unwrap();
        let mut sealed = same.seal(&OWN, b"real value");
        sealed[4] = NEW.0[3];
        assert_eq!(opened(&same, &sealed), Err(Error::Refused));
    }

    #[test]
    fn another_key_of_the_same_id_opens_nothing() {
        let sealed = keyring(&[OLD], OLD).seal(&OWN, b"real value");
        let other = Keyring::from_keys(vec![(OLD, [9; 32])], OLD).unwrap();
        assert_eq!(opened(&other, &sealed), Err(Error::Refused));
    }

    #[test]
    fn keys_that_make_no_keyring_are_refused() {
        let twice = vec![(OLD, [1; 32]), (OLD, [2; 32])];
        for (keys, current, expected) in [
            (twice, OLD, Error::DuplicateKey(OLD)),
            (vec![(OLD, [1; 32])], NEW, Error::NoCurrentKey(NEW)),
            (vec![], NEW, Error::NoCurrentKey(NEW)),
        ] {
            assert_eq!(Keyring::from_keys(keys, current).err(), Some(expected));
        }
    }

    #[test]
    fn key_ids_come_from_the_key_and_print_as_hex() {
        assert_eq!(KeyId::new(0x00c0_ffee).to_string(), "00c0ffee");
        // SHA-256 of 32 zero bytes begins 66687aad.
        assert_eq!(KeyId::of(&[0; KEY_BYTES]).to_string(), "66687aad");
        assert_ne!(Keyring::generate().current(), Keyring::generate().current());
    }

    #[test]
    fn a_list_of_keys_is_read_the_first_one_seals() {
        let (hex, base64) = ("00".repeat(32), BASE64.encode(&[1; KEY_BYTES]));
        let (first, second) = (KeyId::of(&[0; KEY_BYTES]), KeyId::of(&[1; KEY_BYTES]));
        for (text, expected) in [
            (hex.clone(), Ok(vec![first])),
            (base64.clone(), Ok(vec![second])),
            ("AB".repeat(32), Ok(vec![KeyId::of(&[0xab; KEY_BYTES])])),
            (
                format!("# new\n{base64}\r\n\n {hex} \n"),
                Ok(vec![second, first]),
            ),
            (format!("{hex},{base64}"), Ok(vec![first, second])),
            (String::new(), Err(Error::NoKey)),
            ("# nothing\n".to_owned(), Err(Error::NoKey)),
            (format!("{hex}\n{hex}"), Err(Error::DuplicateKey(first))),
            (format!("{hex}\n0{}", "0".repeat(62)), Err(Error::BadKey(2))),
            (BASE64.encode(&[1; 31]), Err(Error::BadKey(1))),
            (BASE64.encode(&[1; 33]), Err(Error::BadKey(1))),
            ("a password".to_owned(), Err(Error::BadKey(1))),
        ] {
            let read = Keyring::parse(text.as_bytes()).map(|keys| keys.ids().collect::<Vec<_>>());
            assert_eq!(read, expected, "{text}");
        }
        let fresh = Keyring::fresh_key();
        assert_eq!(fresh.len(), 64);
        assert!(Keyring::parse(fresh.as_bytes()).is_ok());
        let sealed = Keyring::parse(hex.as_bytes()).unwrap().seal(&OWN, b"value");
        assert_eq!(Keyring::key_of(&sealed), Ok(first));
        let both = Keyring::parse(format!("{base64},{hex}").as_bytes()).unwrap();
        assert_eq!(opened(&both, &sealed), Ok(b"value".to_vec()));
    }

    #[test]
    fn debug_shows_ids_only() {
        let debug = format!("{:?}", keyring(&[OLD], OLD));
        assert_eq!(debug, "Keyring { ids: [00000001], .. }");
    }

    fn context((tenant, session, name): &(String, String, String)) -> Context<'_> {
        Context {
            tenant,
            session,
            name,
        }
    }

    proptest! {
        #[test]
        fn only_the_same_context_opens(
            own in (".{0,8}", ".{0,8}", ".{0,8}"),
            other in (".{0,8}", ".{0,8}", ".{0,8}"),
            value in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let keys = Keyring::generate();
            let sealed = keys.seal(&context(&own), &value);
            let back = keys.open(&context(&own), &sealed);
            prop_assert_eq!(back, Ok(Zeroizing::new(value)));
            if own != other {
                prop_assert_eq!(keys.open(&context(&other), &sealed), Err(Error::Refused));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let keys = keyring(&[OLD, NEW], NEW);
            let own = [&[VERSION][..], &NEW.0, &bytes].concat();
            prop_assert!(opened(&keys, &bytes).is_err());
            prop_assert!(opened(&keys, &own).is_err());
        }
    }
}
