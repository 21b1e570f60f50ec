//! Leaves and roots before real clients: Python, Node, Java and Go shake hands with a tunnel's TLS.
//!
//! Each client trusts our root alone, checks names and is as strict as it can be made. Each must
//! also refuse another root and another name, or its yes would prove nothing. A client that is
//! missing fails the test in CI and is skipped aloud elsewhere; Go alone may be missing anywhere.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says aloud what it skips"
)]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use oshu_vault::authority::{CertificateAuthority, Root};
use oshu_vault::host::Host;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;

/// How long a client may take over all its handshakes: a Java compiler starts in this time too.
const CLIENT_DEADLINE: Duration = Duration::from_mins(2);

/// Prints `name hello` or `name refused` for each `port/name` after the root's file.
const PYTHON: &str = r#"
import socket, ssl, sys

context = ssl.create_default_context(cafile=sys.argv[1])
context.verify_flags |= ssl.VERIFY_X509_STRICT
for argument in sys.argv[2:]:
    port, name = argument.split("/")
    try:
        with socket.create_connection(("127.0.0.1", int(port)), 20) as raw:
            with context.wrap_socket(raw, server_hostname=name) as tls:
                print(name, tls.recv(16).decode())
    except ssl.SSLCertVerificationError as error:
        print(error, file=sys.stderr)
        print(name, "refused")
"#;

const NODE: &str = r#"
const fs = require("fs"), net = require("net"), tls = require("tls");
const [ca, ...targets] = process.argv.slice(1);

function shake(target) {
  const [port, name] = target.split("/");
  return new Promise((resolve) => {
    const socket = tls.connect({
      host: "127.0.0.1",
      port: Number(port),
      ca: fs.readFileSync(ca),
      servername: net.isIP(name) ? "" : name,
      checkServerIdentity: (_, cert) => tls.checkServerIdentity(name, cert),
    });
    socket.on("data", (data) => { console.log(name, data.toString()); socket.end(); resolve(); });
    socket.on("error", (error) => { console.error(error.message); console.log(name, "refused"); resolve(); });
  });
}

(async () => { for (const target of targets) await shake(target); })();
"#;

const JAVA: &str = r#"
import java.io.FileInputStream;
import java.net.Socket;
import java.security.KeyStore;
import javax.net.ssl.*;

public class Shake {
    public static void main(String[] arguments) throws Exception {
        KeyStore trusted = KeyStore.getInstance("PKCS12");
        try (FileInputStream file = new FileInputStream(arguments[0])) {
            trusted.load(file, "changeit".toCharArray());
        }
        TrustManagerFactory factory = TrustManagerFactory.getInstance("PKIX");
        factory.init(trusted);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, factory.getTrustManagers(), null);
        for (int i = 1; i < arguments.length; i++) {
            String[] target = arguments[i].split("/");
            int port = Integer.parseInt(target[0]);
            try (Socket raw = new Socket("127.0.0.1", port);
                 SSLSocket tls = (SSLSocket)
                     context.getSocketFactory().createSocket(raw, target[1], port, true)) {
                SSLParameters parameters = tls.getSSLParameters();
                parameters.setEndpointIdentificationAlgorithm("HTTPS");
                tls.setSSLParameters(parameters);
                String read = new String(tls.getInputStream().readNBytes(5));
                System.out.println(target[1] + " " + read);
            } catch (SSLHandshakeException error) {
                System.err.println(error);
                System.out.println(target[1] + " refused");
            }
        }
    }
}
"#;

const GO: &str = r#"
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	pem, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		panic("no certificate")
	}
	for _, target := range os.Args[2:] {
		port, name, _ := strings.Cut(target, "/")
		config := &tls.Config{RootCAs: roots, ServerName: name}
		socket, err := tls.Dial("tcp", "127.0.0.1:"+port, config)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			fmt.Println(name, "refused")
			continue
		}
		read, _ := io.ReadAll(socket)
		fmt.Println(name, string(read))
	}
}
"#;

/// Tells whether all programs are there.
async fn installed(programs: &[&str]) -> bool {
    for program in programs {
        if Command::new(program)
            .arg("--version")
            .output()
            .await
            .is_ok()
        {
            continue;
        }
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{program} must be installed in CI"
        );
        eprintln!("skipped: {program} is not installed");
        return false;
    }
    true
}

/// Runs a program to its end and returns its standard output.
async fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let child = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(CLIENT_DEADLINE, child)
        .await
        .unwrap()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {printed}"
    );
    eprintln!("{program}: {printed}");
    String::from_utf8(output.stdout).unwrap()
}

/// Serves one host's tunnel on a free port: a handshake, a greeting, the end.
async fn serve(authority: &CertificateAuthority, host: &str) -> SocketAddr {
    let config = authority
        .server_config(&Host::parse(host).unwrap())
        .await
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = TlsAcceptor::from(Arc::clone(&config));
            tokio::spawn(async move {
                // A client that refuses ends the handshake; its own output says so.
                let mut stream = acceptor.accept(socket).await.ok()?;
                stream.write_all(b"hello").await.ok()?;
                stream.shutdown().await.ok()
            });
        }
    });
    address
}

/// The roots to try: our own, and one as a company has it (RSA, two DC, made by openssl).
async fn roots(folder: &Path) -> Vec<Root> {
    let mut roots = vec![Root::generate_into(&folder.join("own"), "Own root").unwrap()];
    if installed(&["openssl"]).await {
        let (cert, key) = (folder.join("corp.pem"), folder.join("corp.key"));
        let arguments = "req -x509 -newkey rsa:2048 -noenc -days 30 -keyout corp.key -out corp.pem \
                         -subj /DC=com/DC=corp/OU=a+CN=Corp -multivalue-rdn \
                         -addext keyUsage=critical,keyCertSign,cRLSign";
        run(
            folder,
            "openssl",
            &arguments.split_whitespace().collect::<Vec<_>>(),
        )
        .await;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        roots.push(Root::load(&cert, &key).unwrap());
    }
    roots
}

/// Lets a client shake hands for hosts of every kind, and once each with a wrong name and root.
/// `trust` turns a root's PEM file into what the client takes for one.
async fn judge<T>(programs: &[&str], program: &str, arguments: &[&str], trust: impl Fn(String) -> T)
where
    T: Future<Output = String>,
{
    if !installed(programs).await {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("Shake.java"), JAVA).unwrap();
    fs::write(folder.join("shake.go"), GO).unwrap();
    let long = format!("{}{}.example", "a.".repeat(60), "b".repeat(63));
    let longest = format!("{}a", "a.".repeat(126));
    let stranger = Root::generate("Stranger").unwrap();
    fs::write(folder.join("stranger.pem"), stranger.cert_pem()).unwrap();
    for root in roots(folder).await {
        let authority = CertificateAuthority::new(root).unwrap();
        let (mut targets, mut expected) = (Vec::new(), String::new());
        for host in [
            "api.example.com",
            "192.0.2.7",
            "[2001:db8::1]",
            &long,
            &longest,
        ] {
            let address = serve(&authority, host).await;
            let name = host.trim_matches(['[', ']']);
            targets.push(format!("{}/{name}", address.port()));
            expected.push_str(name);
            expected.push_str(" hello\n");
        }
        let address = serve(&authority, "other.example").await;
        targets.push(format!("{}/api.example.com", address.port()));
        expected.push_str("api.example.com refused\n");

        fs::write(folder.join("root.pem"), authority.root().cert_pem()).unwrap();
        let path = |name: &str| folder.join(name).display().to_string();
        let trusted = trust(path("root.pem")).await;
        let mut call = arguments.to_vec();
        call.push(&trusted);
        call.extend(targets.iter().map(String::as_str));
        assert_eq!(run(folder, program, &call).await, expected);

        let trusted = trust(path("stranger.pem")).await;
        let mut call = arguments.to_vec();
        call.push(&trusted);
        call.extend(targets.first().map(String::as_str));
        let answer = run(folder, program, &call).await;
        assert_eq!(answer, "api.example.com refused\n");
    }
}

#[tokio::test]
async fn case_81_python_accepts_leaves_with_strict_verification() {
    judge(&["python3"], "python3", &["-c", PYTHON], async |ca| ca).await;
}

#[tokio::test]
async fn case_81_node_accepts_leaves() {
    judge(&["node"], "node", &["-e", NODE, "--"], async |ca| ca).await;
}

#[tokio::test]
async fn case_81_java_accepts_leaves_with_a_root_imported_by_keytool() {
    let import = async |ca: String| {
        let store = format!("{ca}.p12");
        let _absent_at_first = fs::remove_file(&store);
        let arguments = format!(
            "-importcert -noprompt -alias root -storetype PKCS12 -storepass changeit \
             -keystore {store} -file {ca}"
        );
        let arguments: Vec<_> = arguments.split_whitespace().collect();
        run(Path::new("/"), "keytool", &arguments).await;
        store
    };
    judge(&["java", "keytool"], "java", &["Shake.java"], import).await;
}

#[tokio::test]
async fn case_81_go_accepts_leaves() {
    if Command::new("go").arg("version").output().await.is_err() {
        eprintln!("skipped: go is not installed");
        return;
    }
    judge(&["go"], "go", &["run", "shake.go"], async |ca| ca).await;
}
