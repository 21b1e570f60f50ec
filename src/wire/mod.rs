//! HTTP on the wire: heads, framing and chunks, read strictly and written once; and the heads of
//! HTTP/2, read into the same types.
//!
//! What is read here is refused or understood, never repaired: two programs that read the same
//! bytes differently are how requests get smuggled. It knows nothing of sessions or policy. The
//! relay, the swap and the surfaces read [`RequestHead`] and [`AnswerHead`] and nothing else.

mod body;
mod flow;
mod h1;
mod h2;
mod head;
mod hygiene;
mod io;
mod outbox;
mod reframe;

pub use body::{Body, BodyLimits, Progress};
pub use flow::{Flow, FlowError};
pub use h1::{
    EXTENSION_LIMIT_BYTES, Error, FIELD_LIMIT, Framing, HEAD_LIMIT_BYTES, HeadLimits, HeadScanner,
    TARGET_LIMIT_BYTES, TRAILER_LIMIT_BYTES, answer_framing, parse_answer, parse_request,
    parse_request_within, parse_trailers, request_framing,
};
pub use h2::{
    answer_from_parts, answer_to_parts, is_trailers_wanted, request_from_parts, request_to_parts,
    trailers_from_map, trailers_to_map,
};
pub use head::{AnswerHead, FieldRef, Fields, RequestHead, Version};
pub use hygiene::{clean_answer, clean_request, closes, token_list_has};
pub use io::{Connection, Io, ReadError, Replay, Stream, tune};
pub use outbox::Outbox;
pub use reframe::{Patience, Transform};
