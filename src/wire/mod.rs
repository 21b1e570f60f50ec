//! HTTP/1.1 on the wire: heads, framing and chunks, read strictly and written once.
//!
//! What is read here is refused or understood, never repaired: two programs that read the same
//! bytes differently are how requests get smuggled. It knows nothing of sessions or policy. The
//! relay, the swap and the surfaces read [`RequestHead`] and [`AnswerHead`] and nothing else.

mod body;
mod flow;
mod h1;
mod head;
mod hygiene;
mod io;

pub use body::{Body, Progress};
pub use flow::{Flow, FlowError};
pub use h1::{
    EXTENSION_LIMIT_BYTES, Error, FIELD_LIMIT, Framing, HEAD_LIMIT_BYTES, HeadScanner,
    TARGET_LIMIT_BYTES, TRAILER_LIMIT_BYTES, answer_framing, parse_answer, parse_request,
    parse_trailers, request_framing,
};
pub use head::{AnswerHead, FieldRef, Fields, RequestHead, Version};
pub use hygiene::{clean_answer, clean_request, closes, token_list_has};
pub use io::{Connection, Io, ReadError, Replay, Stream, tune};
