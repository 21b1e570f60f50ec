//! The root and what is signed with it, seen from outside: what is published, what is not, and that
//! a connection which is taken up again carries nothing before its handshake.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use tokio_rustls::TlsConnector;

use crate::support::{API_KEY, Conn, GOOD, Origin, REAL, Scene, contains, show, within};

/// Sends one request in origin-form to an address, and returns status and body.
async fn ask(conn: &mut Conn, method: &str, path: &str, lines: &str) -> (u16, Vec<u8>) {
    conn.send(format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n"
    ))
    .await;
    let answer = match method {
        "HEAD" => conn.answer_to_head().await,
        _ => conn.answer().await,
    };
    (answer.status, answer.body)
}

#[tokio::test]
async fn case_80_the_root_is_published_as_one_certificate_and_no_path_has_its_key() {
    let scene = Scene::new().await;
    let pem = scene.vault.ca_pem();
    assert_eq!(pem.matches("-----BEGIN ").count(), 1, "{pem}");
    let key = format!("Authorization: Bearer {API_KEY}\r\n");
    let credentials = scene.workload.authorization();
    for lines in ["", &key, &credentials] {
        for path in [
            "/v1/ca.pem",
            "/v1/ca.pem?file=ca.key",
            "/v1/ca.pem?../ca.key",
        ] {
            let mut conn = scene.workload.plain().await;
            let (status, body) = ask(&mut conn, "GET", path, lines).await;
            assert_eq!((status, show(&body)), (200, show(pem.as_bytes())), "{path}");
            let (status, body) = ask(&mut conn, "HEAD", path, lines).await;
            assert_eq!((status, body.len()), (200, 0), "{path}");
        }
        for path in [
            "/v1/ca.key",
            "/v1/ca.KEY",
            "/v1/ca",
            "/v1/ca/",
            "/v1/ca.pem/",
            "/v1/ca.pem.key",
            "/v1/ca.key.pem",
            "/v1/ca.pem;ca.key",
            "/v1/ca.pem%00.key",
            "/v1/ca.key%00.pem",
            "/v1/ca.key%20",
            "/v1/../ca.key",
            "/v1/../ca/ca.key",
            "/v1/../../../../etc/passwd",
            "/v1/%2e%2e/ca.key",
            "/v1/..%2fca.key",
            "/v1/..%5cca.key",
            "/v1/ca.pem/../ca.key",
            "/v1/ca.der/../ca.key",
            "/v1/./ca.key",
            "//v1/ca.key",
            "/ca.key",
            "/ca/ca.key",
            "/certs/ca.key",
            "/.ca.key.new",
        ] {
            for method in ["GET", "POST", "PUT", "PATCH"] {
                let more = match method {
                    "GET" => lines.to_owned(),
                    _ => format!("{lines}Content-Length: 0\r\n"),
                };
                let mut conn = scene.workload.plain().await;
                let (status, body) = ask(&mut conn, method, path, &more).await;
                let refused = matches!(status, 400 | 401 | 404 | 405);
                assert!(refused, "{method} {path}: {status} {}", show(&body));
                assert!(!contains(&body, "-----BEGIN"), "{path}: {}", show(&body));
            }
        }
    }
    // The other doors have nothing else.
    let mut secure = scene.workload.secure().await;
    for (path, expected) in [("/v1/ca.pem", 200), ("/v1/ca.key", 404)] {
        let (status, body) = ask(&mut secure, "GET", path, "").await;
        assert_eq!(status, expected, "{path}");
        assert!(!contains(&body, "PRIVATE"), "{path}: {}", show(&body));
    }
    let (status, body) = ask(&mut secure, "GET", "/v1/bundle.pem", "").await;
    assert!(status == 200 && !contains(&body, "PRIVATE"));
    assert!(
        body.ends_with(pem.as_bytes()),
        "our own is the last of them"
    );
    scene.alive("requests for the key").await;
}

/// Shakes hands over a stream, exchanges one request so that a ticket arrives, and tells how the
/// handshake went.
async fn visit(config: &Arc<ClientConfig>, name: &str, conn: Conn, request: &str) -> HandshakeKind {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let connector = TlsConnector::from(Arc::clone(config));
    let stream = within("a handshake", connector.connect(name, conn.into_io())).await;
    let stream = stream.expect("a handshake");
    let kind = stream.get_ref().1.handshake_kind().expect("it is over");
    let mut conn = Conn::new(stream);
    conn.send(request).await;
    assert_eq!(conn.answer().await.status, 200);
    kind
}

#[tokio::test]
async fn case_20_nothing_is_taken_before_the_handshake_of_a_connection_taken_up_again() {
    let origin = Origin::script(|request, conn| async move {
        let answer = if request.line().contains("/early") {
            "HTTP/1.1 425 Too Early\r\nContent-Length: 5\r\n\r\nearly"
        } else {
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        };
        conn.send(answer).await;
    });
    let scene = Scene::around(origin.await).await;
    let mut config = scene.workload.tls_config();
    config.enable_early_data = true;
    let config = Arc::new(config);
    let request = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
    let health = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let listener = scene.vault.tls_addr();
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        // In a tunnel, and with the TLS listener itself.
        let tunnel = scene.workload.tunnel("good.example.com:443").await;
        let kind = visit(&config, GOOD, tunnel, &request).await;
        assert_eq!(kind, expected, "in a tunnel");
        let tcp = tokio::net::TcpStream::connect(listener).await;
        let door = Conn::new(tcp.expect("a connection"));
        let kind = visit(&config, &listener.ip().to_string(), door, health).await;
        assert_eq!(kind, expected, "at the listener");
    }
    // There is a ticket for each, and none allows a byte of early data (RFC 8446 §4.6.1).
    for name in [GOOD.to_owned(), listener.ip().to_string()] {
        let server = ServerName::try_from(name.clone()).expect("a name");
        let mut client = ClientConnection::new(Arc::clone(&config), server).expect("a client");
        assert!(client.early_data().is_none(), "{name} takes early data");
    }
    // An origin that has its own view of what came early is heard, and the field is only text.
    scene.good.forget();
    let head = scene.fill(
        "GET /early HTTP/1.1\r\nHost: good.example.com\r\nEarly-Data: 1\r\nX-Key: {T}\r\n\r\n",
    );
    let answer = scene.ask(GOOD, &head).await;
    assert_eq!((answer.status, answer.text()), (425, "early"));
    let expected = head.replace(scene.token(), REAL);
    assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
    scene.alive("early data").await;
}
