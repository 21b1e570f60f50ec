//! An origin whose answers end before they should, each in the way that its path names.

use super::Origin;

impl Origin {
    /// Starts an origin that cuts its answers; on a path that it does not know it says `ok`.
    pub(crate) async fn cutting() -> Self {
        Self::script(|request, conn| async move {
            let chunked = |rest: &str| format!("Transfer-Encoding: chunked\r\n\r\n{rest}");
            let (head, in_order) = match request.line().split(' ').nth(1).unwrap_or_default() {
                "/length" => ("Content-Length: 10\r\n\r\nhello".to_owned(), true),
                "/chunked" => (chunked("5\r\nhello\r\n"), true),
                "/chunk" => (chunked("9\r\nhello"), true),
                "/trailer" => (chunked("5\r\nhello\r\n0\r\nX"), true),
                "/bad" => (chunked("5\r\nhello\r\n0x5\r\nsmugg\r\n0\r\n\r\n"), true),
                "/until-close" => ("\r\nhello".to_owned(), false),
                "/whole" => ("\r\nhello".to_owned(), true),
                _ => {
                    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    return conn.send(ok).await;
                }
            };
            conn.send(format!("HTTP/1.1 200 OK\r\n{head}")).await;
            if in_order {
                conn.close().await;
            } else {
                conn.abort().await;
            }
        })
        .await
    }
}
