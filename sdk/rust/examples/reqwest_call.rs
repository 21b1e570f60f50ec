//! One call by a program that uses reqwest: `reqwest_call URL` prints the body of the answer.
//!
//! It is what any Rust program behind the proxy looks like, which it finds, with its roots, by
//! itself. The key is a sealed token in `CLIENT_KEY`. Run by the tests of real clients.

use std::error::Error;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).ok_or("usage: reqwest_call URL")?;
    let key = std::env::var("CLIENT_KEY")?;
    let call = reqwest::Client::new().get(url).header("X-Api-Key", key);
    let answer = call.send().await?.error_for_status()?;
    let text = answer.text().await?;
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?;
    Ok(())
}
