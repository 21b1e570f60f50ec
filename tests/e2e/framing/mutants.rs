//! Requests that were right once: valid messages, changed in one to three places.
//!
//! All comes from one seed, so that a number names a mutant for ever. Behind each of them stands a
//! request that no proxy may forward, and one that ends the connection. Used by the differential
//! test.

/// What stands behind or within every mutant. It asks for a host that the tunnel does not lead to:
/// only a server that reads the bytes before it otherwise than the proxy did sees it as a request.
pub(super) const SMUG: &str = "GET /smug HTTP/1.1\r\nHost: evil.example.net\r\n\r\n";

/// A sequence of numbers that looks like chance (splitmix64).
pub(super) struct Chance(pub(super) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).expect("a small number")
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// A message in pieces: the lines of its head and the pieces of its body, with their line ends.
struct Message {
    head: Vec<Vec<u8>>,
    body: Vec<Vec<u8>>,
}

const METHODS: [&str; 12] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get", "G\"ET", "TRACE", "PRI", "X",
];
const VERSIONS: [&str; 8] = [
    "HTTP/1.0",
    "HTTP/0.9",
    "HTTP/1.2",
    "HTTP/2.0",
    "http/1.1",
    "HTTP/11.1",
    "HTTP/1.1 ",
    "",
];
const ENDS: [&str; 10] = [
    "\n", "\r", "\r\r\n", "\n\r", "", " \r\n", "\r\n ", "\r\n\t", "\0\r\n", "\r\n\r\n",
];
const BYTES: [u8; 20] = [
    0, b'\t', 0x0b, 0x0c, b' ', b'\r', b'\n', b',', b';', b':', b'"', 0x7f, 0x80, 0xa0, 0xff, b'_',
    b'-', b'0', b'#', b'\\',
];
/// Lines that frame, or nearly do. `{}` is the length that would be right.
const FRAMING: [&str; 38] = [
    "Content-Length: {}",
    "content-length:{}",
    "Content-Length:\t{} ",
    "Content-Length: 0",
    "Content-Length: 5",
    "Content-Length: +{}",
    "Content-Length: -1",
    "Content-Length: 0x5",
    "Content-Length: {}, {}",
    "Content-Length: {} {}",
    "Content-Length: 0{}",
    "Content-Length: {}_0",
    "Content-Length:",
    "Content-Length: 18446744073709551621",
    "Content-Length : {}",
    "Content_Length: {}",
    " Content-Length: {}",
    "Content-Length\t: 0",
    "X: y\nContent-Length: 0",
    "X: y\rContent-Length: 0",
    "Transfer-Encoding: chunked",
    "transfer-encoding:CHUNKED",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: chunked\x0b",
    "Transfer-Encoding : chunked",
    "Transfer_Encoding: chunked",
    "X: y\r\n Transfer-Encoding: chunked",
    "Transfer-Encoding:\r\n chunked",
    "X: y\nTransfer-Encoding: chunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding:",
    "Connection: content-length",
    "Connection: close, transfer-encoding",
    "Connection: x-a, host",
];
const OTHER: [&str; 24] = [
    "Host: {H}",
    "Host: evil.example.net",
    "Host:\t{H}",
    "Host : {H}",
    "host: {H}, evil.example.net",
    " Host: evil.example.net",
    "Host: {H}:443",
    "Host: {H}@evil.example.net",
    "Host:",
    "Expect: 100-continue",
    "Expect: x",
    "Upgrade: h2c",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Connection: close",
    "Connection: keep-alive",
    "Trailer: X-T",
    "TE: chunked",
    "X",
    ": v",
    "X\0: v",
    "X: a\0b",
    "X-Forwarded-Host: evil.example.net",
    "Proxy-Connection: keep-alive",
];
/// Lines that open a chunk, or nearly do. `{}` is the size that would be right.
const SIZES: [&str; 24] = [
    "{}\r\n",
    "0{}\r\n",
    "{};ext\r\n",
    "{};a=\"b\"\r\n",
    "0x{}\r\n",
    "+{}\r\n",
    "-{}\r\n",
    "{} \r\n",
    " {}\r\n",
    "{}\n",
    "{};x\n",
    "{};\nxx\r\n",
    "{}\r",
    "{}\r\r\n",
    "{}_0\r\n",
    "\r\n",
    "0\r\n",
    "1\r\n",
    "00000000000000000{}\r\n",
    "FFFFFFFFFFFFFFFF\r\n",
    "10000000000000000{}\r\n",
    "{}g\r\n",
    "{}\t;a\r\n",
    "{};a=\"\r\nX\"\r\n",
];
const TRAILERS: [&str; 10] = [
    "0\r\nX-T: 1\r\n\r\n",
    "0\r\nContent-Length: 5\r\n\r\n",
    "0\r\nX\r\n\r\n",
    "0\r\n\n",
    "0\n\r\n",
    "0\r\nX: a\n\r\n",
    "0\r\n X: a\r\n\r\n",
    "0\r\nHost: evil.example.net\r\n\r\n",
    "0;x\r\n\r\n",
    "0\r\nX",
];

fn lines(text: &str) -> Vec<Vec<u8>> {
    let lines = text.split_inclusive("\r\n");
    lines.map(|line| line.as_bytes().to_vec()).collect()
}

fn valid(chance: &mut Chance, number: usize, host: &str) -> Message {
    let (length, path) = (SMUG.len(), format!("/m{number}"));
    let common = format!("Host: {host}\r\nX-A: 1\r\n");
    let sized = format!("{common}Content-Length: {length}\r\n");
    let chunked = format!("{common}Transfer-Encoding: chunked\r\n");
    let whole = vec![SMUG.as_bytes().to_vec()];
    let chunk = |data: &str| {
        let size = format!("{:x}\r\n", data.len());
        vec![
            size.into_bytes(),
            data.as_bytes().to_vec(),
            b"\r\n".to_vec(),
        ]
    };
    let last = vec![b"0\r\n\r\n".to_vec()];
    let (start, fields, body) = match chance.below(9) {
        0 => (format!("GET {path}"), common, Vec::new()),
        1 | 2 => (format!("POST {path}?x=y"), sized, whole),
        3 | 4 => (
            format!("POST {path}"),
            chunked,
            [chunk(SMUG), last].concat(),
        ),
        5 => (
            format!("PUT {path}"),
            chunked,
            [chunk("hello"), chunk(SMUG), last].concat(),
        ),
        6 => (
            format!("{} {path}", chance.pick(&METHODS[..7])),
            sized,
            whole,
        ),
        7 => (
            format!("POST {path}"),
            format!("{sized}Expect: 100-continue\r\n"),
            whole,
        ),
        _ => (
            format!("GET {path}"),
            format!("Connection: x-a, keep-alive\r\n{sized}"),
            whole,
        ),
    };
    Message {
        head: lines(&format!("{start} HTTP/1.1\r\n{fields}\r\n")),
        body,
    }
}

/// Changes a message in one place.
fn change(chance: &mut Chance, message: &mut Message, host: &str) {
    let fields = message.head.len().saturating_sub(2);
    // A field; never the first line, nor the empty one.
    let field = 1 + chance.below(fields);
    let right: usize = message.body.iter().map(Vec::len).sum();
    let fill = |line: &str| {
        let line = line.replace("{}", &right.to_string()).replace("{H}", host);
        [line.as_bytes(), b"\r\n"].concat()
    };
    let head = &mut message.head;
    let count = head.len();
    match chance.below(14) {
        0 => {
            let line = head[field.min(count - 1)].clone();
            head.insert(field, line);
        }
        1 if fields > 1 => head.swap(field, 1 + chance.below(fields)),
        2 if fields > 1 => drop(head.remove(field)),
        3 => {
            let line = &mut head[field.min(count - 1)];
            let name = line.iter().position(|byte| *byte == b':').unwrap_or(0);
            for byte in &mut line[..name] {
                if chance.below(2) == 0 {
                    *byte ^= if byte.is_ascii_alphabetic() { 0x20 } else { 0 };
                }
            }
        }
        4 | 5 => {
            let line = chance.below(count);
            let at = chance.below(head[line].len() + 1);
            let byte = *chance.pick(&BYTES);
            head[line].insert(at, byte);
        }
        6 => {
            let line = chance.below(count);
            let at = chance.below(head[line].len());
            match head[line].get_mut(at) {
                Some(byte) if chance.below(2) == 0 => *byte = *chance.pick(&BYTES),
                Some(_) => drop(head[line].remove(at)),
                None => {}
            }
        }
        7 => {
            let line = chance.below(count);
            let text = head[line].trim_ascii_end().to_vec();
            head[line] = [&text, chance.pick(&ENDS).as_bytes()].concat();
        }
        8 | 9 => {
            let line = chance.pick(&FRAMING);
            head.insert(field, fill(line));
        }
        10 => {
            let line = chance.pick(&OTHER);
            head.insert(field, fill(line));
        }
        11 => {
            let first = String::from_utf8_lossy(&head[0]).into_owned();
            let mut words: Vec<&str> = first.trim_ascii_end().split(' ').collect();
            let absolute;
            match (chance.below(4), words.len()) {
                (0, _) => words[0] = *chance.pick(&METHODS),
                (1, 3) => words[2] = *chance.pick(&VERSIONS),
                (2, 3) => {
                    absolute = format!("https://{host}{}", words[1]);
                    words[1] = &absolute;
                }
                _ => {}
            }
            let space = *chance.pick(&[" ", " ", " ", "  ", "\t"]);
            head[0] = format!("{}\r\n", words.join(space)).into_bytes();
        }
        _ => change_body(chance, &mut message.body),
    }
}

fn change_body(chance: &mut Chance, body: &mut Vec<Vec<u8>>) {
    if body.is_empty() {
        return body.push(SMUG.as_bytes().to_vec());
    }
    let chunks = (body.len() - 1) / 3;
    let chunk = 3 * chance.below(chunks);
    match (chance.below(4), chunks) {
        (_, 0) => {
            // A body with a length: some other bytes before or behind it.
            let piece = chance.pick(&["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "x", "\r\n"]);
            body.insert(chance.below(2), piece.as_bytes().to_vec());
        }
        (0 | 1, _) => {
            let size = format!("{:x}", body[chunk + 1].len());
            body[chunk] = chance.pick(&SIZES).replace("{}", &size).into_bytes();
        }
        (2, _) => body[chunk + 2] = chance.pick(&ENDS).as_bytes().to_vec(),
        _ => {
            let last = body.len() - 1;
            body[last] = chance.pick(&TRAILERS).as_bytes().to_vec();
        }
    }
}

/// Makes a mutant: a changed request, the smuggled one behind it, and the last one.
pub(super) fn mutant(seed: u64, number: usize, host: &str) -> Vec<u8> {
    let mut chance = Chance(seed ^ (number as u64).wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut message = valid(&mut chance, number, host);
    for _ in 0..=chance.below(3) {
        change(&mut chance, &mut message, host);
    }
    let end = format!("GET /end{number} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    // Whoever waits for more of a body gets it, and then something that is no request.
    let rest = format!("{}\r\n\r\n", "x".repeat(1000));
    let tail = [SMUG.as_bytes(), end.as_bytes(), rest.as_bytes()].concat();
    let order = chance.below(2);
    let behind = if order == 0 {
        &tail[..]
    } else {
        &tail[SMUG.len()..]
    };
    [
        message.head.concat(),
        message.body.concat(),
        behind.to_vec(),
    ]
    .concat()
}
