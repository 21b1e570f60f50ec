//! Clients of Python, by `programs/call.py` of the fixture.

use super::model_apis;
use super::row::row;
use super::stage::{Stage, finish, installed};
use crate::support::clients::Said;
use crate::support::{Anthropic, H2Origin, Origin, program};

pub(super) async fn call(stage: &Stage, client: &str) -> Said {
    let mut command = stage.program("python3", "call.py");
    finish(command.args([client, &stage.url("/")])).await
}

pub(super) fn is_missing() -> bool {
    program("python3").is_none() || installed("python/requests").is_none()
}

async fn check(name: &str, client: &str) {
    if !is_missing() {
        let run = async |stage: &Stage| call(stage, client).await;
        row(name).check(Origin::echo_ok, run).await;
    }
}

#[tokio::test]
async fn urllib() {
    check("Python `urllib`", "urllib").await;
}

#[tokio::test]
async fn requests() {
    check("requests", "requests").await;
}

#[tokio::test]
async fn httpx() {
    check("httpx", "httpx").await;
}

#[tokio::test]
async fn httpx_with_h2() {
    check("httpx, `http2=True`", "httpx_h2").await;
}

#[tokio::test]
async fn aiohttp_told_to_look() {
    check("aiohttp, `trust_env=True`", "aiohttp").await;
}

#[tokio::test]
async fn aiohttp_as_it_is() {
    check("aiohttp", "aiohttp_bare").await;
}

#[tokio::test]
async fn urllib3_as_it_is() {
    check("urllib3 `PoolManager`", "urllib3_bare").await;
}

#[tokio::test]
async fn urllib3_told_of_the_proxy() {
    check("urllib3 `ProxyManager`", "urllib3_proxy").await;
}

#[tokio::test]
async fn anthropic() {
    for (name, client) in [
        ("anthropic for Python", "anthropic"),
        ("anthropic for Python, streaming", "anthropic_stream"),
    ] {
        if !is_missing() {
            let origin = async || Anthropic::start().await.into_origin();
            let run = async |stage: &Stage| call(stage, client).await;
            row(name).check(origin, run).await;
        }
    }
}

#[tokio::test]
async fn openai() {
    if !is_missing() {
        let run = async |stage: &Stage| call(stage, "openai").await;
        row("openai for Python")
            .check(model_apis::openai, run)
            .await;
    }
}

/// Answers every call with the message that it brought, in gRPC's frame.
async fn grpc_server() -> H2Origin {
    H2Origin::script(|mut exchange| async move {
        if exchange.read_all().await {
            let head = [("content-type", "application/grpc")];
            exchange.answer_head(200, &head, false);
            // No compression, a length of two bytes, and the message.
            exchange.send(&b"\0\0\0\0\x02ok"[..]).await;
            exchange.trailers(&[("grpc-status", "0")]);
        }
    })
    .await
}

#[tokio::test]
async fn grpc() {
    if !is_missing() {
        let run = async |stage: &Stage| call(stage, "grpc").await;
        row("grpcio for Python").check(grpc_server, run).await;
    }
}

/// Its own name for the key is refused when the session is made; by another it is of no use.
#[tokio::test]
async fn boto3() {
    if is_missing() {
        return;
    }
    model_apis::expect_refused("AWS_SECRET_ACCESS_KEY", "secret_signs").await;
    let run = async |stage: &Stage| call(stage, "boto3").await;
    row("boto3").check(Origin::echo_ok, run).await;
}
